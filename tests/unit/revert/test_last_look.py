"""What changes between the plan of a revert and the destroy is seen before the destroy."""

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pyxlsnap import cfgfile
from pyxlsnap.create.sequence import Creation
from pyxlsnap.disks import rivals
from pyxlsnap.errors import OperationFailed, PyxlsnapError, Refused
from pyxlsnap.guest.dom0_memory import Room
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.results import Step
from pyxlsnap.revert.sequence import Reversion
from tests.unit.support.guest import FakeGuest
from tests.unit.support.operations import plan_create, plan_revert
from tests.unit.support.values import BRIDGE
from tests.unit.support.world import World


class Case:
    """A domain with a snapshot, and a revert that is planned."""

    def __init__(self, world: World, *, off: bool = False) -> None:
        self.world, self.off = world, off
        self.undo = ExitStack()
        self.guest = world.guest(world.image("xvda"))
        made = plan_create(world.host, self.guest, SnapshotConfig(name="snap"))
        Creation(made).run()
        self.memory = made.memory_path
        if off:
            self.guest.destroy()
            world.events.clear()
        plan = plan_revert(world.host, "vm1", cfgfile.read(made.cfgfile), made.cfgfile)
        self.reversion = Reversion(world.host, plan)

    def is_refused(self, says: str, cls: type[PyxlsnapError] = OperationFailed) -> None:
        with pytest.raises(cls, match=says) as caught:
            self.reversion.run()
        assert type(caught.value) is cls
        assert str(caught.value).endswith("nothing was changed")
        assert self.guest.runs is not self.off
        assert "destroy" not in self.world.events
        assert not list((self.world.root / "journals").iterdir())

    @property
    def now(self) -> FakeGuest:
        (found,) = [g for g in self.world.host.guests if g.exists]
        return found


@pytest.fixture
def case(world: World) -> Case:
    return Case(world)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


def replaced(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    copy.rename(path)


def touched(path: Path) -> None:
    os.utime(path)


@pytest.mark.parametrize("change", [truncated, replaced, touched])
def test_the_memory_file_is_another_one(case: Case, change: Callable[[Path], None]) -> None:
    change(case.memory)
    case.is_refused(f"{case.memory} was changed while the operation was prepared")


def test_the_memory_file_is_gone(case: Case) -> None:
    case.memory.unlink()
    case.is_refused("No such file")


def test_the_disk_snapshot_is_gone(case: Case) -> None:
    del case.world.storage.snapshots["xvda", "snap"]
    case.is_refused("xvda has no disk snapshot 'snap'", Refused)


def test_a_memory_file_that_loses_its_name_later_is_restored_all_the_same(case: Case) -> None:
    def lose(steps: list[Step]) -> list[Step]:
        before = [name for name, _ in steps].index("destroy")
        return [*steps[:before], ("lose", case.memory.unlink), *steps[before:]]

    steps = case.reversion.steps()
    case.reversion.steps = lambda: lose(steps)  # type: ignore[method-assign]
    case.reversion.run()
    assert case.now is not case.guest


def test_another_file_in_the_place_of_a_disk(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    risk = "xvda: /x is not the file that QEMU has open"
    monkeypatch.setattr("pyxlsnap.revert.examination.replaced", lambda *_: [risk])
    case.is_refused("xvda: /x is not the file that QEMU has open")


def test_a_disk_that_is_lost(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise Refused("xvda: /x was deleted")

    monkeypatch.setattr("pyxlsnap.revert.examination.refuse_lost", lost)
    case.is_refused("xvda: /x was deleted", Refused)


def no_bridge(case: Case) -> None:
    shutil.rmtree(case.world.root / "net" / BRIDGE)


def no_snapshot(case: Case) -> None:
    del case.world.storage.snapshots["xvda", "snap"]


def a_rival(case: Case) -> None:
    target = Path(case.reversion._plan.devices[0].target)
    case.undo.callback(subprocess.Popen(["sleep", "60"], stdin=target.open("rb")).kill)


@pytest.mark.parametrize("off", [False, True])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (no_bridge, f"{BRIDGE}"),
        (no_snapshot, "xvda has no disk snapshot 'snap'"),
        (a_rival, "is in use by sleep"),
    ],
)
def test_what_changes_while_memory_is_waited_for(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Case], None],
    says: str,
    off: bool,
) -> None:
    monkeypatch.setattr(rivals, "_LOOKS_S", 0.2)
    case = Case(world, off=off)
    real = Room.prepare

    def prepare(room: Room, *arguments: Any) -> None:
        change(case)
        real(room, *arguments)

    monkeypatch.setattr(Room, "prepare", prepare)
    with case.undo:
        case.is_refused(says, Refused)
