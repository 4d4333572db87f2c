"""Reverts, checked by what the guest said before and after the snapshot was taken."""

from dataclasses import dataclass

from .guests import Guest, Tick
from .snapshots import create


@dataclass(frozen=True)
class Taken:
    """A snapshot, and what its guest said before and after."""

    cfgfile: str
    memory_path: str
    before: Tick
    after: Tick

    def has(self, tick: Tick) -> bool:
        return self.before.n < tick.n <= self.after.n + 1


def take(guest: Guest, *words: str) -> Taken:
    before = guest.assert_healthy()
    made = create(guest, *words)
    return Taken(made["cfgfile"], made["memory_path"], before, guest.assert_healthy())


def goes_on(guest: Guest, taken: Taken) -> int:
    """Wait until the guest is past a snapshot; the place in its log."""
    guest.wait_tick(taken.after.n + 8)
    return guest.mark()


def check_back(guest: Guest, taken: Taken, mark: int) -> None:
    """Since ``mark`` the guest has gone (back or forth) to the snapshot, and is well."""
    guest.assert_healthy()
    ticks = guest.ticks_since(mark)
    found = [tick for tick in ticks if taken.has(tick)]
    assert found, f"nothing between {taken.before} and {taken.after}: {ticks[:20]}"
    assert found[0].boot == taken.before.boot
    assert all(n == found[0].n - 1 for n, _ in found[0].disks.values())
