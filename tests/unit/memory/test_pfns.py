"""Counting the pages of a guest: as a set of pfns would, in the memory of a bitmap."""

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyxlsnap.memory import pfns
from pyxlsnap.memory.pfns import PfnSet
from tests.unit.support.streams import WITH_DATA, WITHOUT_DATA, WITHOUT_MEMORY, entries

Batch = list[tuple[int, int]]
TYPES = st.sampled_from(WITH_DATA + WITHOUT_DATA)
#: near each other, at the borders of blocks, and the highest
PFNS = st.one_of(
    st.integers(0, 40), st.integers(4080, 4110), st.integers(0, 1 << 20), st.just((1 << 52) - 1)
)


@st.composite
def runs(draw: st.DrawFn) -> Batch:
    """Pfns that follow each other, as in the first pass."""
    types = draw(st.lists(TYPES, min_size=1, max_size=60))
    types *= draw(st.sampled_from((1, 100)))
    first = min(draw(PFNS), (1 << 52) - len(types))
    return list(enumerate(types, first))


BATCHES = st.lists(
    st.one_of(runs(), st.lists(st.tuples(PFNS, TYPES), min_size=1, max_size=60)), max_size=6
)


def counted(batches: list[Batch]) -> int:
    found = PfnSet()
    for batch in batches:
        found.add(entries(batch))
    return len(found)


def with_memory(batches: list[Batch]) -> list[int]:
    return [pfn for batch in batches for pfn, kind in batch if kind not in WITHOUT_MEMORY]


@given(BATCHES)
@settings(max_examples=300)
def test_each_pfn_with_memory_counts_once(batches: list[Batch]) -> None:
    assert counted(batches) == len(set(with_memory(batches)))


def test_a_page_that_was_given_away_later_stays_with_the_guest() -> None:
    """A restore does not return a page to Xen when its pfn comes again as XTAB."""
    assert counted([[(1, 0), (2, 0)], [(1, 0xF)]]) == 2


@given(BATCHES)
@settings(max_examples=100)
def test_without_room_for_a_bitmap_the_count_is_not_too_low(batches: list[Batch]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pfns, "_FREE_BLOCKS", 1)
        patch.setattr(pfns, "_PFNS_FOR_A_BLOCK", 1 << 20)
        found, pages = counted(batches), with_memory(batches)
    assert len(set(pages)) <= found <= len(pages)


def peak_of(batches: list[bytes]) -> tuple[int, int]:
    """The count, and the bytes that it took."""
    found = PfnSet()
    tracemalloc.start()
    try:
        for batch in batches:
            found.add(batch)
        return len(found), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_pfns_far_from_each_other_do_not_use_up_the_memory() -> None:
    """Only a forged stream has them: 8 bytes each, without data (XALLOC)."""
    chance = random.Random(1)
    scattered = [entries((chance.getrandbits(52), 0xE) for _ in range(4096)) for _ in range(20)]
    count, peak = peak_of(scattered)
    assert count == 20 * 4096
    assert peak < 14 << 20


def test_the_memory_for_a_large_guest_is_small() -> None:
    """8 GiB in batches of 4 MiB, as libxc writes them."""
    batches = [entries((first + i, 0) for i in range(1024)) for first in range(0, 1 << 21, 1024)]
    count, peak = peak_of(batches)
    assert count == 1 << 21
    assert peak < 1 << 20
