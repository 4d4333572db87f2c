"""Recovering every domain, of which some must wait."""

import time
from collections.abc import Callable

import pytest

from pyxlsnap.cancel import Cancel
from pyxlsnap.create.sequence import Creation
from pyxlsnap.errors import NeedsAttention, PyxlsnapError, XenError
from pyxlsnap.guest import resume
from pyxlsnap.journal import Journal, unfinished
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.recovery import every
from tests.unit.support import operations
from tests.unit.support.faults import kill
from tests.unit.support.guest import FakeGuest
from tests.unit.support.operations import plan_create
from tests.unit.support.values import OTHER_UUID, UUID
from tests.unit.support.world import World


class Two:
    """Two domains whose creates were killed; the QEMU of the first does not answer."""

    def __init__(self, world: World) -> None:
        self.world = world
        guests = {
            UUID: world.guest(world.image("xvda"), name="vm1"),
            OTHER_UUID: world.guest(world.image("xvdy"), name="vm2", uuid=OTHER_UUID),
        }
        for guest in guests.values():
            plan = plan_create(world.host, guest, SnapshotConfig(name="snap"))
            kill(Creation(plan), "disk snapshots")
        self.slow, self.quick = (guests[uuid] for uuid in unfinished())
        self.answers: Callable[[], bool] = lambda: self.quick.runs
        world.in_settle = self._settle

    def _settle(self, say: Callable[[str], None]) -> None:
        while self.at_work() is self.slow and not self.answers():
            say("QEMU to answer")
            time.sleep(0.01)

    def at_work(self) -> FakeGuest:
        last = [e for e in self.world.events if e.startswith("adopt")][-1]
        vdevs = {d.vdev for d in self.slow.configuration.disks}
        return self.slow if last.removeprefix("adopt ") in vdevs else self.quick


def test_one_that_does_not_answer_does_not_hold_up_the_others(world: World) -> None:
    two = Two(world)
    recovered = operations.recover(world.host, None)
    assert two.slow.runs
    assert [line for line in recovered.lines if "resumed" in line] == [
        f"{two.quick.uuid}: resumed {two.quick.name}",
        f"{two.slow.uuid}: resumed {two.slow.name}",
    ]
    assert list(unfinished()) == []
    assert not world.storage.snapshots


def test_several_that_do_not_answer_take_turns(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither holds up the other, whichever answers first."""
    monkeypatch.setattr(every, "_SECOND_S", 0.05)
    two = Two(world)
    turns: list[FakeGuest] = []

    def settle(say: Callable[[str], None]) -> None:
        guest = two.at_work()
        turns.append(guest)
        while not (two.quick.runs if guest is two.slow else len(turns) > 5):
            say("QEMU to answer")
            time.sleep(0.01)

    world.in_settle = settle
    operations.recover(world.host, None)
    assert two.slow.runs
    assert two.quick.runs
    assert turns[:4] == [two.slow, two.quick] * 2


def test_one_whose_qemu_does_not_answer_the_resume(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = Two(world)
    two.answers = lambda: True
    monkeypatch.setattr(resume, "_TELL_EVERY_S", 0.01)
    monkeypatch.setattr(resume, "_AGAIN_S", 0.05)
    monkeypatch.setattr(resume, "_lives", lambda _: True)
    ensure = two.slow.ensure_running

    def ensure_running(**options: float) -> bool:
        if not two.quick.runs:
            raise XenError("no", rc=resume._TIMED_OUT, operation="libxl_domain_resume")
        return ensure(**options)  # type: ignore[arg-type]

    monkeypatch.setattr(two.slow, "ensure_running", ensure_running)
    operations.recover(world.host, None)
    assert two.slow.runs


def test_a_caller_that_goes_is_told_of_all(world: World) -> None:
    two = Two(world)
    two.answers = lambda: two.quick.runs and bool(left)
    cancel, left = Cancel(), list[PyxlsnapError]()

    def on_event(event: str) -> None:
        if two.quick.runs:
            cancel.set()

    world.on_event = on_event
    operations.recover(world.host, None, cancel=cancel, leave=left.append)
    (error,) = left
    assert isinstance(error, NeedsAttention)
    assert error.left == (f"{two.slow.name} may be suspended",)
    assert f"{two.quick.uuid}: resumed {two.quick.name}" in error.undone
    assert error.finish == f"pyxlsnap snapshot-recover {two.slow.uuid}"


def test_a_caller_that_goes_at_once_is_told_of_all(world: World) -> None:
    two = Two(world)
    cancel, left = Cancel(), list[PyxlsnapError]()
    cancel.set()
    operations.recover(world.host, None, cancel=cancel, leave=left.append)
    (error,) = left
    assert isinstance(error, NeedsAttention)
    assert error.left == (
        f"{two.slow.name} may be suspended",
        f"the recovery of {two.quick.uuid} is not done yet",
    )
    assert Journal(two.slow.uuid).read() is None
