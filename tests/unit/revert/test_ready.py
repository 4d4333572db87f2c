"""What a revert makes ready while the domain runs: used after the destroy, or taken back."""

import errno
import os
from pathlib import Path

import pytest

from pyxlsnap import cfgfile, paths
from pyxlsnap.create.sequence import Creation
from pyxlsnap.errors import DiskError, NeedsAttention, OperationFailed, Refused, XenError
from pyxlsnap.journal import Journal
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.request import Callbacks
from pyxlsnap.results import Reverted
from pyxlsnap.revert.plan import RevertPlan
from pyxlsnap.revert.sequence import Reversion
from tests.unit.support import operations
from tests.unit.support.faults import run_until
from tests.unit.support.operations import plan_create, plan_revert
from tests.unit.support.values import UUID
from tests.unit.support.watch import FakeWatch
from tests.unit.support.world import World


class Case:
    """A domain with a snapshot of two disks, which has run on since."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.guest = world.guest(world.image("xvda"), world.image("xvdb"))
        made = plan_create(world.host, self.guest, SnapshotConfig(name="snap"))
        Creation(made).run()
        self.cfg = made.cfgfile
        world.storage.content.update(xvda="since", xvdb="since")
        world.events.clear()
        self.before = world.photo()
        self.started: list[str] = []

    def plan(self) -> RevertPlan:
        return plan_revert(self.world.host, "vm1", cfgfile.read(self.cfg), self.cfg)

    def run(self, watch: FakeWatch | None = None) -> Reverted:
        callbacks = Callbacks(
            start_monitor=self.started.append, prepare_monitor=watch.start if watch else None
        )
        return Reversion(self.world.host, self.plan(), callbacks).run()

    def killed(self, step: str) -> None:
        run_until(Reversion(self.world.host, self.plan()).steps(), step)

    def order(self, *words: str) -> list[str]:
        return [event for event in self.world.events if event.split()[0] in words]


@pytest.fixture
def case(world: World) -> Case:
    return Case(world)


def test_everything_is_ready_before_the_destroy(case: Case) -> None:
    result = case.run(FakeWatch(case.world))
    assert case.order("ready", "watch", "destroy", "revert", "restore", "unpause") == [
        "watch waits",
        "ready xvda",
        "ready xvdb",
        "destroy",
        "revert xvda",
        "revert xvdb",
        "restore",
        "watch begins",
        "unpause",
        "watch asked",
        "watch closed",
    ]
    assert case.started == []
    assert result.warnings == ()
    assert case.world.photo() == case.before


def test_the_last_look_comes_after_it(case: Case) -> None:
    case.run()
    events = case.world.events
    last = len(events) - 1 - events[::-1].index("check_revert")
    assert events.index("ready xvdb") < last < events.index("destroy")


def test_a_watch_that_has_ended_without_a_word_is_started_anew(case: Case) -> None:
    assert case.run(FakeWatch(case.world, there=False)).warnings == ()
    assert case.started == [UUID]


def test_a_watch_that_cannot_wait_is_started_at_the_end(case: Case) -> None:
    def no_process(_uuid: str) -> FakeWatch:
        raise OSError(errno.EMFILE, "Too many open files")

    callbacks = Callbacks(start_monitor=case.started.append, prepare_monitor=no_process)
    Reversion(case.world.host, case.plan(), callbacks).run()
    assert case.started == [UUID]


@pytest.mark.parametrize("verb", ["ready xvda", "ready xvdb"])
@pytest.mark.parametrize("after", [False, True])
def test_what_cannot_be_made_ready_is_taken_back(case: Case, verb: str, after: bool) -> None:
    case.world.fail(verb, DiskError("no", vdev="xvda"), after=after)
    with pytest.raises(OperationFailed, match=r"failed \(prepare\): .*; nothing was changed") as e:
        case.run(FakeWatch(case.world))
    assert type(e.value) is OperationFailed
    assert case.guest.runs
    assert case.world.photo() == case.before
    assert "watch closed" in case.world.events
    assert "watch begins" not in case.world.events


def test_a_destroy_that_changes_nothing_takes_it_back(case: Case) -> None:
    case.world.fail("destroy", XenError("no", rc=-3, operation="destroy"))
    with pytest.raises(OperationFailed, match="nothing was changed"):
        case.run()
    assert case.world.photo() == case.before


def test_what_cannot_be_taken_back_is_named_and_a_recovery_removes_it(case: Case) -> None:
    plan = case.plan()
    case.world.fail("destroy", XenError("no", rc=-3, operation="destroy"))
    case.world.fail("unready xvdb", DiskError("it is busy", vdev="xvdb"))
    with pytest.raises(NeedsAttention, match="vm1 is as before") as caught:
        Reversion(case.world.host, plan).run()
    assert caught.value.left == (
        "what the revert had prepared for xvdb could not be removed: xvdb: it is busy",
    )
    assert caught.value.finish == f"pyxlsnap snapshot-recover {UUID}"
    assert case.guest.runs
    with pytest.raises(NeedsAttention, match="was not touched, but what the revert had prepared"):
        operations.recover(case.world.host, UUID)
    case.world.faults.clear()
    found = operations.recover(case.world.host, UUID)
    assert (found.lines, found.rolled_back) == (("vm1 was not touched",), True)
    assert case.world.photo() == case.before


@pytest.mark.parametrize("reboot", [False, True])
def test_a_recovery_of_what_is_left_does_not_do_the_revert(
    case: Case, reboot: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user was told that the domain is as before, and has shut it down since."""
    case.world.fail("destroy", XenError("no", rc=-3, operation="destroy"))
    case.world.fail("unready xvdb", DiskError("it is busy", vdev="xvdb"))
    with pytest.raises(NeedsAttention, match="vm1 is as before"):
        case.run()
    case.world.faults.clear()
    case.guest.exists = False
    if reboot:
        monkeypatch.setattr("pyxlsnap.recovery.finish_revert.boot_id", lambda: "another")
    found = operations.recover(case.world.host, UUID)
    assert (found.lines, found.rolled_back) == (("vm1 was not touched",), True)
    assert set(case.world.storage.content.values()) == {"since"}
    assert case.world.photo() == case.before


@pytest.mark.parametrize("step", ["prepare", "memory", "check again"])
def test_a_recovery_removes_what_a_killed_revert_had_made_ready(case: Case, step: str) -> None:
    case.killed(step)
    assert case.world.photo() != case.before
    found = operations.recover(case.world.host, UUID)
    assert (found.lines, found.rolled_back) == (("vm1 was not touched",), True)
    assert case.world.photo() == case.before
    assert case.guest.runs


def test_a_recovery_removes_it_from_a_domain_that_was_started_since(case: Case) -> None:
    case.killed("destroy")
    again = case.world.host.start(case.guest.configuration)
    found = operations.recover(case.world.host, UUID)
    assert "runs and was left alone" in found.lines[0]
    assert again.runs
    assert case.world.photo() == case.before


@pytest.mark.parametrize("step", ["journal", "prepare", "check again", "destroy", "disks"])
def test_the_same_command_goes_on_after_a_kill(case: Case, step: str) -> None:
    case.killed(step)
    plan = operations.preview_revert(case.world.host, UUID, cfgfile.read(case.cfg), case.cfg)
    assert plan.name == "snap"
    operations.revert(case.world.host, UUID, cfgfile.read(case.cfg), case.cfg)
    assert case.world.photo() == case.before
    assert set(case.world.storage.content.values()) == {"before"}


def test_a_preview_after_a_kill_removes_nothing(case: Case) -> None:
    case.killed("prepare")
    at_death = case.world.photo()
    operations.preview_revert(case.world.host, UUID, cfgfile.read(case.cfg), case.cfg)
    assert case.world.photo() == at_death


def test_a_revert_to_another_snapshot_removes_it_too(case: Case) -> None:
    other = plan_create(case.world.host, case.guest, SnapshotConfig(name="other"))
    Creation(other).run()
    before = case.world.photo()
    case.killed("prepare")
    cfg = other.cfgfile
    operations.revert(case.world.host, UUID, cfgfile.read(cfg), cfg)
    assert case.world.photo() == before


def test_a_revert_that_cannot_remove_it_is_refused(case: Case) -> None:
    case.killed("prepare")
    case.world.fail("unready xvda", DiskError("it is busy", vdev="xvda"))
    with pytest.raises(Refused, match="prepared for xvda could not be removed: xvda: it is busy"):
        operations.revert(case.world.host, UUID, cfgfile.read(case.cfg), case.cfg)
    assert case.guest.runs
    assert Journal(UUID).read() is not None


def test_of_a_domain_that_is_off_nothing_is_made_ready(case: Case) -> None:
    case.guest.exists = False
    result = case.run(FakeWatch(case.world))
    assert case.order("ready", "watch") == []
    assert case.started == [UUID]
    assert result.seconds_off == 0


def test_the_seconds_off_are_those_from_the_destroy_to_the_unpause(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    took = {"ready xvda": 7.0, "destroy": 1.0, "revert xvda": 2.0, "unpause": 4.0, "drop xvda": 8.0}

    def on_event(event: str) -> None:
        nonlocal now
        now += took.get(event, 0.0)

    case.world.on_event = on_event
    monkeypatch.setattr("pyxlsnap.revert.sequence.time.monotonic", lambda: now)
    assert case.run().seconds_off == 7.0


def test_the_memory_file_is_read_ahead(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = case.plan().memory_path

    def record(fd: int, _check: object) -> int:
        read.append((paths.PROC / f"self/fd/{fd}").readlink())
        assert "destroy" not in case.world.events
        return 0

    monkeypatch.setattr("pyxlsnap.guest.saved.read_ahead", record)
    case.run()
    assert read == [real]


def cannot_read(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_fd: int, _check: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pyxlsnap.guest.saved.read_ahead", fail)


def test_a_memory_file_that_cannot_be_read_is_found_before_the_destroy(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restore would read the same sectors."""
    cannot_read(errno.EIO, monkeypatch)
    says = r"\(prepare\): .*cannot be read: Input/output error; nothing was changed"
    with pytest.raises(OperationFailed, match=says):
        case.run()
    assert case.guest.runs
    assert case.world.photo() == case.before


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EINVAL])
def test_a_memory_file_that_cannot_be_read_ahead_need_not_be(
    case: Case, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cannot_read(number, monkeypatch)
    case.run()
    assert set(case.world.storage.content.values()) == {"before"}
