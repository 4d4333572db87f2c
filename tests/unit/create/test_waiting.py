"""An undo that must wait for something, with the guest suspended."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from pyxlsnap.cancel import Cancel
from pyxlsnap.create.sequence import Creation
from pyxlsnap.errors import (
    DiskError,
    DomainNotFound,
    GuestEnded,
    NeedsAttention,
    OperationFailed,
    PyxlsnapError,
    QmpError,
)
from pyxlsnap.journal import Journal
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.results import Progress
from tests.unit.support import operations
from tests.unit.support.faults import kill
from tests.unit.support.operations import plan_create
from tests.unit.support.values import UUID
from tests.unit.support.world import World

WAITING = "waiting for QEMU to answer"


@pytest.fixture
def told(world: World) -> list[str]:
    """The progress of the operations."""
    world.guest(world.image("xvda"))
    return []


def waits(world: World, times: int, between: Callable[[], None] = lambda: None) -> None:
    """A settle waits, with the guest suspended."""

    def in_settle(say: Callable[[str], None]) -> None:
        for _ in range(times):
            assert world.host.guests[0].suspended
            say("QEMU to answer")
            between()

    world.in_settle = in_settle


def create(world: World, told: list[str], **options: Any) -> None:
    operations.create(
        world.host,
        "vm1",
        SnapshotConfig(name="snap"),
        on_progress=lambda progress: told.append(progress.phase),
        **options,
    )


def test_it_is_reported_every_five_seconds(
    world: World,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    monkeypatch.setattr("pyxlsnap.create.waiting.time.monotonic", lambda: now[0])
    waits(world, 17, lambda: now.__setitem__(0, now[0] + 1))
    world.fail("create xvda", DiskError("broken", vdev="xvda"))
    with pytest.raises(OperationFailed, match="everything is as before"):
        create(world, told)
    assert told.count(WAITING) == 4
    assert told.index("resumed") > told.index(WAITING)
    assert caplog.text.count("vm1 stays suspended, waiting for QEMU to answer") == 1


def test_a_cancel_lets_the_caller_go_and_the_guest_is_resumed_later(
    world: World, told: list[str]
) -> None:
    cancel, left = Cancel(), list[PyxlsnapError]()

    def leave(error: PyxlsnapError) -> None:
        assert world.host.guests[0].suspended
        left.append(error)

    waits(world, 3, cancel.set)
    world.fail("create xvda", DiskError("broken", vdev="xvda"))
    with pytest.raises(OperationFailed):
        create(world, told, cancel=cancel, leave=leave)
    (error,) = left
    assert isinstance(error, NeedsAttention)
    assert error.left == ("vm1 is suspended",)
    assert error.finish == f"pyxlsnap snapshot-recover {UUID}"
    assert world.host.guests[0].runs


def test_a_guest_whose_qemu_ends_after_the_caller_has_gone_is_not_forgotten(
    world: World, told: list[str]
) -> None:
    """The caller was told to run snapshot-recover: that must say what became of the guest."""
    cancel, left = Cancel(), list[PyxlsnapError]()

    def ends(say: Callable[[str], None]) -> None:
        cancel.set()
        say("QEMU to answer")
        raise DiskError("QEMU has ended", vdev="xvda")

    world.in_settle = ends
    world.fail("create xvda", QmpError("no answer", command="transaction"))
    with pytest.raises(NeedsAttention) as late:
        create(world, told, cancel=cancel, leave=left.append)
    assert "pyxlsnap snapshot-revert" in late.value.finish
    (error,) = left
    assert isinstance(error, NeedsAttention)
    assert error.finish == f"pyxlsnap snapshot-recover {UUID}"
    with pytest.raises(NeedsAttention, match="QEMU has ended") as caught:
        operations.recover(world.host, UUID)
    assert caught.value.finish == late.value.finish
    assert Journal(UUID).read() is not None
    assert world.host.guests[0].suspended


@pytest.mark.parametrize("what", [DiskError("QEMU has ended", vdev="xvda"), None])
def test_a_domain_that_is_destroyed_meanwhile(
    world: World, told: list[str], monkeypatch: pytest.MonkeyPatch, what: DiskError | None
) -> None:
    """libxl ends the QEMU first, and the domain some seconds later."""
    monkeypatch.setattr("pyxlsnap.guest.gone._DESTROY_S", 10.0)
    (guest,) = world.host.guests

    def destroyed(say: Callable[[str], None]) -> None:
        threading.Timer(0.3 if what else 0.0, setattr, (guest, "exists", False)).start()
        if what:
            raise what
        while guest.exists:
            say("QEMU to answer")
        raise DomainNotFound("gone", domain="")

    world.in_settle = destroyed
    world.fail("create xvda", QmpError("no answer", command="transaction"))
    with pytest.raises(GuestEnded, match="was destroyed"):
        create(world, told)
    assert Journal(UUID).read() is None
    assert not world.storage.snapshots


@pytest.mark.parametrize("what", [DiskError("QEMU has ended", vdev="xvda"), None])
def test_a_domain_that_is_destroyed_while_a_recovery_waits(
    world: World, monkeypatch: pytest.MonkeyPatch, what: DiskError | None
) -> None:
    monkeypatch.setattr("pyxlsnap.guest.gone._DESTROY_S", 10.0)
    guest = world.guest(world.image("xvda"))
    plan = plan_create(world.host, guest, SnapshotConfig(name="snap"))
    kill(Creation(plan), "disk snapshots")

    def destroyed(_: Callable[[str], None]) -> None:
        threading.Timer(0.3, setattr, (guest, "exists", False)).start()
        if what:
            raise what
        while guest.exists:
            pass
        raise DomainNotFound("gone", domain="")

    world.in_settle = destroyed
    assert "deleted snap of xvda" in operations.recover(world.host, UUID).lines
    assert Journal(UUID).read() is None


def test_a_recovery_does_the_same(world: World, told: list[str]) -> None:
    plan = plan_create(world.host, world.host.guests[0], SnapshotConfig(name="snap"))
    kill(Creation(plan), "suspend")
    cancel, left = Cancel(), list[PyxlsnapError]()
    waits(world, 2, cancel.set)
    operations.recover(
        world.host,
        UUID,
        cancel=cancel,
        leave=left.append,
        on_progress=lambda progress: told.append(progress.phase),
    )
    assert told == [WAITING]
    (error,) = left
    assert isinstance(error, NeedsAttention)
    assert error.left == ("vm1 may be suspended",)
    assert str(error).startswith("vm1 may be suspended, waiting for QEMU to answer: ")
    assert world.host.guests[0].runs


def test_a_progress_callback_that_fails_does_not_end_it(world: World, told: list[str]) -> None:
    def on_progress(progress: Progress) -> None:
        if progress.phase == WAITING:
            raise ValueError("a bug")

    waits(world, 1)
    world.fail("create xvda", DiskError("broken", vdev="xvda"))
    with pytest.raises(OperationFailed, match="everything is as before"):
        operations.create(world.host, "vm1", SnapshotConfig(name="snap"), on_progress=on_progress)
