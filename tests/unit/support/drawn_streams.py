"""Valid streams of libxl, drawn by hypothesis."""

from dataclasses import dataclass, field

from hypothesis import strategies as st

from tests.unit.support import streams


@dataclass(frozen=True)
class Built:
    """A generated stream and what a walk must find in it."""

    data: bytes = field(repr=False)
    container: str
    xen: tuple[int, int]
    version: int
    pages: int
    guest_pages: int
    has_emulator: bool


_TYPES = st.lists(st.sampled_from(streams.WITH_DATA + streams.WITHOUT_DATA), min_size=1, max_size=6)


@st.composite
def valid_streams(draw: st.DrawFn) -> Built:
    """PV and HVM, versions 2 and 3, live saves (pages sent again) and optional records."""
    batches = draw(st.lists(_TYPES, min_size=1, max_size=4))
    placed = [list(enumerate(types, draw(st.integers(0, 12)))) for types in batches]
    pages = [streams.pages_at(batch) for batch in placed]
    count = sum(kind in streams.WITH_DATA for types in batches for kind in types)
    held = {pfn for batch in placed for pfn, kind in batch if kind not in streams.WITHOUT_MEMORY}
    version = draw(st.sampled_from((2, 3)))
    xen = draw(st.tuples(st.integers(3, 5), st.integers(0, 99)))
    pv, qemu = draw(st.sampled_from([(True, False), (False, True), (False, False)]))
    if pv:
        width, vcpus = draw(st.sampled_from((4, 8))), draw(st.integers(1, 3))
        records = streams.pv_records(pages, width=width, version=version, vcpus=vcpus)
    else:
        records = streams.hvm_records(pages, version=version, params=draw(st.integers(0, 5)))
    optional = streams.record(0x80000000 | draw(st.integers(0, 40)), draw(st.binary(max_size=20)))
    for _ in range(draw(st.integers(0, 3))):
        records.insert(draw(st.integers(0, len(records) - 1)), optional)
    context = [streams.emulator(2, b"k\0v\0")] * draw(st.integers(0, 1))
    after = [*context, streams.emulator(3)] if qemu else []
    data = streams.stream(1 if pv else 2, records, version=version, xen=xen, after=after)
    return Built(data, "pv" if pv else "hvm", xen, version, count, len(held), qemu)
