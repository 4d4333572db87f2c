"""In dom0: what a file of ``xl save`` has of a guest's memory. Imports nothing of the project."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PAGE = 4096


def memory_in(path: Path) -> dict[str, float]:
    """What a file of ``xl save`` has of the guest's memory, and what of that is not zero."""
    zero, pages, full = bytes(PAGE), 0, 0
    with path.open("rb") as file:
        for page in pages_of(file):
            pages += 1
            full += page != zero
    return {"memory_bytes": pages * PAGE, "not_zero_bytes": full * PAGE}


def pages_of(file: BinaryIO) -> Iterator[bytes]:
    """The pages of a file of ``xl save``, for a guest that was not saved live.

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
            file.seek(8 * count, os.SEEK_CUR)
            for _ in range((length - 8 - 8 * count) // PAGE):
                yield file.read(PAGE)
        file.seek(end)
