"""Counts the pages that a restore gives a guest: each pfn once, even if a stream repeats it.

libxc's restore takes a page of memory from Xen when a pfn comes for the first time, and never gives
it back (``populate_pfns`` in tools/libs/guest/xg_sr_restore.c). A live save writes a pfn again each
time that the guest has changed the page.
"""

from array import array
from collections import defaultdict
from functools import lru_cache, partial
from itertools import compress
from typing import Final

#: pfns in a block of the bitmap: one bit each
_BLOCK: Final = 4096
_ALL: Final = (1 << _BLOCK) - 1
#: Limits for the number of blocks (some 700 bytes each). A block is made where a pfn is, so that a
#: hostile file could ask for 700 bytes with each pfn of 8 bytes.
_FREE_BLOCKS: Final = 10_000
_PFNS_FOR_A_BLOCK: Final = 512

_ENTRY: Final = 8
_TAKEN: Final = b"1"
#: By the highest byte of a pfn entry (its type): b"1" if the restore takes memory for the pfn. For
#: BROKEN (0xD) and XTAB (0xF) it takes none; for XALLOC (0xE) it does, without data in the stream.
_TAKES_MEMORY: Final = bytes(ord("0" if b >> 4 in (0xD, 0xF) else _TAKEN) for b in range(256))


class PfnSet:
    """The set of the pfns of a stream, as a bitmap in blocks.

    The bitmap takes 0.2 MiB for 4 GiB of a guest's memory. A forged stream could make it large, so
    it has a limit: 7 MiB, and 1.4 bytes for each entry of the stream. At the limit every further
    entry counts as another pfn: the count can be too high, but not too low. Streams of libxc stay
    far below it, because their first pass has an entry for each pfn of the guest.
    """

    def __init__(self) -> None:
        self._blocks = defaultdict[int, bytearray](partial(bytearray, _BLOCK // 8))
        self._entries = 0
        self._beyond = 0

    def __len__(self) -> int:
        """The number of different pfns for which a restore takes memory."""
        return self._beyond + sum(
            int.from_bytes(block, "little").bit_count() for block in self._blocks.values()
        )

    def add(self, entries: bytes) -> None:
        """Add the pfns of a PAGE_DATA record, but for those that get no memory.

        :param entries: pfn entries whose types are known and whose reserved bits are 0.
        """
        taken = entries[7::_ENTRY].translate(_TAKES_MEMORY)
        self._entries += len(taken)
        begin = taken.find(_TAKEN)
        if begin < 0:
            return
        # (The stream writer fills the beginning of each list with entries that take no memory.)
        taken, entries = taken[begin:], entries[begin * _ENTRY :]
        if len(self._blocks) > _FREE_BLOCKS + self._entries // _PFNS_FOR_A_BLOCK:
            self._beyond += taken.count(_TAKEN)
            return
        pfns = bytearray(entries)
        pfns[7::_ENTRY] = bytes(len(taken))
        first = int.from_bytes(pfns[:_ENTRY], "little")
        ones, ramp = _series(len(taken))
        if int.from_bytes(pfns, "little") == first * ones + ramp:
            self._add_run(first, int(taken[::-1], 2))
        else:
            self._add_each(pfns, taken)

    def _add_run(self, first: int, bits: int) -> None:
        """Add pfns that follow each other; bit n stands for pfn ``first + n``."""
        while bits:
            number, shift = divmod(first, _BLOCK)
            block = self._blocks[number]
            merged = int.from_bytes(block, "little") | (bits << shift) & _ALL
            block[:] = merged.to_bytes(len(block), "little")
            bits >>= _BLOCK - shift
            first += _BLOCK - shift

    def _add_each(self, pfns: bytearray, taken: bytes) -> None:
        blocks = self._blocks
        # As a set first: a hole in a forged file has one pfn some million times.
        for pfn in set(compress(memoryview(pfns).cast("Q"), taken.replace(b"0", b"\0"))):
            blocks[pfn // _BLOCK][pfn % _BLOCK >> 3] |= 1 << (pfn & 7)


@lru_cache(maxsize=4)
def _series(count: int) -> tuple[int, int]:
    """The lists 1, 1, 1, … and 0, 1, 2, …, each as one number with 64 bits for each item.

    One comparison of such numbers shows whether pfns follow each other: that is ten times as fast
    as a look at each.
    """
    ramp = array("Q", range(count)).tobytes()
    ones = array("Q", [1]).tobytes() * count
    return int.from_bytes(ones, "little"), int.from_bytes(ramp, "little")
