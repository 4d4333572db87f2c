"""In dom0: what a memory file has of a guest's memory. Imports nothing of the project."""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

PAGE = 4096
#: so many pages are looked at together
RUN = 32
#: of an entry of a record of pages: its pfn, and the types that come without data
PFN, TYPE_AT, WITHOUT_DATA = (1 << 52) - 1, 60, (0xD, 0xE, 0xF)


def memory_in(path: Path) -> dict[str, float]:
    """What a file of ``xl save`` or of pyxlsnap has of the memory, and what of that is not zero."""
    full: dict[int, bool] = {}  # (the last page of a pfn counts)
    with path.open("rb") as file:
        for pfns, pages in records_of(file):
            for at in range(0, len(pfns), RUN):
                _look(pfns[at : at + RUN], pages[at * PAGE : (at + RUN) * PAGE], full)
    return {"memory_bytes": len(full) * PAGE, "not_zero_bytes": sum(full.values()) * PAGE}


def _look(pfns: Sequence[int], pages: bytes, full: dict[int, bool]) -> None:
    """Note which of some pages are not zero."""
    if pages == bytes(len(pages)):  # most are, and Python is slow in the lab
        full.update(dict.fromkeys(pfns, False))
        return
    zero = bytes(PAGE)
    for number, pfn in enumerate(pfns):
        full[pfn] = pages[number * PAGE : (number + 1) * PAGE] != zero


def records_of(file: BinaryIO) -> Iterator[tuple[list[int], bytes]]:
    """The pfns of the pages in each record of a memory file, and these pages.

    The format: docs/specs/libxl-migration-stream.pandoc and libxc-migration-stream.pandoc in Xen's
    source, and save_file_header in tools/xl/xl.h.
    """
    (optional,) = struct.unpack("<I", file.read(48)[44:])
    # libxl's header, its record LIBXC_CONTEXT, and the two headers of libxc's image
    file.seek(48 + optional + 16 + 8 + 24 + 16)
    while True:
        kind, length = struct.unpack("<2I", file.read(8))
        end = file.tell() + length + -length % 8
        if kind == 0:
            return
        if kind == 1:
            (count, _) = struct.unpack("<2I", file.read(8))
            entries = struct.unpack(f"<{count}Q", file.read(8 * count))
            pfns = [entry & PFN for entry in entries if entry >> TYPE_AT not in WITHOUT_DATA]
            yield pfns, file.read(len(pfns) * PAGE)
        file.seek(end)
