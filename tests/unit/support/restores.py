"""What a restore makes of a stream: a model of libxc, as far as memory is concerned."""

import struct
from dataclasses import dataclass, field

from tests.unit.support.streams import PAGE, WITH_DATA

BROKEN, XALLOC, XTAB = 0xD, 0xE, 0xF
_PFN = (1 << 52) - 1


@dataclass
class PageRecord:
    """A PAGE_DATA record of a file."""

    #: of the record, and of its first page, in the file
    offset: int
    data_offset: int
    #: pfn and type of each entry
    entries: list[tuple[int, int]]

    @property
    def with_data(self) -> list[int]:
        return [pfn for pfn, kind in self.entries if kind in WITH_DATA]


@dataclass
class Restored:
    """What a restore finds in a stream: a stream of libxl, or the part of a file behind its header.

    From the specification, docs/specs/libxc-migration-stream.pandoc, and process_page_data() in
    tools/libs/guest/xg_sr_restore.c.
    """

    pv: bool = False
    #: the last type of each pfn
    types: dict[int, int] = field(default_factory=dict)
    #: the last content of each pfn that had data
    contents: dict[int, bytes] = field(default_factory=dict)
    #: the pfns for which the restore takes memory
    populated: set[int] = field(default_factory=set)
    #: all that is not PAGE_DATA, in its order: headers, records
    others: list[bytes] = field(default_factory=list)
    #: the same, but only what comes before the first PAGE_DATA
    before: list[bytes] = field(default_factory=list)
    records: list[PageRecord] = field(default_factory=list)

    @property
    def memory(self) -> dict[int, tuple[int, bytes | None]]:
        """What the guest finds: type and content of each page that it has in the end.

        The types of HVM and PVH guests have no meaning, but that a page is there.
        """
        return {
            pfn: (kind if self.pv else 0, self.contents[pfn] if kind in WITH_DATA else None)
            for pfn, kind in self.types.items()
            if kind in WITH_DATA or kind == XALLOC
        }

    @property
    def absent(self) -> dict[int, int]:
        """The types of the pfns of a PV guest that have no page. (HVM: such pfns need no entry.)"""
        there = self.memory
        return {p: t for p, t in self.types.items() if p not in there} if self.pv else {}


def restored(data: bytes, offset: int = 0) -> Restored:
    """Restore from a stream that is valid."""
    found = Restored()
    at = _other(found, data, offset, 16)
    in_image = seen = False
    while True:
        kind, length = struct.unpack_from("<2I", data, at)
        size = 8 + length + -length % 8
        if in_image and kind == 1:
            _page_data(found, data, at)
            at += size
            continue
        at = _other(found, data, at, size)
        if not in_image and not seen and kind == 1:
            found.pv = data[at + 24] == 1
            at, in_image, seen = _other(found, data, at, 40), True, True
        elif not kind and in_image:
            in_image = False
        elif not kind:
            assert at == len(data)
            return found


def _other(found: Restored, data: bytes, at: int, size: int) -> int:
    found.others.append(data[at : at + size])
    if not found.records:
        found.before.append(data[at : at + size])
    return at + size


def _page_data(found: Restored, data: bytes, at: int) -> None:
    _, length, count, _ = struct.unpack_from("<4I", data, at)
    numbers = struct.unpack_from(f"<{count}Q", data, at + 16)
    entries = [(number & _PFN, number >> 60) for number in numbers]
    page_at = at + 16 + 8 * count
    found.records.append(PageRecord(at, page_at, entries))
    found.populated |= {pfn for pfn, kind in entries if kind not in (BROKEN, XTAB)}
    for pfn, kind in entries:
        found.types[pfn] = kind
        if kind in WITH_DATA:
            found.contents[pfn] = data[page_at : page_at + PAGE]
            page_at += PAGE
    assert page_at == at + 8 + length
