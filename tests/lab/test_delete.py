"""Deleting snapshots of guests that run, are paused and are off, and nothing else is lost."""

import json
from typing import Any

import pytest

from tests.lab.harness.external import FROZEN, take
from tests.lab.harness.guests import Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import (
    SLOW,
    check_images,
    create,
    disk_snapshots,
    goes_back,
    revert,
)

# Minutes each. The unit tests delete with a real QEMU, too, and read everything back.
pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("tidy")]

DELETE = (
    "import dataclasses, json, sys, pyxlsnap\n"
    "print(json.dumps(dataclasses.asdict(pyxlsnap.delete_snapshot(sys.argv[1]))))"
)


def delete(guest: Guest, snapshot: dict[str, Any]) -> list[str]:
    """Delete a snapshot; what was done."""
    command = ["python3", "-c", DELETE, snapshot["cfgfile"]]
    done: dict[str, Any] = json.loads(guest.dom0.run(command, timeout=SLOW).out)
    return [str(line) for line in done["lines"]]


def files(guest: Guest, snapshot: dict[str, Any]) -> str:
    """Those of its files that are there."""
    there = f"ls {snapshot['cfgfile']} {snapshot['memory_path']} 2>/dev/null"
    return guest.dom0.run(there, check=False).out


def test_an_internal_one_of_a_guest_that_runs_and_of_one_that_is_paused(lab: Lab) -> None:
    guest = lab.guest("pvh")
    first, second = create(guest, "--name", "first"), create(guest, "--name", "second")
    before = guest.assert_healthy()
    delete(guest, first)
    assert disk_snapshots(guest) == {vdev: ["second"] for vdev in guest.disks}
    assert files(guest, first) == ""
    assert guest.assert_healthy().n > before.n
    later, mark = guest.wait_advance(6), guest.mark()
    revert(guest, second["cfgfile"])
    goes_back(guest, mark, later)
    lab.dom0.run(["xl", "pause", guest.name])
    delete(guest, second)
    lab.dom0.run(["xl", "unpause", guest.name])
    assert disk_snapshots(guest) == {vdev: [] for vdev in guest.disks}
    guest.assert_healthy()


def test_the_first_of_two_external_ones_while_the_guest_runs(lab: Lab) -> None:
    """QEMU writes into the second frozen file, which it knows by a name that nothing has now."""
    guest = lab.guest("pvh")
    first = take(guest, "one", "--live")
    guest.assert_healthy(5)
    second = take(guest, "two")
    at_second = guest.assert_healthy(5)
    said = delete(guest, first)
    assert len(said) == 2 + 2 * len(guest.disks), said
    assert files(guest, first) == ""
    assert lab.dom0.run(f"ls -A {FROZEN}").out.split() == [f"{vdev}.two" for vdev in guest.disks]
    assert guest.assert_healthy(5).n > at_second.n
    later, mark = guest.wait_advance(6), guest.mark()
    revert(guest, second["cfgfile"])
    tick = goes_back(guest, mark, later)
    assert tick.n <= at_second.n
    assert all(n == tick.n - 1 for n, _ in tick.disks.values())
    delete(guest, second)
    guest.assert_healthy(5)
    lab.dom0.run(["xl", "destroy", guest.name])
    check_images(guest)


def test_external_ones_while_the_guest_is_off(lab: Lab) -> None:
    """Also what stands on a frozen file beside the disk: the guest was reverted."""
    guest = lab.guest("pv")
    first = take(guest, "one")
    at_first = guest.assert_healthy(5)
    second = take(guest, "two")
    at_second = guest.assert_healthy(5)
    revert(guest, first["cfgfile"])
    guest.assert_healthy(2)
    lab.dom0.run(["xl", "destroy", guest.name])
    delete(guest, first)
    check_images(guest)
    revert(guest, second["cfgfile"])
    back = guest.assert_healthy(2)
    assert at_first.n < back.n < at_second.n + 60  # it is not the guest of the first one
    lab.dom0.run(["xl", "destroy", guest.name])
    delete(guest, second)
    guest.start()
    assert guest.assert_healthy(2).n > at_first.n
