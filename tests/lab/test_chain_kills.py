"""Everything of ours is killed on the way to an external snapshot: no write of the guest is lost.

The points come from the code as it runs (scripts/create_killed.py). What counts is a reboot
afterwards: the guest starts from its disks' own paths, and must find there all that it had written.
"""

import json
import signal
import time
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.harness.external import FROZEN, ask
from tests.lab.harness.guests import FIRST_TICK, Guest, Tick
from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import SNAPSHOTS, check_images, create, run_script

JOURNALS = "/var/lib/pyxlsnap"
RENAMES = [f"before os.rename .pvh-{letter}.qcow2.*.overlay pvh-{letter}.qcow2" for letter in "ab"]


@dataclass(frozen=True)
class Recovery:
    """What ``snapshot-recover`` did."""

    #: until the guest said something
    seconds: float
    said: dict[str, Any]

    @property
    def left(self) -> str:
        return "; ".join(self.said.get("error", {}).get("left", []))


def points(guest: Guest) -> list[tuple[str, bool]]:
    """Every point, and whether the guest is suspended there."""
    done = run_script(guest.dom0, "create_killed.py", guest.name, ask(guest, "counted"))
    assert done.rc == 0, done
    return [(what, suspended) for what, suspended in json.loads(done.out)]


def killed(guest: Guest, name: str, point: str) -> None:
    done = run_script(guest.dom0, "create_killed.py", guest.name, ask(guest, name), point)
    assert done.rc == -signal.SIGKILL, (point, done)


def recover(guest: Guest, name: str) -> Recovery:
    """Recover, and do as it says: then nothing is in the way of another snapshot."""
    dom0 = guest.dom0
    begun = time.monotonic()
    with dom0.start(["pyxlsnap", "--json", "snapshot-recover", guest.uuid]) as running:
        running.end_input()
        guest.wait_advance(1)
        seconds = time.monotonic() - begun
        done = running.wait()
    found = Recovery(seconds, json.loads(done.out))
    assert found.seconds < 60  # about 8 under emulation, where that has a core to itself
    assert done.rc in (0, 4), done
    assert bool(found.left) == (done.rc == 4)
    frozen = dom0.run(f"ls {FROZEN}/*.{name}", check=False).out.split()
    complete = f"the snapshot {name} is complete" in done.out
    # What is left is said, and cannot be written to by accident; what is not said is not there.
    assert complete or [path for path in frozen if path in found.left] == frozen
    if frozen:
        assert dom0.run(["find", *frozen, "-perm", "/222"]).out == ""
    files = dom0.run(f"find {SNAPSHOTS} -name '*{name}*'", check=False).out.split()
    assert len(files) == (2 if complete else 0), files
    if done.rc == 4:
        finish = found.said["error"]["finish"]
        assert finish.endswith(f"rm {JOURNALS}/{guest.uuid}.journal")
        dom0.run(finish[finish.index("rm ") :])
    hidden = "-name '*.overlay*' -o -name '*.tmp' -o -name '*.probe' -o -name '*.journal'"
    left = dom0.run(f"find {SNAPSHOTS} {FROZEN} /lab/disk {JOURNALS} {hidden}", check=False).out
    assert left == ""
    return found


def reboot(guest: Guest) -> Tick:
    """Off and on: it goes on from what it said last."""
    guest.destroy()
    check_images(guest)
    last, mark = guest.last(), guest.mark()
    guest.start()
    guest.wait_advance(1, timeout=FIRST_TICK)
    first = guest.ticks_since(mark)[0]
    assert first.n >= last.n, f"what was written since has been lost: {last}, {first}"
    assert first.boot != last.boot
    return guest.assert_healthy(2)


def recovered(guest: Guest, name: str, point: str) -> Recovery:
    """Killed at a point, recovered, and going on."""
    was = guest.assert_healthy()
    killed(guest, name, point)
    found = recover(guest, name)
    now = guest.assert_healthy(5)
    assert now.n > was.n
    assert now.boot == was.boot
    return found


@pytest.mark.soak
def test_killed_between_the_switch_and_the_renames(spent_lab: Lab) -> None:
    """The two worst moments: QEMU has switched, and no disk, or only one, has its new name."""
    guest = spent_lab.guest("pvh")
    for number, point in enumerate(RENAMES):
        found = recovered(guest, f"k{number}", point)
        print(f"{point}: the guest runs after {found.seconds:.1f} s")
        for vdev in guest.disks:
            assert f"{FROZEN}/{vdev}.k{number}" in found.left
    reboot(guest)


@pytest.mark.soak
@pytest.mark.timeout(5400)
def test_killed_anywhere_and_recovered(spent_lab: Lab) -> None:
    guest = spent_lab.guest("pvh")
    all_points = points(guest)
    assert {point for point, suspended in all_points if suspended} >= set(RENAMES)
    # (Those first that tell the most.)
    for number, (point, _) in enumerate(sorted(all_points, key=lambda p: not p[1])):
        found = recovered(guest, f"k{number}", point)
        left = found.left or "nothing left"
        print(f"{point}: the guest runs after {found.seconds:.1f} s; {left}")
        reboot(guest)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_while_suspended_and_the_host_goes_down(spent_lab: Lab) -> None:
    """Nobody recovers: the guest is ended as it is, and started again."""
    guest = spent_lab.guest("pvh")
    in_window = [point for point, suspended in points(guest) if suspended]
    for number, point in enumerate(in_window):
        guest.assert_healthy()
        killed(guest, f"k{number}", point)
        reboot(guest)
        found = recover(guest, f"k{number}")
        print(f"{point}: afterwards {found.left or 'nothing left'}")
        guest.assert_healthy(5)
        create(guest, ask(guest, f"after{number}"))  # what it writes now, the next reboot looks for
    guest.assert_healthy(5)
    reboot(guest)
