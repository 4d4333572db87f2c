"""External qcow2 snapshots: three in a row, back and forth, and nothing is ever amiss."""

from typing import Any

import pytest

from tests.lab.harness.external import FROZEN, take
from tests.lab.harness.guests import Guest, Tick
from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import check_images, goes_back, revert

pytestmark = pytest.mark.usefixtures("tidy")


def back(guest: Guest, snapshot: dict[str, Any]) -> Tick:
    """Revert; the guest's first tick then."""
    later, mark = guest.assert_healthy(5), guest.mark()
    revert(guest, snapshot["cfgfile"])
    first = goes_back(guest, mark, later)
    assert all(n == first.n - 1 for n, _ in first.disks.values())
    return first


def sums(guest: Guest) -> str:
    return guest.dom0.run(f"sha256sum {FROZEN}/*").out


@pytest.mark.soak
def test_a_chain_of_three(lab: Lab) -> None:
    """And in between the guest reboots, and is saved and restored, and loses nothing."""
    guest = lab.guest("pvh")
    begun = guest.assert_healthy()
    first = take(guest, "one", "--live")
    at_first = guest.assert_healthy(10)
    second = take(guest, "two")
    at_second = guest.assert_healthy(10)
    frozen = sums(guest)

    # It boots from its own path, where the newest overlay is: the counter on the disks goes on.
    lab.dom0.run(["xl", "destroy", "pvh"])
    guest.start()
    guest.wait_advance(2, timeout=120)
    rebooted = guest.assert_healthy()
    assert rebooted.n > at_second.n
    assert rebooted.boot != begun.boot
    lab.dom0.run(["xl", "save", "pvh", "/tmp/snap/xl"], timeout=120)
    lab.dom0.run(["xl", "restore", "/tmp/snap/xl"], timeout=120)
    assert guest.assert_healthy().n > rebooted.n
    third = take(guest, "three")
    at_third = guest.assert_healthy(5)

    assert at_first.n < back(guest, second).n <= at_second.n
    assert begun.n < back(guest, first).n <= at_first.n
    tick = back_or_forth(guest, third)
    assert rebooted.n < tick.n <= at_third.n
    assert tick.boot == rebooted.boot
    assert frozen in sums(guest) or set(frozen.splitlines()) <= set(sums(guest).splitlines())
    lab.dom0.run(["xl", "destroy", "pvh"])
    check_images(guest)


def back_or_forth(guest: Guest, snapshot: dict[str, Any]) -> Tick:
    """Revert to a snapshot that may be ahead; a tick after it."""
    revert(guest, snapshot["cfgfile"])
    return guest.assert_healthy(2)
