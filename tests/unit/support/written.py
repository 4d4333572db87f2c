"""Memory files as the stream writer writes them."""

import os
import resource
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from hypothesis import strategies as st

from pyxlsnap.memory import read_header, write_header
from pyxlsnap.memory.writer import StreamWriter
from pyxlsnap.model import Metadata, RunState
from tests.unit.support import streams
from tests.unit.support.memory_files import CONFIG
from tests.unit.support.restores import Restored, restored

METADATA = Metadata("snap", "", 1, RunState.RUNNING, (), {}, {})
ZERO = bytes(streams.PAGE)

#: flags of a file in memory that can be sealed against changes
SEALABLE = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING

#: a page: its pfn, its type, and the byte that it is full of
Page = tuple[int, int, int]


@contextmanager
def writing(path: str = "", *, max_rate: int = 0) -> Iterator[tuple[StreamWriter, BinaryIO]]:
    """A stream writer, and its file (by default without a name)."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT) if path else os.memfd_create("memory file", SEALABLE)
    with open(fd, "r+b") as file:
        name = path or "memory file"
        yield StreamWriter(file.fileno(), header_of(file), name, max_rate=max_rate), file


class header_of:  # noqa: N801
    """Writes the header of a memory file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __call__(self, before: int) -> int:
        size = write_header(self._file, config_json=CONFIG, metadata=METADATA, before=before)
        self._file.flush()
        return size


def content(file: BinaryIO) -> bytes:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)


def fed(writer: StreamWriter, data: bytes, sizes: list[int]) -> bool:
    """Feed the data in pieces; the last size is repeated."""
    at, complete = 0, False
    while at < len(data):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        complete = writer.feed(data[at : at + size])
        at += size
    return complete


def file_of(stream: bytes) -> bytes:
    """The file that the writer makes of a stream."""
    with writing() as (writer, file):
        assert writer.feed(stream)
        return content(file)


def restored_file(file: BinaryIO) -> Restored:
    file.seek(0)
    return restored(content(file), read_header(file, "x").stream_offset)


def holes(file: BinaryIO) -> set[int]:
    """The offsets of the pages of the file that are holes."""
    fd, found, at = file.fileno(), set(), 0
    size = os.fstat(fd).st_size
    while at < size:
        hole = os.lseek(fd, at, os.SEEK_HOLE)
        try:
            at = os.lseek(fd, hole, os.SEEK_DATA)
        except OSError:
            at = size
        found |= set(range(hole, at, streams.PAGE))
    return found


def page_record(pages: Iterable[Page]) -> bytes:
    """A PAGE_DATA record of these pages."""
    listed = list(pages)
    datas = [bytes([fill]) * streams.PAGE for _, kind, fill in listed if kind in streams.WITH_DATA]
    entries = streams.entries((pfn, kind) for pfn, kind, _ in listed)
    return streams.record(1, len(listed).to_bytes(8, "little") + entries + b"".join(datas))


def stream_of(pv: bool, records: Iterable[bytes]) -> bytes:
    """A whole stream of a PV or an HVM guest with these PAGE_DATA records."""
    if pv:
        return streams.stream(1, streams.pv_records(records))
    after = [streams.emulator(2, b"key\0value\0"), streams.emulator(3)]
    return streams.stream(2, streams.hvm_records(records), after=after)


def in_order(count: int) -> list[bytes]:
    """A first pass of libxc: 1024 pfns in a record. Every 50th page is of zeros."""
    return [
        page_record((n, 0, n % 50 and 1) for n in range(first, min(first + 1024, count)))
        for first in range(0, count, 1024)
    ]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes beyond this size fail, as they do when the disk is full."""
    old, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (old, hard))
        signal.signal(signal.SIGXFSZ, ignored)


#: pfns at both ends of the writer's blocks, few enough to meet again; one above 4 GiB
_PFNS = (0, 1, 2, 3, 508, 509, 510, 511, 512, 1019, 1020, 1021, 2047, 2048, 2049, 5000, 1 << 21)
_FILLS = st.sampled_from((0, 0, 1, 2, 255))


@dataclass(frozen=True)
class Case:
    """A stream that libxc may write."""

    pv: bool
    passes: list[list[list[Page]]]

    @property
    def stream(self) -> bytes:
        return stream_of(self.pv, (page_record(r) for records in self.passes for r in records))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A first pass in the order of the pfns, or in none; then pages sent again, in any order."""
    pv = draw(st.booleans())
    with_data = streams.WITH_DATA if pv else (0,)
    kinds = st.sampled_from((*with_data, *([0] * 8), *streams.WITHOUT_DATA))
    pages = st.tuples(st.sampled_from(_PFNS), kinds, _FILLS)
    # (A guest has a page: the writer leaves out records of nothing else.)
    one = (draw(st.sampled_from(_PFNS)), 0, draw(_FILLS))
    ordered = sorted({one, *draw(st.lists(pages, max_size=20))})
    first = ordered if draw(st.booleans()) else draw(st.permutations(ordered))
    later = draw(st.lists(st.lists(pages, min_size=1, max_size=8), max_size=4))
    return Case(pv, [_split(draw, list(part)) for part in (first, *later)])


def _split(draw: st.DrawFn, pages: list[Page]) -> list[list[Page]]:
    at = draw(st.integers(1, len(pages)))
    return [part for part in (pages[:at], pages[at:]) if part]
