"""In dom0: what a memory file has of a guest's memory. Imports nothing of the project."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PAGE = 4096
#: of an entry of a record of pages: its pfn, and the types that come without data
PFN, TYPE_AT, WITHOUT_DATA = (1 << 52) - 1, 60, (0xD, 0xE, 0xF)


def memory_in(path: Path) -> dict[str, float]:
    """What a file of ``xl save`` or of pyxlsnap has of the memory, and what of that is not zero."""
    zero, full = bytes(PAGE), {}
    with path.open("rb") as file:
        for pfn, page in pages_of(file):
            full[pfn] = page != zero  # (the last one counts)
    return {"memory_bytes": len(full) * PAGE, "not_zero_bytes": sum(full.values()) * PAGE}


def pages_of(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The pages in a memory file, each with its pfn.

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
            for entry in struct.unpack(f"<{count}Q", file.read(8 * count)):
                if entry >> TYPE_AT not in WITHOUT_DATA:
                    yield entry & PFN, file.read(PAGE)
        file.seek(end)
