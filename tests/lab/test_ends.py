"""A guest that reboots, powers off or crashes by itself at any step of a create, on a real Xen.

Before it is suspended there is no snapshot, and nothing is left of it; a suspended guest can do
nothing, and what it does later does not harm the snapshot. Nobody holds up who acts on it.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, product

import pytest

from pyxlsnap.create.sequence import Creation
from tests.lab.harness.faults import CUT, LEFT, Case, run_case
from tests.lab.harness.guests import Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import create, disk_snapshots, forget

pytestmark = pytest.mark.soak

STEPS = [name for name, _ in Creation.__new__(Creation).steps()]
EARLY = ["before journal", *(f"after {s}" for s in STEPS[: STEPS.index("suspend")])]
LATE = [f"after {s}" for s in STEPS[STEPS.index("suspend") :]]
# The guest is asked to suspend, and does this instead.
ASKED = "asked"
HELD_UP_S = 2.0

REBOOT, POWEROFF, CRASH = "b", "o", "c"
# (Without help from its user space only a PV guest's kernel powers off; an HVM guest's ends in a
# reboot, whatever the key.)
KEYS = {"pv": (REBOOT, POWEROFF, CRASH), "pvh": (REBOOT, CRASH), "hvm": (REBOOT,)}
WATCHERS = ("xl", "ours", "nobody")


@dataclass(frozen=True)
class Cell:
    """A kind of guest, a point, what the guest does there, and who acts on that."""

    kind: str
    point: str
    key: str
    watcher: str

    def __str__(self) -> str:
        return f"{self.kind}-{self.point}-{self.key}-{self.watcher}"


def all_cells() -> Iterator[Cell]:
    """At each point what the guest does, and who acts on that, in turn; all of it where asked."""
    for kind, keys in KEYS.items():
        yield from (Cell(kind, ASKED, *both) for both in product(keys, WATCHERS))
        turns = zip(cycle(keys), cycle(WATCHERS + WATCHERS[:1]), (*EARLY, *LATE), strict=False)
        yield from (Cell(kind, point, key, watcher) for key, watcher, point in turns)
    yield Cell("pvh", "after suspend", REBOOT, "ours")


@pytest.mark.parametrize("cell", list(all_cells()), ids=str)
def test_a_guest_that_ends_by_itself(spent_lab: Lab, cell: Cell) -> None:
    guest = spent_lab.guest(cell.kind)
    watched_by(guest, cell.watcher)
    boot, domid = guest.assert_healthy().boot, guest.domid()
    outcome = run_case(guest, case_of(guest, cell))
    if cell.point in LATE:
        assert outcome.rc == 0, outcome
    else:
        assert outcome.rc == 1, outcome
        assert outcome.error["class"] == "GuestEnded"
        assert outcome.error["left"] == []
        assert "nothing is left of it" in outcome.err
        assert outcome.err.count("\n") == 1, outcome.err
        assert_nothing_left(guest)
    if cell.watcher == "ours":
        held_up = assert_not_held_up(guest)
        print(f"{cell}: held up for {held_up:.2f} s")
    runs_again(guest, cell, boot, domid)
    if cell.point in LATE:
        assert [names.count(CUT) for names in disk_snapshots(guest).values()] == [1, 1]
    create(guest, "--name", "next")
    guest.assert_healthy()


@pytest.mark.parametrize("kind", ["pvh", "pv", "hvm"])
def test_a_create_that_is_cancelled_when_its_guest_has_rebooted(spent_lab: Lab, kind: str) -> None:
    """Its disk snapshots are deleted, through another QEMU than the one that took them."""
    guest = spent_lab.guest(kind)
    watched_by(guest, "ours")
    guest.assert_healthy()
    cancel = "pkill -TERM -of '[p]yxlsnap --json snapshot-create'; sleep 2"
    anew = f"while xl domid {guest.name} | grep -qx $d || ! xl domid {guest.name}; do sleep 0.2"
    command = ["pyxlsnap", "--json", "snapshot-create", guest.name, "--name", CUT]
    meanwhile = f"{ends(guest, REBOOT)}; {anew}; done >/dev/null 2>&1; sleep 5; {cancel}"
    case = Case(command, guest.name, guest.log, "after resume", meanwhile=meanwhile)
    outcome = run_case(guest, case)
    assert outcome.rc == 143, outcome
    assert "everything is as before" in outcome.err
    assert_nothing_left(guest)
    guest.assert_healthy()
    assert disk_snapshots(guest) == {vdev: [] for vdev in guest.disks}
    create(guest, "--name", "next")
    forget(guest)


def watched_by(guest: Guest, watcher: str) -> None:
    """Have the domain watched by xl, by a monitor of ours, or by nobody.

    (If an earlier test has reverted the domain, ours watches it.)
    """
    xl = f"[x]l create -q {guest.config}"
    if watcher == "xl":
        if guest.dom0.run(f"pgrep -f '{xl}'", check=False).rc:
            guest.destroy()
            guest.start()
        return
    guest.dom0.run(f"pkill -f '{xl}'; pkill -f '[p]yxlsnap.monitor {guest.uuid}'", check=False)
    if watcher == "ours":
        start_ours(guest)


def start_ours(guest: Guest) -> None:
    guest.dom0.run(["python3", "-P", "-m", "pyxlsnap.monitor", guest.uuid])


def case_of(guest: Guest, cell: Cell) -> Case:
    live = [] if cell.kind == "pv" else ["--live"]
    command = ["pyxlsnap", "--json", "snapshot-create", guest.name, "--name", CUT, *live]
    name, sysrq = guest.name, f"xl sysrq {guest.name} {cell.key}"
    if cell.point == ASKED:
        # While it is paused it notices neither; then it does what it was told first.
        meanwhile, later = f"xl pause {name}; {sysrq}", f"xl unpause {name}"
        return Case(
            command, name, guest.log, "at suspend", meanwhile=meanwhile, wait_for="request",
            later=later,
        )  # fmt: skip
    suspended = cell.point in LATE[: LATE.index("after resume")]
    meanwhile = sysrq if suspended else ends(guest, cell.key)
    return Case(command, name, guest.log, cell.point, meanwhile=meanwhile)


def ends(guest: Guest, key: str) -> str:
    """A command that has the guest's kernel do something, and waits until Xen knows."""
    name = guest.name
    return (
        f"d=$(xl domid {name}); xl sysrq {name} {key}; i=0; "
        f'while [ "$(xl domid {name} 2>/dev/null)" = "$d" ] && '
        f"! xl list {name} 2>/dev/null | awk 'END {{print $5}}' | grep -q s; "
        f"do i=$((i+1)); [ $i -lt 200 ]; sleep 0.2; done"
    )


def assert_nothing_left(guest: Guest) -> None:
    end = time.monotonic() + 60
    while left := guest.dom0.run(LEFT, check=False).out:
        assert time.monotonic() < end, left
        time.sleep(0.5)


def assert_not_held_up(guest: Guest) -> float:
    """Our monitor has acted at once when the guest had shut down; for how long it waited."""
    end = time.monotonic() + 120
    while not (waited := re.findall(r"waited ([\d.]+) s for others", log_of(guest))):
        assert time.monotonic() < end, log_of(guest)
        time.sleep(0.5)
    seconds = float(waited[0])
    assert seconds <= HELD_UP_S
    return seconds


def log_of(guest: Guest) -> str:
    return guest.dom0.read(f"/var/log/xen/pyxlsnap-{guest.name}.log").decode()


def runs_again(guest: Guest, cell: Cell, boot: str, domid: int) -> None:
    """Whoever has to has acted on the guest's end; it runs again, on its own disks."""
    if cell.watcher == "nobody":
        start_ours(guest)
    if cell.key != REBOOT:
        wanted = "" if cell.key == POWEROFF else "---sc-"
        end = time.monotonic() + 120
        while (guest.state() if guest.exists() else "") != wanted:
            assert time.monotonic() < end
            time.sleep(0.5)
        guest.destroy()
        guest.start()
    tick = guest.wait_advance(3, timeout=300)
    while tick.boot == boot:  # what it still said before
        tick = guest.wait_advance(1, timeout=300)
    assert tick.ok, guest.bad_lines()[-20:]
    assert guest.domid() != domid
