"""Faults at every point of a snapshot and of a revert, on a real Xen: nothing is ever lost.

The points come from the code (scripts/points/sitecustomize.py): a new step is covered. Whatever is
killed there, whoever is left brings the guest back as it was or, once a revert has destroyed it,
to the snapshot; where nobody is left, ``snapshot-recover`` does.
"""

import shlex
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from pyxlsnap.create.sequence import Creation
from pyxlsnap.revert.sequence import Reversion
from tests.lab.harness.faults import CUT, Case, Outcome, Stage, Stages, run_case
from tests.lab.harness.guests import Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import Before, cannot_go_back, create, pyxlsnap, unchanged

KINDS = ("pvh", "pv", "hvm")


def ends(sequence: type[Creation | Reversion]) -> list[str]:
    """The points after each step."""
    return [f"after {name}" for name, _ in object.__new__(sequence).steps()]


IN_MEMORY, REQUESTED, SUSPENDED = "in memory", "requested", "after suspend"
BETWEEN_DISKS, PUBLISHED = "after create of raw file", "after cfgfile"
# On the threads that take the disk snapshots while the memory is written.
BESIDE = ["beside raw file", "after create of qcow2"]
CREATE = ["before journal", *ends(Creation), IN_MEMORY, REQUESTED, BETWEEN_DISKS, *BESIDE]

DESTROYED, IN_RESTORE = "after destroy", "in restore"
FIRST_DISK = "after qemu-img snapshot -a of xvda"
_STEPS = ends(Reversion)
UNTOUCHED = ["before journal", *_STEPS[: _STEPS.index(DESTROYED)], "after begin"]
REVERT = [*UNTOUCHED, *_STEPS[_STEPS.index(DESTROYED) :], "after revert of raw file", FIRST_DISK]
REVERT += [IN_RESTORE]
RESTORING = "libxl-save-helper --restore-domain"
SMALL = "/tmp/small"


@dataclass(frozen=True)
class Cell:
    """A kind of guest, a point, and who is killed there, or what the process does itself."""

    kind: str
    point: str
    who: str

    def __str__(self) -> str:
        return f"{self.kind}-{self.point}-{self.who}"


# In `make test`, in this order: those that share most with the one before.
CREATE_ROUND = [
    Cell("pvh", SUSPENDED, "worker"),
]
REVERT_ROUND = [
    Cell("pvh", DESTROYED, "worker"),
]


def cells(points: list[str], key: list[str], fails: list[str], kind: str) -> Iterator[Cell]:
    """Every point on every kind of guest; on PVH whoever matters there, on the others in turn."""
    whole = kind == "pvh"
    for number, point in enumerate(points):
        two = ("worker", "all") if number % 2 == (kind == "pv") else ("all", "worker")
        yield from (Cell(kind, point, who) for who in (*two, "caller")[: 3 if whole else 1])
    yield from (Cell(kind, p, who) for p in key for who in ("worker and supervisor", "SIGTERM"))
    yield Cell(kind, key[0], "SIGINT")
    yield from (Cell(kind, point, "fail") for point in (fails if whole else fails[:1]))


def marked(round_: list[Cell], all_: list[Cell]) -> list[object]:
    rest = [cell for cell in dict.fromkeys(all_) if cell not in round_]
    soak = pytest.mark.soak
    return [
        *(pytest.param(cell, id=str(cell)) for cell in round_),
        *(pytest.param(cell, id=str(cell), marks=soak) for cell in rest),
    ]


def all_creates() -> list[Cell]:
    found: list[Cell] = []
    for kind in KINDS:
        key, fails = [IN_MEMORY, SUSPENDED, "after resume"], [SUSPENDED, *ends(Creation), *BESIDE]
        found += cells(CREATE, key, fails, kind)
        found += [Cell(kind, IN_MEMORY, "helper"), Cell(kind, "in suspend", "time out")]
        found += [Cell(kind, SUSPENDED, who) for who in ("worker", "caller", "all")]
    return found


def all_reverts() -> list[Cell]:
    found: list[Cell] = []
    for kind in KINDS:
        key, fails = ["after journal", DESTROYED, IN_RESTORE], [DESTROYED, *ends(Reversion)]
        found += cells(REVERT, key, fails, kind)
        found += [Cell(kind, IN_RESTORE, "helper"), Cell(kind, DESTROYED, "caller")]
    return found


@pytest.fixture(scope="module")
def stages(_lab: Lab) -> Iterator[Stages]:
    yield Stages()
    _lab.spend()  # its guests have other disks now


@pytest.mark.parametrize("cell", marked(CREATE_ROUND, all_creates()))
def test_create(lab: Lab, stages: Stages, cell: Cell) -> None:
    stage = stages.get(lab, cell.kind)
    guest = stage.guest
    before = Before.of(guest)
    # (The dom0 has one processor: beside the memory is there what is taken of a guest not live.)
    live = [] if cell.kind == "pv" or cell.point in BESIDE else ["--live"]
    outcome = strike(stage, cell, ["snapshot-create", cell.kind, "--name", CUT, *live])
    whole = cell.point == PUBLISHED and cell.who != "fail"
    assert outcome.rc == create_status(cell, whole), outcome
    if cell.who == "all":
        said = stage.recover()
        assert (f"the snapshot {CUT} is complete" in said) == whole
    elif outcome.rc == 1:
        assert "everything is as before" in outcome.err
    if whole:
        stage.forget(CUT)
    stage.assert_clean()
    unchanged(guest, before)
    if cell.point == SUSPENDED and cell.who in ("worker", "caller"):
        print(f"{cell.kind}: counts again {outcome.seconds:.1f} s after the kill of the {cell.who}")
        assert outcome.seconds is not None
        assert outcome.seconds <= 5
    if cell.who == "all" and cell.point in (SUSPENDED, BETWEEN_DISKS):
        create(guest, "--name", "next", *live)
        stage.forget("next")
        guest.assert_healthy()


def create_status(cell: Cell, whole: bool) -> int:
    if whole and cell.who in ("worker", "worker and supervisor"):
        return 4
    if whole and cell.who in ("SIGTERM", "SIGINT"):
        return 0
    return status(cell)


def status(cell: Cell) -> int:
    """How a command ends where everything is as before."""
    return {"caller": -9, "all": -9, "SIGTERM": 143, "SIGINT": 130}.get(cell.who, 1)


def strike(stage: Stage, cell: Cell, command: list[str]) -> Outcome:
    """Run the operation of a cell into its fault."""
    guest = stage.guest
    case = Case(["pyxlsnap", "--json", *command], guest.name, guest.log, cell.point, who=cell.who)
    if cell.who in ("fail", "time out"):
        case = replace(case, do=cell.who, who="")
    if cell.point == IN_MEMORY:
        case = replace(case, do="pass")
    elif cell.point == IN_RESTORE:
        case = replace(case, point="after memory", do="pass", wait_for=RESTORING)
    elif cell.point == REQUESTED:
        # A guest that is paused cannot answer; it does when it is let go.
        pause, unpause = f"xl pause {guest.name}", f"xl unpause {guest.name}"
        case = replace(case, point="at suspend", meanwhile=pause, later=unpause)
        case = replace(case, wait_for="request")
    return run_case(guest, case)


@pytest.mark.parametrize("cell", marked(REVERT_ROUND, all_reverts()))
def test_revert(lab: Lab, stages: Stages, cell: Cell) -> None:
    stage = stages.get(lab, cell.kind)
    guest, base = stage.guest, stage.base
    if cannot_go_back(guest, base.cfgfile):
        return
    guest.wait_tick(base.after.n + 2)
    before, mark = Before.of(guest), guest.mark()
    outcome = strike(stage, cell, ["snapshot-revert", cell.kind, base.cfgfile])
    untouched = cell.point in UNTOUCHED
    if cell.point == "after begin":  # nobody looks back from there who can go on
        untouched = cell.who not in ("caller", "SIGTERM", "SIGINT")
    assert outcome.rc == (status(cell) if untouched else forward_status(cell)), outcome
    if cell.who == "all":
        stage.recover()
    if untouched:
        stage.assert_clean()
        unchanged(guest, before)
        return
    if outcome.rc == 4:
        finish = shlex.split(outcome.error["finish"])
        done = pyxlsnap(guest.dom0, *finish[1:])
        assert done.rc == 0, done
    elif "worker" in cell.who:
        assert "warning" in outcome.err
    stage.assert_back(mark)


def records_changes(guest: Guest) -> bool:
    """Whether Xen records which pages of the guest change, as it does in a live save."""
    guest.dom0.run(["xl", "dmesg", "-c"])
    guest.dom0.run(["xl", "debug-keys", "q"])
    told = guest.dom0.run(["xl", "dmesg"]).out
    (about,) = [
        part
        for part in told.split("General information for domain ")
        if part.startswith(f"{guest.domid()}:")
    ]
    modes, *_ = [line for line in about.splitlines() if "paging assistance:" in line]
    assert "hap" in modes, modes
    return "log_dirty" in modes


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["pvh", "hvm"])
def test_after_a_cancelled_live_snapshot_nothing_is_recorded(
    lab: Lab, stages: Stages, kind: str
) -> None:
    """And while it runs something is: else the look would not tell.

    QEMU does not tell whether it records. What it is told in the undo must not end it.
    """
    stage = stages.get(lab, kind)
    guest = stage.guest
    before = Before.of(guest)
    command = f"exec pyxlsnap snapshot-create {guest.name} --name {CUT} --live --max-rate 1"
    with guest.dom0.start(command) as running:
        end = time.monotonic() + 60
        while not (recorded := records_changes(guest)) and time.monotonic() < end:
            time.sleep(0.5)
        assert running.running
        running.kill(signal.SIGTERM)
        done = running.wait()
    assert recorded
    assert done.rc == 143, done
    assert "may go on recording" not in done.err
    assert not records_changes(guest)
    stage.assert_clean()
    unchanged(guest, before)


def forward_status(cell: Cell) -> int:
    """How a command ends where the revert goes on to its end, whoever does it."""
    if cell.who in ("caller", "all"):
        return -9
    return 4 if cell.who in ("helper", "fail") else 0


@pytest.mark.soak
def test_the_disk_is_full_while_memory_is_written(lab: Lab, stages: Stages) -> None:
    """There was enough room at first: somebody else takes it."""
    stage = stages.get(lab, "pvh")
    guest = stage.guest
    guest.dom0.run(f"mkdir -p {SMALL} && mount -t tmpfs -o size=200M small {SMALL}")
    guest.dom0.write(f"{SMALL}.cfg", f'name="{CUT}"\nmemory_path="{SMALL}/{CUT}.save"\n')
    before = Before.of(guest)
    case = Case(
        ["pyxlsnap", "--json", "snapshot-create", guest.name, f"{SMALL}.cfg", "--live"],
        guest.name,
        guest.log,
        "after prepare disks",
        meanwhile=f"fallocate -l 160M {SMALL}/theirs",
    )
    outcome = run_case(guest, case)
    assert outcome.rc == 1, outcome
    assert "everything is as before" in outcome.err
    assert f"{SMALL}/{CUT}.save: No space left on device" in outcome.err
    stage.assert_clean()
    unchanged(guest, before)
    assert not records_changes(guest)
    assert guest.dom0.run(["ls", "-A", SMALL]).out == "theirs\n"
    guest.dom0.run(["umount", SMALL])
