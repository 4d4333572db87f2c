"""Finishing what was killed: a create is rolled back, a revert can only go forward."""

import errno
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyxlsnap import cfgfile, paths
from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.create.sequence import Creation
from pyxlsnap.disks import rivals
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import LeftOver
from pyxlsnap.errors import (
    Busy,
    DiskError,
    DomainNotFound,
    NeedsAttention,
    QmpError,
    Refused,
    Risky,
    XenError,
)
from pyxlsnap.journal import CreateEntry, Entry, Journal, RevertEntry
from pyxlsnap.linux import stalled
from pyxlsnap.linux.locks import MONITOR, OPERATION, DomainLock
from pyxlsnap.model import RunState, SnapshotConfig
from pyxlsnap.monitor import steady
from pyxlsnap.recovery import finish_revert, undo_create
from pyxlsnap.recovery import operation as recovery
from pyxlsnap.request import Callbacks, revert_command
from pyxlsnap.results import Progress, Recovered, Reverted
from pyxlsnap.revert.sequence import Reversion
from tests.unit.support import operations
from tests.unit.support.entries import killed_revert
from tests.unit.support.faults import kill, run_until
from tests.unit.support.guest import FakeGuest
from tests.unit.support.memory_files import xl_file
from tests.unit.support.operations import plan_create, plan_revert
from tests.unit.support.qmp_server import recording
from tests.unit.support.strategy import FakeStrategy
from tests.unit.support.unreadable import reads_fail, unreadable
from tests.unit.support.values import OTHER_UUID, UUID
from tests.unit.support.world import World

CREATE = [name for name, _ in Creation.__new__(Creation).steps()]
REVERT = [name for name, _ in Reversion.__new__(Reversion).steps()]
THIRD_UUID = UUID.replace("8", "3")
BROKEN = XenError("broken", rc=-3, operation="libxl_domain_resume")


def watch(_: str) -> None:
    """In the place of a process that watches a domain."""


def recover(world: World, domain: str | None = UUID) -> Recovered:
    """Recover a domain; a process that watched it watches it afterwards."""
    return operations.recover(world.host, domain, start_monitor=watch)


def never(_: Entry) -> Reverted:
    """There is no revert to finish."""
    raise AssertionError


class Killed:
    """A create that was killed after one of its steps: nothing of it was undone."""

    def __init__(
        self, world: World, step: str, *, paused: bool = False, name: str = "snap"
    ) -> None:
        self.world = world
        there = [g for g in world.host.guests if g.exists]
        self.guest = there[0] if there else world.guest(world.image("xvda"), world.image("xvdb"))
        self.guest.paused = paused
        wanted = SnapshotConfig(name=name)
        self.plan: CreatePlan = plan_create(world.host, self.guest, wanted)
        self.before = world.photo()
        kill(Creation(self.plan), step)

    def recover(self) -> tuple[str, ...]:
        return recover(self.world).lines

    def assert_as_before(self) -> None:
        self.guest.time_passes()
        assert self.guest.runs
        assert self.world.photo() == self.before


@pytest.mark.parametrize("step", CREATE[:-1])
def test_a_create_killed_after_any_step_is_rolled_back(world: World, step: str) -> None:
    killed = Killed(world, step)
    was_suspended = killed.guest.suspended
    at_death = world.photo()
    done = killed.recover()
    killed.assert_as_before()
    if was_suspended:
        assert done[0] == "resumed vm1"
        assert world.at_resume == at_death
    assert killed.recover() == ()


@pytest.mark.parametrize("step", ["prepare disks", "suspend", CREATE[-1]])
def test_the_qemu_of_an_hvm_guest_records_no_more(
    world: World, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper of libxl that was killed has not switched it off."""
    monkeypatch.setattr(paths, "QEMU_SOCKETS", tmp_path)
    killed = Killed(world, step)
    killed.guest.device_model = os.getpid()
    with recording(killed.guest.domid) as qemu:
        recover(world)
    assert qemu.records == (step == CREATE[-1])


@pytest.mark.parametrize("stalls", ["stat", "rmdir"])
def test_storage_that_stalls_is_left_to_another_recovery(
    world: World, stalls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Killed(world, "suspend")
    goes_on = threading.Event()
    real = getattr(os, stalls)

    def stalling(path: Any, *more: Any, **options: Any) -> Any:
        if str(path) == str(killed.plan.memory_path.parent):
            goes_on.wait(20)
        return real(path, *more, **options)

    monkeypatch.setattr(os, stalls, stalling)
    monkeypatch.setattr(stalled, "_ANSWER_S", 0.05)
    monkeypatch.setattr(undo_create, "_REMOVED_S", 0.05)
    with pytest.raises(NeedsAttention, match=r"the storage of .* does not") as caught:
        killed.recover()
    assert caught.value.undone[0] == "resumed vm1"
    assert caught.value.finish == f"pyxlsnap snapshot-recover {UUID}"
    goes_on.set()
    monkeypatch.undo()


def test_a_create_killed_after_its_last_step_stays(world: World) -> None:
    killed = Killed(world, CREATE[-1])
    recovered = recover(world)
    assert "complete" in recovered.lines[0]
    assert not recovered.rolled_back
    assert killed.plan.memory_path.exists()
    assert killed.plan.cfgfile.exists()
    assert len(world.storage.snapshots) == 2
    assert Journal(UUID).read() is None


def test_a_memory_file_of_which_a_read_fails_is_not_a_damaged_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Killed(world, CREATE[-1])
    with monkeypatch.context() as patch:
        reads_fail(patch, killed.plan.memory_path)
        with pytest.raises(NeedsAttention, match=r"cannot be read \(Input/output error\)"):
            killed.recover()
    assert len(world.storage.snapshots) == 2
    assert "complete" in recover(world).lines[0]


@pytest.mark.parametrize("which", ["memory_path", "cfgfile"])
def test_storage_that_fails_does_not_make_a_snapshot_incomplete(
    world: World, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Killed(world, CREATE[-1])
    path = {"memory_path": killed.plan.memory_path, "cfgfile": killed.plan.cfgfile}[which]
    with monkeypatch.context() as patch:
        unreadable(patch, path)
        with pytest.raises(NeedsAttention, match=r"cannot be read \(Input/output error\)"):
            killed.recover()
    assert len(world.storage.snapshots) == 2
    assert "complete" in recover(world).lines[0]


class TestAPausedGuest:
    """Killed while it is unpaused to answer the suspend request, or just before."""

    def killed(self, world: World, *, unpaused: bool) -> Killed:
        killed = Killed(world, "header", paused=True)
        killed.guest.requested = True
        entry = Journal(UUID).read()
        assert isinstance(entry, CreateEntry)
        if unpaused:
            killed.guest.paused = False
            Journal(UUID).rewrite(replace(entry, unpaused_at=time.time() - 7))
        return killed

    def test_is_paused_again(self, world: World) -> None:
        killed = self.killed(world, unpaused=True)
        recovered = recover(world)
        assert killed.guest.paused
        assert not killed.guest.requested
        assert "vm1 is paused again; it ran for at most 7" in recovered.lines[0]
        assert 7 <= recovered.seconds_unpaused < 10

    def test_that_had_answered_is_paused_again(self, world: World) -> None:
        killed = self.killed(world, unpaused=True)
        killed.guest.requested, killed.guest.suspended = False, True
        recovered = recover(world)
        assert recovered.lines[0] == "resumed vm1"
        assert "vm1 is paused again" in recovered.lines[1]
        assert killed.guest.paused

    def test_that_has_yet_to_suspend_is_paused_again(self, world: World) -> None:
        killed = self.killed(world, unpaused=True)
        killed.guest.requested, killed.guest.suspends_late_s = False, 2
        assert recover(world).lines[0] == "resumed vm1"
        assert killed.guest.paused

    def test_is_paused_again_before_its_disks_are_waited_for(self, world: World) -> None:
        """A QEMU may not answer for long. The guest does not run meanwhile, and that is no lie."""
        killed = self.killed(world, unpaused=True)
        paused: list[bool] = []

        def waits(_: Callable[[str], None]) -> None:
            paused.append(killed.guest.paused)
            time.sleep(0.6)

        world.in_settle = waits
        recovered = recover(world)
        assert paused == [True, True]
        assert 7 <= recovered.seconds_unpaused < 8

    def test_that_cannot_be_paused_again_keeps_everything(self, world: World) -> None:
        killed = self.killed(world, unpaused=True)
        at_death = world.photo()
        world.fail("pause", XenError("no", rc=-3, operation="libxl_domain_pause"))
        with pytest.raises(NeedsAttention, match=r"cannot be paused again .*nothing was deleted"):
            recover(world)
        assert world.photo() == at_death
        world.faults.clear()
        recover(world)
        assert killed.guest.paused

    def test_that_was_not_unpaused_yet_has_not_run(self, world: World) -> None:
        """It would have suspended at the next unpause of its owner."""
        killed = self.killed(world, unpaused=False)
        recovered = recover(world)
        assert not killed.guest.requested
        assert killed.guest.paused
        assert recovered.seconds_unpaused == 0
        assert not [line for line in recovered.lines if "ran" in line]


def test_a_suspend_that_comes_after_the_death_of_its_process_is_waited_for(world: World) -> None:
    killed = Killed(world, "header")
    killed.guest.suspends_late_s = 60
    assert "resumed vm1" in killed.recover()
    killed.assert_as_before()


@pytest.mark.parametrize("error", [Refused("install it again"), LookupError("a bug")])
def test_without_its_strategies_the_guest_is_left_as_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Only they know whether it may run. Those of another domain are none of its business."""
    killed = Killed(world, "disk snapshots")
    other = world.guest(world.image("xvdy"), name="vm2", uuid=OTHER_UUID)
    plan = plan_create(world.host, other, SnapshotConfig(name="b"))
    kill(Creation(plan), "disk snapshots")

    def strategies(disks: object, task: DiskTask, recorded: object, *, trusted: bool) -> object:
        assert recorded
        if task.name == "snap":
            raise error
        return world.strategies(disks, task)  # type: ignore[arg-type]

    with monkeypatch.context() as broken:
        broken.setattr(undo_create, "strategies", strategies)
        with pytest.raises(NeedsAttention, match=str(error)) as caught:
            recover(world, None)
    assert caught.value.finish == f"pyxlsnap snapshot-recover {UUID}"
    assert killed.guest.suspended
    assert other.runs
    killed.recover()
    assert killed.guest.runs


def test_a_strategy_that_cannot_be_hashed_is_no_hindrance(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeStrategy, "__hash__", None)
    killed = Killed(world, "disk snapshots")
    killed.recover()
    killed.assert_as_before()


@pytest.mark.parametrize("verb", ["adopt xvda", "undo xvda"])
def test_a_bug_in_a_strategy_does_not_keep_the_guest_suspended(world: World, verb: str) -> None:
    killed = Killed(world, "disk snapshots")
    world.fail(verb, LookupError("a bug"))
    with pytest.raises(NeedsAttention, match="a bug") as caught:
        killed.recover()
    assert killed.guest.runs
    assert "resumed vm1" in caught.value.undone
    assert "deleted snap of xvdb" in caught.value.undone


def test_what_only_a_person_can_delete_does_not_keep_the_journal(world: World) -> None:
    killed = Killed(world, "disk snapshots")
    world.fail("undo xvda", LeftOver("a tag is left", vdev="xvda", finish="qemu-img snapshot -d"))
    recovered = recover(world)
    assert "xvda: a tag is left" in recovered.lines
    assert not recovered.rolled_back
    assert killed.guest.runs
    assert Journal(UUID).read() is None


def test_disk_snapshots_of_others_stay(world: World) -> None:
    killed = Killed(world, "disk snapshots")
    world.storage.snapshots["xvda", "older"] = "x"
    killed.recover()
    assert set(world.storage.snapshots) == {("xvda", "older")}


@pytest.mark.parametrize("content", [b"somebody else's", xl_file(b'{"disks": 5}\0')])
def test_another_file_at_the_memory_files_path_stays(world: World, content: bytes) -> None:
    killed = Killed(world, "resume")
    killed.plan.memory_path.write_bytes(content)
    killed.recover()
    assert killed.plan.memory_path.read_bytes() == content


def test_nothing_in_flight_is_nothing_to_do(world: World) -> None:
    assert recover(world) == Recovered((), rolled_back=True)


def test_an_operation_under_way_is_busy(world: World) -> None:
    killed = Killed(world, "suspend")
    lock = DomainLock(UUID, domain="vm1")
    with pytest.raises(Busy):
        killed.recover()
    assert killed.guest.suspended
    lock.release()
    killed.recover()
    killed.assert_as_before()


def test_a_monitor_that_acts_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A create had left the right to act to it: it may destroy the guest, or dump its core."""
    killed = Killed(world, "resume")
    monitor = DomainLock(UUID, domain="vm1", part=MONITOR)
    monkeypatch.setattr(recovery, "_MONITOR_S", 0.1)
    with pytest.raises(Busy):
        killed.recover()
    DomainLock(
        UUID, domain="vm1", part=OPERATION
    ).release()  # a failed recovery leaves nothing locked
    monkeypatch.setattr(recovery, "_MONITOR_S", 10)
    timer = threading.Timer(0.3, monitor.release)
    timer.start()
    killed.recover()
    timer.join()
    killed.assert_as_before()


def test_the_lock_is_shared_and_released(world: World) -> None:
    shared: list[str] = []
    operations.recover(world.host, UUID, share_lock=lambda uuid, _: shared.append(uuid))
    assert shared == [UUID]
    DomainLock(UUID, domain="vm1").release()


@pytest.mark.parametrize("domain", ["vm1", "7", "../../etc/passwd", "", UUID + "0"])
def test_a_name_is_not_taken_for_a_uuid(world: World, domain: str) -> None:
    """A name would have no journal, and "nothing to recover" would be wrong."""
    with pytest.raises(DomainNotFound):
        recover(world, domain)
    assert not list((world.root / "run").iterdir())


@pytest.mark.parametrize("name", ["vm1", "7", UUID + "0"])
def test_a_journal_under_another_name_than_a_uuid_is_told_of(world: World, name: str) -> None:
    journal = world.root / "journals" / f"{name}.journal"
    journal.write_text("{}")
    with pytest.raises(NeedsAttention, match="is not a domain's uuid"):
        recover(world, None)
    assert not list((world.root / "run").iterdir())
    assert journal.read_text() == "{}"


def test_the_case_of_a_uuid_does_not_matter(world: World) -> None:
    killed = Killed(world, "suspend")
    assert "resumed vm1" in recover(world, UUID.upper()).lines
    killed.assert_as_before()


def test_the_disks_of_an_ended_guest_are_rolled_back_where_possible(world: World) -> None:
    killed = Killed(world, "disk snapshots")
    killed.guest.exists = False
    world.fail("adopt xvda", QmpError("no QEMU", command="connect"))
    with pytest.raises(NeedsAttention, match=r"vm1 ended.*no QEMU") as caught:
        killed.recover()
    assert set(world.storage.snapshots) == {("xvda", "snap")}
    assert Journal(UUID).read() is not None
    assert not killed.plan.memory_path.parent.exists()
    assert f"rm {Journal(UUID).path}" in caught.value.finish
    world.faults.clear()
    killed.recover()
    assert not world.storage.snapshots


def test_a_guest_that_xl_is_starting_again_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its two QEMUs nobody has the disks open."""
    killed = Killed(world, "resume")
    killed.guest.exists = False
    looks: list[str] = []

    def xl_monitor(name: str) -> int:
        looks.append(name)
        if len(looks) == 3:
            world.host.start(killed.guest.configuration)
        return 1

    monkeypatch.setattr(steady, "xl_monitor", xl_monitor)
    tasks: list[DiskTask] = []

    def strategies(disks: Any, task: DiskTask, recorded: Any, *, trusted: bool) -> Any:
        tasks.append(task)
        assert not task.may_start()
        return world.strategies(disks, task, recorded, trusted=trusted)

    monkeypatch.setattr(undo_create, "strategies", strategies)
    assert "deleted snap of xvda" in killed.recover()
    assert looks == ["vm1"] * 3
    assert [task.started_anew for task in tasks] == [True]


def test_an_xl_that_stays_is_not_waited_for_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undo_create, "_STARTING_S", 0.2)
    monkeypatch.setattr(steady, "xl_monitor", lambda *_: 1)
    killed = Killed(world, "resume")
    killed.guest.exists = False
    assert "deleted snap of xvda" in killed.recover()  # (none of these needs an image)


def test_a_suspended_guest_does_not_wait_for_xl(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steady, "xl_monitor", lambda *_: pytest.fail("nothing to wait for"))
    killed = Killed(world, "disk snapshots")
    assert killed.recover()[0] == "resumed vm1"


def test_disks_that_cannot_be_reached_are_named_and_the_rest_is_done(world: World) -> None:
    killed = Killed(world, "disk snapshots")
    world.fail("adopt xvda", QmpError("QEMU's monitor: no", command="connect"))
    with pytest.raises(NeedsAttention, match="QEMU's monitor: no"):
        killed.recover()
    assert killed.guest.runs
    assert set(world.storage.snapshots) == {("xvda", "snap")}
    world.faults.clear()
    killed.recover()
    killed.assert_as_before()


def test_what_a_late_answer_has_shown_is_said_first(world: World) -> None:
    """QEMU did not answer the adoption, but the settle: the undo knows more than the adoption."""
    killed = Killed(world, "disk snapshots")
    world.fail("adopt xvda", QmpError("QEMU's monitor: no", command="connect"))
    world.fail("undo xvda", DiskError("/a stands on /f now, and is whole", vdev="xvda"))
    with pytest.raises(NeedsAttention) as caught:
        killed.recover()
    (left,) = caught.value.left
    assert left.startswith("xvda: /a stands on /f now, and is whole (when the recovery began: ")
    assert "QEMU's monitor: no" in left
    assert killed.guest.runs


@pytest.mark.parametrize("step", ["suspend", "disk snapshots"])
def test_a_guest_that_cannot_be_resumed_keeps_everything(world: World, step: str) -> None:
    killed = Killed(world, step)
    before = world.photo()
    world.fail("resume", BROKEN)
    with pytest.raises(NeedsAttention, match="nothing was deleted") as caught:
        killed.recover()
    assert caught.value.finish == f"pyxlsnap snapshot-recover {UUID}"
    assert world.photo() == before
    world.faults.clear()
    killed.recover()
    killed.assert_as_before()


def test_a_guest_that_may_yet_suspend_needs_a_person_and_keeps_the_journal(world: World) -> None:
    killed = Killed(world, "header")
    killed.guest.suspends_late_s = 1000
    with pytest.raises(NeedsAttention, match="may yet") as caught:
        killed.recover()
    assert caught.value.finish == f"pyxlsnap snapshot-recover {UUID}"
    killed.guest.suspends_late_s = 60
    assert "resumed vm1" in killed.recover()
    killed.assert_as_before()


def test_the_guests_configuration_is_not_asked_for(world: World) -> None:
    """libxl would ask the QEMU of a guest that is suspended."""
    killed = Killed(world, "disk snapshots")
    world.fail("config", XenError("no QEMU", rc=-3, operation="retrieve"))
    killed.recover()
    killed.assert_as_before()


@pytest.mark.parametrize("step", ["suspend", "disk snapshots"])
def test_a_disk_that_cannot_be_settled_keeps_the_guest_suspended(world: World, step: str) -> None:
    killed = Killed(world, step)
    world.fail("settle xvdb", DiskError("no", vdev="xvdb"))
    with pytest.raises(NeedsAttention, match="nothing was deleted"):
        killed.recover()
    assert killed.guest.suspended
    world.faults.clear()
    killed.recover()
    killed.assert_as_before()


def test_a_file_that_cannot_be_removed_is_named_and_the_rest_is_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Killed(world, "resume")

    def denied(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", denied)
        with pytest.raises(NeedsAttention, match="Operation not permitted"):
            killed.recover()
    assert not world.storage.snapshots
    killed.recover()
    killed.assert_as_before()


def test_a_damaged_journal_is_refused_and_kept(world: World) -> None:
    journal = Journal(UUID)
    journal.path.write_text("{")
    with pytest.raises(Refused, match="cannot be read"):
        recover(world)
    assert journal.path.exists()


class TestARevert:
    def killed(self, world: World, step: str) -> FakeGuest:
        killed = Killed(world, CREATE[-1])
        Journal(UUID).clear()
        cfg = killed.plan.cfgfile
        plan = plan_revert(world.host, "vm1", cfgfile.read(cfg), cfg)
        run_until(Reversion(world.host, plan, Callbacks(start_monitor=watch)).steps(), step)
        return killed.guest

    def assert_is_back(self, world: World, recovered: Recovered) -> None:
        (guest,) = [g for g in world.host.guests if g.exists]
        assert guest.runs
        assert recovered.reverted
        assert (recovered.reverted.domid, recovered.reverted.warnings) == (guest.domid, ())
        assert not recovered.rolled_back
        assert recovered.lines == ("vm1 is back at snap and running",)
        assert Journal(UUID).read() is None
        assert set(world.storage.snapshots) == {("xvda", "snap"), ("xvdb", "snap")}
        assert recover(world).lines == ()

    @pytest.mark.parametrize("step", REVERT[REVERT.index("destroy") : -1])
    def test_killed_after_the_destroy_is_finished(self, world: World, step: str) -> None:
        self.killed(world, step)
        self.assert_is_back(world, recover(world))

    def test_a_restored_domain_is_not_restored_again(self, world: World) -> None:
        """It may have run for a while before the recovery."""
        self.killed(world, "monitor")
        restores = world.events.count("restore")
        self.assert_is_back(world, recover(world))
        assert world.events.count("restore") == restores

    def test_one_that_was_to_be_paused_is(self, world: World) -> None:
        killed = Killed(world, CREATE[-1], paused=True)
        Journal(UUID).clear()
        cfg = killed.plan.cfgfile
        for step in ("restore", "disks"):
            plan = plan_revert(world.host, "vm1", cfgfile.read(cfg), cfg)
            run_until(Reversion(world.host, plan, Callbacks(start_monitor=watch)).steps(), step)
            found = recover(world).reverted
            assert found
            assert found.state is RunState.PAUSED
            (guest,) = [g for g in world.host.guests if g.exists]
            assert guest.paused

    def test_after_a_crash_of_the_host_it_is_finished_too(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.killed(world, "disks")
        monkeypatch.setattr(finish_revert, "boot_id", lambda: "another")
        self.assert_is_back(world, recover(world))

    def test_after_a_crash_of_the_host_the_domid_says_nothing(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The domain has been started again, from disks that were half-way back."""
        guest = self.killed(world, "disks")
        guest.exists = True  # started at boot, with the domid that it had before
        monkeypatch.setattr(finish_revert, "boot_id", lambda: "another")
        with pytest.raises(NeedsAttention, match="disks may be reverted only in part") as caught:
            recover(world)
        command = caught.value.finish.split()
        assert command[:3] == ["pyxlsnap", "snapshot-revert", UUID]
        assert Journal(UUID).read() is not None
        assert guest.runs

    @pytest.mark.parametrize("missing", ["memory_path", "cfgfile"])
    def test_a_revert_that_cannot_be_finished_is_reported_with_its_command(
        self, world: World, missing: str
    ) -> None:
        killed = Killed(world, CREATE[-1])
        Journal(UUID).clear()
        cfg = killed.plan.cfgfile
        plan = plan_revert(world.host, "vm1", cfgfile.read(cfg), cfg, running=True, force=True)
        run_until(
            Reversion(world.host, plan, Callbacks(start_monitor=watch)).steps(),
            "disks",
        )
        path = Path(getattr(killed.plan, missing))
        path.rename(path.with_suffix(".away"))
        with pytest.raises(NeedsAttention, match=f"{path}: cannot be read") as caught:
            recover(world)
        words = caught.value.finish.split()
        assert words == ["pyxlsnap", "snapshot-revert", UUID, str(cfg), "--running", "--force"]
        path.with_suffix(".away").rename(path)
        self.assert_is_back(world, recover(world))

    @pytest.mark.parametrize("step", ["destroy", "restore"])
    def test_one_that_was_renamed_comes_back_under_its_present_name(
        self, world: World, step: str
    ) -> None:
        """Even if only the journal has the name."""
        killed = Killed(world, CREATE[-1])
        Journal(UUID).clear()
        killed.guest.name = "vm9"
        cfg = killed.plan.cfgfile
        plan = plan_revert(world.host, "vm9", cfgfile.read(cfg), cfg)
        run_until(Reversion(world.host, plan, Callbacks(start_monitor=watch)).steps(), step)
        assert "vm9 is back at snap and running" in recover(world, "vm9").lines
        (guest,) = [g for g in world.host.guests if g.exists]
        assert guest.name == "vm9"

    def test_a_second_failure_is_reported(self, world: World) -> None:
        self.killed(world, "disks")
        world.fail("restore", XenError("no", rc=-3, operation="libxl_domain_create_restore"))
        with pytest.raises(NeedsAttention, match="run the command again to finish"):
            recover(world)
        world.faults.clear()
        self.finish_by_command(world)

    def finish_by_command(self, world: World) -> None:
        entry = killed_revert()
        words = shlex.split(revert_command(entry.request))
        cfg = Path(words[3])
        back = operations.revert(world.host, words[2], cfgfile.read(cfg), cfg, start_monitor=watch)
        lines = (f"vm1 is back at {entry.name} and running",)
        self.assert_is_back(world, Recovered(lines, rolled_back=False, reverted=back))

    @pytest.mark.parametrize("step", ["restore", "unpause", "clean up"])
    @pytest.mark.parametrize("boot", ["", "another"])
    def test_a_domain_that_was_back_is_not_taken_back_later(
        self, world: World, step: str, boot: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There was no recovery at once; the domain may have run for days before its shutdown."""
        self.killed(world, step)
        for guest in world.host.guests:
            guest.exists = False
        world.storage.content |= {"xvda": "days of work", "xvdb": "days of work"}
        if boot:
            monkeypatch.setattr(finish_revert, "boot_id", lambda: boot)
        with pytest.raises(NeedsAttention, match="was restored to snap, and has ended"):
            recover(world)
        assert set(world.storage.content.values()) == {"days of work"}
        self.finish_by_command(world)

    @pytest.mark.parametrize("how", ["is off", "is paused", "reboots"])
    def test_a_failure_reported_to_the_user_is_not_repeated(self, world: World, how: str) -> None:
        """The user may have started the domain instead."""
        killed = Killed(world, CREATE[-1])
        Journal(UUID).clear()
        cfg = killed.plan.cfgfile
        world.fail("restore", XenError("no memory", rc=-3, operation="x"))
        with pytest.raises(NeedsAttention):
            operations.revert(world.host, "vm1", cfgfile.read(cfg), cfg)
        world.faults.clear()
        again = world.host.start(killed.guest.configuration)
        world.storage.content |= {"xvda": "days of work", "xvdb": "days of work"}
        again.exists = how != "is off"
        again.paused = how == "is paused"
        again.shutdown_reason = "reboot" if how == "reboots" else ""
        with pytest.raises(NeedsAttention, match="failed, and was not finished"):
            recover(world)
        assert set(world.storage.content.values()) == {"days of work"}
        assert again.exists == (how != "is off")

    def test_a_paused_domain_of_the_user_is_left_alone(self, world: World) -> None:
        """A domain whose restore failed is paused, too, but it has never run."""
        killed = self.killed(world, "disks")
        again = world.host.start(killed.configuration)
        again.paused = True
        with pytest.raises(NeedsAttention, match="was started after its revert"):
            recover(world)
        assert again.exists
        again.has_run = False
        self.assert_is_back(world, recover(world))
        assert not again.exists

    def test_a_restored_domain_that_its_owner_has_paused_stays_so(self, world: World) -> None:
        self.killed(world, "monitor")
        (guest,) = [g for g in world.host.guests if g.exists]
        guest.paused = True
        assert recover(world).reverted
        assert guest.paused

    def test_another_domain_is_not_destroyed_in_its_place(self, world: World) -> None:
        self.killed(world, "disks")
        other = world.guest(world.image("xvdc"), name="vm2", uuid=OTHER_UUID)
        cfg = world.directory / UUID / "snap.cfg"
        with pytest.raises(Risky, match="another uuid"):
            operations.revert(world.host, "vm2", cfgfile.read(cfg), cfg)
        assert other.runs

    @pytest.mark.parametrize("step", ["begun", *REVERT[REVERT.index("destroy") : -1]])
    def test_one_that_replaces_a_domain_with_another_uuid(self, world: World, step: str) -> None:
        killed = Killed(world, CREATE[-1])
        Journal(UUID).clear()
        killed.guest.exists = False
        disks = killed.guest.configuration.disks
        other = world.guest(*disks, name="vm1", uuid=OTHER_UUID)
        cfg = killed.plan.cfgfile
        plan = plan_revert(world.host, "vm1", cfgfile.read(cfg), cfg, force=True)
        reversion = Reversion(world.host, plan, Callbacks(start_monitor=watch))
        if step == "begun":
            world.fail("destroy", KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                run_until(reversion.steps(), "destroy")
            world.faults.clear()
            assert recover(world).lines == ("vm1 was not touched",)
            assert other.runs
            return
        run_until(reversion.steps(), step)
        self.assert_is_back(world, recover(world))
        assert not other.exists

    def replaced(self, world: World, step: str = "disks") -> tuple[FakeGuest, Path]:
        """Kill a revert that replaces a domain with another uuid; returns that domain."""
        killed = Killed(world, CREATE[-1])
        Journal(UUID).clear()
        killed.guest.exists = False
        other = world.guest(*killed.guest.configuration.disks, name="vm1", uuid=OTHER_UUID)
        cfg = killed.plan.cfgfile
        plan = plan_revert(world.host, "vm1", cfgfile.read(cfg), cfg, force=True)
        run_until(Reversion(world.host, plan, Callbacks(start_monitor=watch)).steps(), step)
        return other, cfg

    @pytest.mark.parametrize("has_run", [True, False])
    def test_a_domain_that_took_the_name_is_not_destroyed(
        self, world: World, has_run: bool
    ) -> None:
        """The owner's config file has no uuid: each start of the domain gets a new one."""
        other, _ = self.replaced(world)
        third = world.guest(*other.configuration.disks, name="vm1", uuid=THIRD_UUID)
        third.has_run = has_run
        with pytest.raises(NeedsAttention, match="holds the name vm1") as caught:
            recover(world)
        said = str(caught.value)
        assert f"{third}, uuid {THIRD_UUID}" in said
        assert "rename or shut down" in said
        assert caught.value.finish == f"pyxlsnap snapshot-recover {UUID}"
        assert third.exists
        assert Journal(UUID).read() is not None
        third.exists = False
        self.assert_is_back(world, recover(world))

    def test_a_domain_that_takes_the_name_later_is_not_destroyed(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The owner starts it while the recovery waits for what is still ending."""
        other, _ = self.replaced(world)
        started: list[FakeGuest] = []

        def started_meanwhile(_host: object, _entry: object, _waiting: object) -> None:
            started.append(world.guest(*other.configuration.disks, uuid=THIRD_UUID))

        monkeypatch.setattr(finish_revert, "_wait_until_quiet", started_meanwhile)
        with pytest.raises(NeedsAttention, match="holds the name vm1"):
            recover(world)
        assert started[0].runs

    @pytest.mark.parametrize("replaces", [True, False])
    def test_a_domain_that_is_started_meanwhile_is_not_destroyed(
        self, world: World, replaces: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It has a uuid that the journal knows."""
        guest = self.replaced(world)[0] if replaces else self.killed(world, "disks")
        started: list[FakeGuest] = []

        def started_meanwhile(_host: object, _entry: object, _waiting: object) -> None:
            started.append(world.host.start(guest.configuration))

        monkeypatch.setattr(finish_revert, "_wait_until_quiet", started_meanwhile)
        with pytest.raises(NeedsAttention, match="was started meanwhile") as caught:
            recover(world)
        assert caught.value.finish == f"pyxlsnap snapshot-recover {UUID}"
        assert started[0].runs

    def test_a_revert_that_another_recovery_has_finished_is_not_done_again(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The domain runs again, and may be at work already."""
        self.killed(world, "disks")

        def finished_meanwhile(_host: object, entry: RevertEntry, _waiting: object) -> None:
            cfg = Path(entry.cfgfile)
            operations.revert(world.host, UUID, cfgfile.read(cfg), cfg)

        monkeypatch.setattr(finish_revert, "_wait_until_quiet", finished_meanwhile)
        with pytest.raises(NeedsAttention, match="meanwhile"):
            recover(world)
        assert world.events.count("restore") == 1
        assert any(g.runs for g in world.host.guests)

    def test_a_domid_is_not_taken_for_the_name_of_a_holder(self, world: World) -> None:
        """The reverted domain is called "2", and domid 2 is another domain."""
        self.killed(world, "disks")
        other = world.guest(world.image("xvdz"), name="vm2", uuid=OTHER_UUID)
        entry = killed_revert()
        Journal(UUID).rewrite(replace(entry, domain=str(other.domid)))
        assert recover(world).reverted
        assert other.runs

    def test_it_waits_for_processes_that_are_still_ending(self, world: World) -> None:
        """A qemu-img that the dead worker had started has a disk open."""
        guest = self.killed(world, "disks")
        with open(guest.configuration.disks[0].target, "rb") as image:
            orphan = subprocess.Popen(["sleep", "1"], stdin=image)
        self.assert_is_back(world, recover(world))
        assert orphan.wait() == 0

    def test_a_rival_that_only_looks_is_waited_for(self, world: World) -> None:
        killed = Killed(world, "suspend")
        lock = DomainLock(UUID, domain="vm1")
        threading.Timer(0.3, lock.release).start()
        operations.recover(world.host, UUID, wait_s=10, start_monitor=watch)
        assert killed.guest.runs

    def test_the_snapshot_of_the_present_is_not_forgotten(self, world: World) -> None:
        for step in ("disks", "restore"):
            killed = Killed(world, CREATE[-1], name=f"snap-{step}")
            Journal(UUID).clear()
            cfg = killed.plan.cfgfile
            plan = plan_revert(world.host, "vm1", cfgfile.read(cfg), cfg)
            run_until(Reversion(world.host, plan, present_cfgfile="/kept.cfg").steps(), step)
            found = recover(world).reverted
            assert found
            assert found.kept == "/kept.cfg"

    def test_killed_before_the_destroy_has_touched_nothing(self, world: World) -> None:
        guest = self.killed(world, "journal")
        assert recover(world) == Recovered(("vm1 was not touched",), rolled_back=True)
        assert guest.runs
        assert Journal(UUID).read() is None

    @pytest.mark.parametrize("step", REVERT[REVERT.index("destroy") : REVERT.index("unpause")])
    def test_the_command_finishes_it_as_well(self, world: World, step: str) -> None:
        """What has become risky since it was begun is no reason against that."""
        self.killed(world, step)
        words = shlex.split(revert_command(killed_revert().request))
        assert words[:3] == ["pyxlsnap", "snapshot-revert", UUID]
        world.host.version = (4, 18)
        cfg = Path(words[3])
        operations.revert(world.host, words[2], cfgfile.read(cfg), cfg)
        assert recover(world).lines == ()
        (guest,) = [g for g in world.host.guests if g.exists]
        assert guest.runs

    @pytest.mark.parametrize("state", ["paused", "dying", "shutdown_reason"])
    def test_killed_while_libxl_destroys_is_finished(
        self, world: World, state: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """libxl pauses the domain, and ends its QEMU, long before the domain ends."""
        monkeypatch.setattr(finish_revert, "_QUIET_S", 0.3)
        world.fail("destroy", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            self.killed(world, "destroy")
        world.faults.clear()
        (guest,) = world.host.guests
        setattr(guest, state, "destroy" if state == "shutdown_reason" else True)
        self.assert_is_back(world, recover(world))

    @pytest.mark.parametrize("by_revert", [True, False])
    def test_a_qemu_img_that_still_works_is_waited_for(
        self, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_revert: bool
    ) -> None:
        """It may work for longer than anything else that the dead process has left."""
        monkeypatch.setattr(rivals, "_LOOKS_S", 0.2)
        monkeypatch.setattr(finish_revert, "_QUIET_S", 0.2)
        guest = self.killed(world, "destroy")
        tool = tmp_path / "qemu-img"
        tool.symlink_to("/usr/bin/sleep")
        with Path(guest.configuration.disks[0].target).open("rb") as image:
            working = subprocess.Popen([tool, "600"], stdin=image)
        told: list[str] = []

        def on_progress(progress: Progress) -> None:
            told.append(progress.phase)
            if progress.phase == "waiting for qemu-img to finish its work":
                working.kill()
                working.wait()

        if by_revert:
            cfg = Path(shlex.split(revert_command(killed_revert().request))[3])
            config = cfgfile.read(cfg)
            operations.revert(world.host, UUID, config, cfg, on_progress=on_progress)
        else:
            recovered = operations.recover(
                world.host, UUID, on_progress=on_progress, start_monitor=watch
            )
            self.assert_is_back(world, recovered)
        assert "waiting for qemu-img to finish its work" in told

    def test_a_domain_that_was_started_since_is_left_alone(self, world: World) -> None:
        guest = self.killed(world, "disks")
        again = world.host.start(guest.configuration)
        recovered = recover(world)
        assert not recovered.rolled_back
        assert f"domid {again.domid}) runs and was left alone" in recovered.lines[0]
        assert again.runs
        assert Journal(UUID).read() is None


class TestEveryDomain:
    def two(self, world: World) -> tuple[Killed, FakeGuest]:
        """A create that was killed, and one on another domain."""
        killed = Killed(world, "disk snapshots")
        other = world.guest(world.image("xvdc"), name="vm2", uuid=OTHER_UUID)
        plan = plan_create(world.host, other, SnapshotConfig(name="snap"))
        kill(Creation(plan), "suspend")
        return killed, other

    def test_all_are_recovered(self, world: World) -> None:
        killed, other = self.two(world)
        recovered = recover(world, None)
        assert recovered.rolled_back
        assert f"{UUID}: resumed vm1" in recovered.lines
        assert f"{OTHER_UUID}: resumed vm2" in recovered.lines
        assert other.runs
        assert killed.guest.runs
        assert not world.storage.snapshots
        assert recover(world, None) == Recovered((), rolled_back=True)

    def test_one_that_needs_a_person_does_not_stop_the_others(self, world: World) -> None:
        _, other = self.two(world)
        world.fail("undo xvda", DiskError("stuck", vdev="xvda"))
        with pytest.raises(NeedsAttention, match="stuck") as caught:
            recover(world, None)
        assert other.runs
        assert f"{OTHER_UUID}: resumed vm2" in caught.value.undone
        assert str(Journal(UUID).path) in caught.value.finish

    def test_a_damaged_journal_does_not_stop_the_others(self, world: World) -> None:
        _, other = self.two(world)
        Journal(UUID).path.write_text("{")
        with pytest.raises(NeedsAttention, match="cannot be read") as caught:
            recover(world, None)
        assert caught.value.left == (f"the journal of {UUID}",)
        assert other.runs

    def test_an_operation_under_way_is_left_alone(self, world: World) -> None:
        killed, other = self.two(world)
        lock = DomainLock(UUID, domain="vm1")
        recovered = recover(world, None)
        lock.release()
        assert any(line.startswith(f"{UUID}: another snapshot") for line in recovered.lines)
        assert other.runs
        assert killed.guest.suspended

    @pytest.mark.parametrize("word", ["vm1", "1", UUID, UUID.upper()])
    def test_one_by_any_of_its_names(self, world: World, word: str) -> None:
        killed, other = self.two(world)
        assert "resumed vm1" in recover(world, word).lines
        assert killed.guest.runs
        assert other.suspended

    def test_one_that_is_off_by_the_name_it_had(self, world: World) -> None:
        killed, _ = self.two(world)
        killed.guest.exists = False
        recover(world, "vm1")
        assert Journal(UUID).read() is None

    def test_an_unknown_domain(self, world: World) -> None:
        with pytest.raises(DomainNotFound, match="'nobody'"):
            recover(world, "nobody")

    def test_one_on_which_nothing_was_done(self, world: World) -> None:
        world.guest()
        assert recover(world, "vm1") == Recovered((), rolled_back=True)


def test_a_damaged_journal_of_another_domain_hides_no_other(world: World) -> None:
    """A domain that is off is looked for by its name in all journals."""
    killed = Killed(world, "suspend")
    killed.guest.exists = False
    damaged = world.root / "journals" / f"{UUID.replace('8', '0', 1)}.journal"
    damaged.write_text("{}")
    assert recover(world, "vm1").rolled_back
    assert damaged.read_text() == "{}"
