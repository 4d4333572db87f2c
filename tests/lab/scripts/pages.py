"""In dom0: where the pages of a memory file are.

usage: pages.py FILE

Prints JSON: the highest pfn with data, the offset of the first PAGE_DATA record, whether all data
is at multiples of 4096, how many aligned runs of 512 pfns have data in more than one record, and
how many bytes the pages take that are not zero.
"""

import json
import struct
import sys
from collections.abc import Iterator
from typing import BinaryIO

from pyxlsnap.memory import read_header

PAGE = 4096
ZERO = bytes(PAGE)
PFN = (1 << 52) - 1
#: of entries without data: broken, allocated, without a page
WITHOUT = (0xD, 0xE, 0xF)
LIBXC_CONTEXT = PAGE_DATA = 1
#: of the headers of libxl's stream; and of libxc's image with that of its domain
HEADER, IMAGE_HEADERS = 16, 40


def page_records(file: BinaryIO, at: int) -> Iterator[tuple[int, int, list[int]]]:
    """Each PAGE_DATA record: its offset, that of its data, and the pfns with data."""
    at, in_image = at + HEADER, False
    while True:
        file.seek(at)
        kind, length = struct.unpack("<2I", file.read(8))
        if in_image and kind == PAGE_DATA:
            count, _ = struct.unpack("<2I", file.read(8))
            entries = struct.unpack(f"<{count}Q", file.read(8 * count))
            yield at, at + 16 + 8 * count, [e & PFN for e in entries if e >> 60 not in WITHOUT]
        elif in_image and not kind:
            return
        at += 8 + length + -length % 8
        if not in_image and kind == LIBXC_CONTEXT:
            at, in_image = at + IMAGE_HEADERS, True


def not_zero(file: BinaryIO, at: int, count: int) -> int:
    """How many of some pages are not zero."""
    file.seek(at)
    return sum(file.read(PAGE) != ZERO for _ in range(count))


def main() -> None:
    with open(sys.argv[1], "rb") as file:
        records = list(page_records(file, read_header(file, sys.argv[1]).stream_offset))
        full = sum(not_zero(file, data, len(pfns)) for _, data, pfns in records)
    runs = [run for _, _, pfns in records for run in {pfn >> 9 for pfn in pfns}]
    found = {
        "highest": max(pfn for _, _, pfns in records for pfn in pfns),
        "first": records[0][0],
        "aligned": all(data % PAGE == 0 for _, data, pfns in records if pfns),
        "split": len(runs) - len(set(runs)),
        "not_zero": full * PAGE,
    }
    print(json.dumps(found))


main()
