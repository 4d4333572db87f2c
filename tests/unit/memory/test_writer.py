"""The stream writer: its file restores to the same memory as the stream, and has its shape."""

import errno
import fcntl
import os
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap.errors import BadMemoryFile
from pyxlsnap.memory import read_header, walk
from pyxlsnap.memory.header import ALIGNMENT
from pyxlsnap.memory.writer import StreamWriter
from tests.unit.support import streams
from tests.unit.support.restores import XTAB, restored
from tests.unit.support.streams import PAGE, WITH_DATA
from tests.unit.support.written import (
    ZERO,
    Case,
    cases,
    content,
    fed,
    file_of,
    file_size_limit,
    holes,
    in_order,
    page_record,
    restored_file,
    stream_of,
    writing,
)

MIB = 1 << 20
#: a stream that leads through all of the writer: later copies, pages behind, pages that are lost
BUSY = Case(
    pv=False,
    passes=[
        [[(n, 0, n % 3) for n in range(20)]],
        [[(n, 0, 7) for n in range(3, 9)], [(4, XTAB, 0), (1030, 0, 1)]],
        [[(30, 0, 2), (4, 0, 0), (5, XTAB, 0)]],
    ],
)

#: a page comes again, and has become zero
ZEROED = Case(pv=False, passes=[[[(n, 0, 1) for n in range(20)]], [[(4, 0, 0)]]])


@given(cases(), st.lists(st.integers(1, 9000), min_size=1, max_size=9))
def test_the_file_restores_to_the_same_memory_as_the_stream(case: Case, sizes: list[int]) -> None:
    wanted = restored(case.stream)
    with writing() as (writer, file):
        assert fed(writer, case.stream, [*sizes, 1 << 20])
        found = restored_file(file)
        assert found.memory == wanted.memory
        assert found.absent == wanted.absent
        assert found.populated <= wanted.populated
        assert found.others == wanted.others
        assert found.before == wanted.before
        assert writer.written.warning is None
        file.seek(read_header(file, "x").stream_offset)
        summary = walk(file, "x")
        assert summary.guest_pages == len(found.populated)
        assert (summary.pages, summary.end_offset) == (writer.written.pages, writer.written.size)


@given(cases())
def test_each_page_is_there_once_and_aligned(case: Case) -> None:
    with writing() as (writer, file):
        assert writer.feed(case.stream)
        records = restored_file(file).records
        pfns = [pfn for record in records for pfn in record.with_data]
        assert len(pfns) == len(set(pfns)) == writer.written.pages
        assert all(record.data_offset % PAGE == 0 for record in records)
        assert records[0].offset % ALIGNMENT == 0
        for record in records:
            listed = [pfn for pfn, _ in record.entries]
            fillers = listed.count(listed[-1]) - 1
            assert all(kind == XTAB for _, kind in record.entries[:fillers])
            assert len(set(listed)) == len(listed) - fillers


@given(cases())
def test_pages_that_are_zero_or_given_away_are_holes(case: Case) -> None:
    last = {pfn: kind for records in case.passes for r in records for pfn, kind, _ in r}
    with writing() as (writer, file):
        assert writer.feed(case.stream)
        wanted = bytearray(content(file))
        writer.punch()
        empty = holes(file)
        zeros = 0
        for record in restored_file(file).records:
            pages = range(record.data_offset, len(wanted), PAGE)
            for at, pfn in zip(pages, record.with_data, strict=False):
                if last[pfn] not in WITH_DATA:
                    wanted[at : at + PAGE] = ZERO
                zero = wanted[at : at + PAGE] == ZERO
                zeros += zero
                assert (at in empty) == zero
        assert content(file) == wanted
        assert writer.written.holes == zeros


def test_a_page_with_one_byte_that_is_not_zero_is_no_hole() -> None:
    """Wherever the byte is."""
    pages = [bytes(n) + b"\1" + bytes(PAGE - n - 1) for n in range(PAGE)]
    records = []
    for first in range(0, PAGE, 1024):
        pfns = range(first, first + 1024)
        head = len(pfns).to_bytes(8, "little") + streams.entries((pfn, 0) for pfn in pfns)
        records.append(streams.record(1, head + b"".join(pages[n] for n in pfns)))
    with writing() as (writer, file):
        assert writer.feed(stream_of(False, records))
        assert writer.written.holes == 0
        found = restored_file(file).memory
        assert [found[pfn] == (0, page) for pfn, page in enumerate(pages)] == [True] * PAGE


@given(cases())
def test_zeros_stay_where_no_holes_can_be_made(case: Case) -> None:
    """A sealed file refuses each of them, as a filesystem does that has no holes."""
    with writing() as (writer, file):
        assert writer.feed(case.stream)
        before, empty = content(file), holes(file)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        writer.punch()
        assert (content(file), holes(file)) == (before, empty)
        assert restored_file(file).memory == restored(case.stream).memory


def test_a_page_that_has_become_zero_is_a_hole_only_afterwards() -> None:
    """Until then there are zeros in its place."""
    with writing() as (writer, file):
        assert writer.feed(ZEROED.stream)
        at = restored_file(file).records[0].data_offset + 4 * PAGE
        assert at not in holes(file)
        assert content(file)[at : at + PAGE] == ZERO
        writer.punch()
        assert at in holes(file)


@pytest.mark.parametrize("again", [0, 300])
def test_an_aligned_run_of_512_pfns_is_in_one_record(again: int) -> None:
    """Xen 4.21 gives the guest a page of 2 MiB for such a run."""
    count = 5000
    later = [page_record((n * 7 % count, 0, 9) for n in range(again))] if again else []
    file = file_of(stream_of(False, in_order(count) + later))
    with writing() as (writer, out):
        assert writer.feed(stream_of(False, in_order(count) + later))
        records = restored_file(out).records
        assert writer.written.repeated == again
    assert [len(record.entries) for record in records] == [2558] * 3
    for first in range(0, count - 511, 512):
        (home,) = [r for r in records if first in r.with_data]
        at = home.with_data.index(first)
        assert home.with_data[at : at + 512] == list(range(first, first + 512))
    assert [r.with_data[0] for r in records] == [0, 2048, 4096]
    assert [b.offset - a.offset for a, b in pairwise(records)] == [20480 + 2048 * PAGE] * 2
    assert len(file) > count * PAGE


def test_the_records_of_a_pv_guest_have_510_entries() -> None:
    pages = [(n, XTAB if 600 <= n < 1500 else 0, 1) for n in range(2000)]
    with writing() as (writer, out):
        assert writer.feed(stream_of(True, [page_record(pages[:1024]), page_record(pages[1024:])]))
        records = restored_file(out).records
    assert all(len(record.entries) == 510 for record in records)
    assert [r.entries[-1][0] for r in records] == [509, 1019, 1529, 1999]
    listed = [entry for record in records for entry in record.entries]
    assert [e for e in listed if e != (1999, XTAB)] == [(n, kind) for n, kind, _ in pages]


def test_a_run_of_an_hvm_guest_without_data_is_left_out() -> None:
    pages = [page_record((n, XTAB, 0) for n in range(f, f + 1024)) for f in range(0, 8192, 1024)]
    with writing() as (writer, out):
        assert writer.feed(stream_of(False, [*pages, page_record([(9000, 0, 1)])]))
        assert len(restored_file(out).records) == 1


def test_deferred_pages_of_a_pv_guest_come_behind() -> None:
    """A page table that libxc could not read at first is listed as XTAB, and comes later."""
    first = [(n, XTAB if n == 7 else 0, 1) for n in range(700)]
    with writing() as (writer, out):
        assert writer.feed(stream_of(True, [page_record(first), page_record([(7, 2, 5)])]))
        found = restored_file(out)
    assert found.memory[7] == (2, b"\5" * PAGE)
    assert (7, XTAB) in found.records[0].entries
    assert found.records[-1].with_data == [7]
    assert writer.written.behind == 1


def test_two_snapshots_of_a_guest_are_equal_where_its_memory_is() -> None:
    """A live one and a stopped one, with more in its header and before its first page."""
    quiet = file_of(stream_of(False, in_order(3000)))
    sent = [page_record([(5, 0, 9), (6, 0, 0)]), page_record([(5, 0, 1), (6, 0, 1)])]
    records = streams.hvm_records([*in_order(3000), *sent])
    live = file_of(streams.stream(2, [streams.record(0x80000005, b"more"), *records]))
    end = MIB + 2 * 20480 + 3000 * PAGE
    assert quiet[MIB:end] == live[MIB:end]


@pytest.mark.parametrize("kind", [0x0D, 0x55, 0x80000001])
def test_an_unknown_record_between_pages_ends_the_order(kind: int) -> None:
    more = page_record([(3, 0, 8), (600, 0, 4)])
    stream = stream_of(False, [*in_order(700), streams.record(kind, b"x" * 12), more, more])
    with writing() as (writer, out):
        assert writer.feed(stream)
        found, wanted = restored_file(out), restored(stream)
        assert found.memory == wanted.memory
        assert found.others == wanted.others
        assert writer.written.copied == 2
        assert f"type 0x{kind:x}" in str(writer.written.warning)
        assert content(out).count(more) == 2


def test_a_record_with_too_many_entries_ends_the_order() -> None:
    """libxc never writes such a record; the memory that the writer uses has a limit."""
    many = page_record((n, XTAB, 0) for n in range(70_000))
    stream = stream_of(False, [*in_order(10), many, page_record([(3, 0, 8)])])
    with writing() as (writer, out):
        assert writer.feed(stream)
        assert restored_file(out).memory == restored(stream).memory
        assert writer.written.copied == 2
        assert "one of them lists too many pages" in str(writer.written.warning)


def test_too_many_pages_behind_end_the_order() -> None:
    """The memory that the writer uses for them has a limit."""
    blocks, limit = 257, 1 << 19
    first = page_record((n * 2048 + 2047, 0, 1) for n in range(blocks))
    pfns = [n for n in range(blocks * 2048) if n % 2048 != 2047]
    late = (
        page_record((n, 0, 0) for n in pfns[at : at + 1023]) for at in range(0, len(pfns), 1023)
    )
    head, *_, end = stream_of(False, [first]).partition(first)
    with writing() as (writer, _):
        assert not any(map(writer.feed, [head, first, *late]))
        assert writer.feed(page_record([(3, 0, 8)]) + end)
        assert limit < writer.written.behind < limit + 1024
        assert writer.written.copied
        assert "too many pages came late" in str(writer.written.warning)


@given(cases(), st.data())
def test_a_stream_that_is_cut_off_anywhere_is_not_complete(case: Case, data: st.DataObject) -> None:
    cut = case.stream[: data.draw(st.integers(0, len(case.stream) - 1))]
    with writing() as (writer, _):
        assert not fed(writer, cut, [5000])


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (b"LibxlFmt" + bytes(20), "beginning"),
        (streams.hvm_stream().replace(b"XENF", b"XENG"), "version"),
        (streams.stream(2, streams.hvm_records([]), version=4), "version"),
        (streams.stream(3, []), "kind of guest"),
        (streams.LIBXL_HEADER + streams.LIBXL_END, "END"),
        (streams.hvm_stream((5,)), "PAGE_DATA"),
        (streams.stream(2, [streams.record(1, bytes(16))]), "PAGE_DATA"),
        (streams.stream(2, [streams.record(1, b"")]), "PAGE_DATA"),
        (streams.stream(2, [b"\1\0\0\0" + b"\xff" * 4]), "too long"),
        (streams.hvm_stream()[:-8] + streams.LIBXC_CONTEXT, "LIBXC_CONTEXT"),
        (streams.stream(2, [streams.record(0x80000000, bytes(33 * MIB))]), "too much"),
    ],
)
def test_a_stream_that_is_not_of_libxl_is_refused(stream: bytes, says: str) -> None:
    with writing() as (writer, _), pytest.raises(BadMemoryFile, match=says):
        writer.feed(stream)


def test_a_stream_without_pages() -> None:
    """No guest is like this, but the writer does not care."""
    stream = streams.stream(2, streams.hvm_records([]))
    with writing() as (writer, file):
        assert writer.feed(stream)
        assert restored_file(file).others == restored(stream).others


@given(st.one_of(st.sampled_from([BUSY, replace(BUSY, pv=True)]), cases()), st.data())
def test_an_error_at_any_byte_is_raised_once_and_the_rest_discarded(
    case: Case, data: st.DataObject
) -> None:
    stream = case.stream
    size = len(file_of(stream))
    room = data.draw(st.one_of(st.integers(0, 2000), st.integers(MIB - 300, size - 1)))
    with writing() as (writer, file):
        with file_size_limit(room), pytest.raises(OSError, match=r"File too large") as caught:
            writer.feed(stream)
        assert caught.value.errno == errno.EFBIG
        assert not writer.feed(stream)
        assert os.fstat(file.fileno()).st_size <= room


def test_a_header_that_cannot_be_written_is_the_error() -> None:
    def fails(before: int) -> int:
        raise OSError(errno.EROFS, f"after {before}")

    with writing() as (_, file):
        writer = StreamWriter(file.fileno(), fails, "x")
        with pytest.raises(OSError, match="after 192"):
            writer.feed(BUSY.stream)


def test_types_are_those_that_have_data() -> None:
    """All that the writer takes for a page with data, and nothing else, is one."""
    for kind in range(16):
        if kind in WITH_DATA or kind >= 0xD:
            assert file_of(stream_of(True, [page_record([(0, kind, 1)])]))
