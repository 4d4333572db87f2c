"""Taking a snapshot with a fault at every step: the guest first, and nothing left behind."""

import errno
import os
import re
import shlex
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyxlsnap import cfgfile, paths
from pyxlsnap.cancel import Cancel
from pyxlsnap.create import files as snapshot_files
from pyxlsnap.create import last_time, paused
from pyxlsnap.create import operation as create_operation
from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.create.sequence import Creation
from pyxlsnap.disks.undo import LeftOver
from pyxlsnap.errors import (
    Aborted,
    AlreadyExists,
    Busy,
    DiskError,
    DomainNotFound,
    Interrupted,
    NeedsAttention,
    OperationFailed,
    PyxlsnapError,
    QmpError,
    Refused,
    UsageError,
    XenError,
)
from pyxlsnap.journal import CreateEntry, Journal
from pyxlsnap.linux import files
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.memory import read_header, walk
from pyxlsnap.memory.writer import StreamWriter
from pyxlsnap.model import DiskRequest, RunState, SnapshotConfig
from pyxlsnap.results import Plan, Progress, Snapshot
from tests.unit.support import operations, streams, written
from tests.unit.support.entries import revert_entry
from tests.unit.support.example import new_world
from tests.unit.support.faults import FailsAtStep
from tests.unit.support.guest import FakeGuest, with_memory
from tests.unit.support.operations import plan_create, plan_revert
from tests.unit.support.qmp_server import recording
from tests.unit.support.restores import restored
from tests.unit.support.strategy import FakeStrategy
from tests.unit.support.values import UUID
from tests.unit.support.waiting import eventually
from tests.unit.support.world import World

STEPS = [name for name, _ in Creation.__new__(Creation).steps()]
WHEN = ("before", "after")
FAULTS: dict[str, Callable[[], BaseException]] = {
    "xen": lambda: XenError("no", rc=-3, operation="some call"),
    "full": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "qemu": lambda: QmpError("no", command="transaction"),
    "bug": lambda: RuntimeError("a bug"),
    "ctrl-c": KeyboardInterrupt,
}
WANTED = SnapshotConfig(name="snap", description="why")


class Faulty(FailsAtStep, Creation):
    """A creation that fails at one of its steps."""


class Case:
    """A running guest with two disks and a plan for its snapshot."""

    def __init__(self, world: World, *, live: bool = False, paused: bool = False) -> None:
        self.world = world
        self.guest: FakeGuest = world.guest(world.image("xvda"), world.image("xvdb"))
        self.guest.paused = paused
        self.before = world.photo()
        self.cancel = Cancel()
        self.at_fault = self.before
        self.suspended_at_fault = False
        self.plan: CreatePlan = plan_create(world.host, self.guest, WANTED, live=live)
        self.journal = Journal(UUID)

    @property
    def memory_path(self) -> Path:
        return self.plan.memory_path

    def creation(self) -> Creation:
        return Creation(self.plan, cancel=self.cancel)

    def run(self) -> Snapshot:
        return self.creation().run()

    def fails(self, kind: type[OperationFailed] = OperationFailed) -> OperationFailed:
        with pytest.raises(OperationFailed) as caught:
            self.run()
        return self.checked(caught.value, kind)

    def fails_at(
        self, step: str, when: str, fault: Callable[[], None], kind: type[OperationFailed]
    ) -> OperationFailed:
        def remembered() -> None:
            self.at_fault = self.world.photo()
            self.suspended_at_fault = self.guest.suspended
            fault()

        creation = Faulty(self.plan, cancel=self.cancel)
        creation.at, creation.when, creation.fault = step, when, remembered
        with pytest.raises(OperationFailed) as caught:
            creation.run()
        return self.checked(caught.value, kind)

    def checked(self, error: OperationFailed, kind: type[OperationFailed]) -> OperationFailed:
        assert type(error) is kind
        assert "\n" not in str(error)
        return error

    def assert_as_before(self) -> None:
        self.guest.time_passes()
        assert not self.guest.requested
        assert self.guest.paused == self.plan.paused
        assert self.guest.paused or self.guest.runs
        assert not self.guest.suspended
        assert self.world.photo() == self.before


def raising(make: Callable[[], BaseException]) -> Callable[[], None]:
    def fault() -> None:
        raise make()

    return fault


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("step", STEPS)
def test_a_fault_at_any_step_leaves_everything_as_before(
    world: World, step: str, when: str, fault: str, paused: bool
) -> None:
    case = Case(world, paused=paused)
    kind = Interrupted if fault == "ctrl-c" else OperationFailed
    error = case.fails_at(step, when, raising(FAULTS[fault]), kind)
    assert error.step == step
    assert step in str(error)
    assert error.__cause__ is not None
    assert error.left == ()
    case.assert_as_before()
    if case.suspended_at_fault:  # and not a file or disk snapshot went before the guest ran
        assert world.at_resume == case.at_fault
    assert case.guest.resumes == ("resume" in world.events)


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("step", STEPS[:-1])
def test_a_cancel_at_any_step_rolls_back(world: World, step: str, when: str) -> None:
    case = Case(world)
    error = case.fails_at(step, when, case.cancel.set, Interrupted)
    # Two steps look at the token while they are under way.
    inside = step in ("suspend", "memory file") and when == "before"
    assert error.step == (step if inside else STEPS[STEPS.index(step) + 1])
    assert error.exit_code == 130
    case.assert_as_before()


def test_a_cancel_in_the_last_step_is_too_late(world: World) -> None:
    case = Case(world)
    creation = Faulty(case.plan, cancel=case.cancel)
    creation.at, creation.when, creation.fault = STEPS[-1], "before", case.cancel.set
    assert creation.run().name == "snap"
    assert case.memory_path.exists()


def test_a_cancel_before_the_beginning_touches_nothing(world: World) -> None:
    case = Case(world)
    case.cancel.set()
    assert case.fails(Interrupted).step == STEPS[0]
    assert "suspend" not in world.events
    case.assert_as_before()


@pytest.mark.parametrize("suspended", [False, True])
def test_a_cancel_while_memory_is_written_aborts_it(world: World, suspended: bool) -> None:
    case = Case(world, live=True)

    def cancelled() -> None:
        thread = threading.Thread(target=case.cancel.set)
        thread.start()
        thread.join()
        case.guest.suspended = suspended
        raise Aborted("aborted", rc=-27, operation="libxl_domain_suspend")

    case.guest.while_suspending = cancelled
    assert case.fails(Interrupted).step == "suspend"
    assert case.guest.aborts == 1
    case.assert_as_before()


def test_a_suspend_that_fails_with_the_guest_suspended_is_resumed(world: World) -> None:
    case = Case(world)
    world.fail("suspend", XenError("timed out", rc=-9, operation="suspend"), after=True)
    error = case.fails()
    assert error.step == "suspend"
    assert error.undone[0] == "resumed vm1"
    assert case.guest.resumes == 1
    case.assert_as_before()


@pytest.mark.parametrize("late_s", [1.0, 60.0])
def test_a_suspend_that_comes_after_its_failure_is_waited_for(world: World, late_s: float) -> None:
    case = Case(world)
    case.guest.suspends_late_s = late_s
    world.fail("suspend", XenError("timed out", rc=-9, operation="suspend"))
    case.fails()
    assert case.guest.resumes == 1
    case.assert_as_before()


def test_the_name_is_taken_meanwhile_on_the_second_disk(world: World) -> None:
    case = Case(world)
    world.storage.snapshots["xvdb", "snap"] = "somebody else's"
    error = case.fails()
    assert error.step == "disk snapshots"
    assert "xvdb" in str(error)
    assert world.storage.snapshots == {("xvdb", "snap"): "somebody else's"}
    assert case.guest.runs
    assert world.photo().files == case.before.files


@pytest.mark.parametrize("which", ["memory_path", "cfgfile"])
def test_a_file_of_that_name_made_meanwhile_stays(world: World, which: str) -> None:
    case = Case(world)
    path: Path = getattr(case.plan, which)

    def somebody(event: str) -> None:
        if event == "suspend":
            path.write_text("somebody else's")

    world.on_event = somebody
    error = case.fails()
    assert error.step == {"memory_path": "memory file", "cfgfile": "cfgfile"}[which]
    assert isinstance(error.__cause__, AlreadyExists)
    assert path.read_text() == "somebody else's"
    assert set(world.photo().files) - set(case.before.files) == {
        path,
        path.parent,
        path.parent.parent,
    }
    assert case.guest.runs
    assert not world.storage.snapshots


@pytest.mark.parametrize("step", ["disk snapshots", "resume", "memory file", "cfgfile"])
@pytest.mark.parametrize(
    "error",
    [
        QmpError("gone", command="x"),
        OSError(errno.EIO, "Input/output error"),
        RuntimeError("a bug"),
    ],
)
def test_a_failed_cleanup_is_listed_and_the_rest_is_undone(
    world: World, step: str, error: Exception
) -> None:
    case = Case(world)
    world.fail("undo xvda", error)
    failed = case.fails_at(step, "after", raising(FAULTS["bug"]), NeedsAttention)
    assert isinstance(failed, NeedsAttention)
    assert failed.left == (str(error),)
    assert failed.finish == f"pyxlsnap snapshot-recover {UUID}"
    assert case.guest.runs
    assert set(world.storage.snapshots) == {("xvda", "snap")}
    assert set(world.photo().files) - set(case.before.files) == {case.journal.path}
    entry = case.journal.read()
    assert entry is not None
    assert entry.name == "snap"


def test_what_only_a_person_can_delete_does_not_keep_the_journal(world: World) -> None:
    """A recovery could do no more, and the next create may begin."""
    case = Case(world)
    world.fail("undo xvda", LeftOver("a tag is left", vdev="xvda", finish="qemu-img snapshot -d"))
    failed = case.fails_at("disk snapshots", "after", raising(FAULTS["bug"]), NeedsAttention)
    assert isinstance(failed, NeedsAttention)
    assert failed.left == ("xvda: a tag is left",)
    assert failed.finish == "qemu-img snapshot -d"
    assert case.journal.read() is None
    assert case.guest.runs
    case.world.faults.clear()
    plan_create(world.host, case.guest, SnapshotConfig(name="next"))


def test_it_is_said_beside_what_a_recovery_can_do(world: World) -> None:
    case = Case(world)
    world.fail("undo xvda", LeftOver("a tag is left", vdev="xvda", finish="qemu-img snapshot -d"))
    world.fail("undo xvdb", DiskError("no", vdev="xvdb"))
    failed = case.fails_at("disk snapshots", "after", raising(FAULTS["bug"]), NeedsAttention)
    assert isinstance(failed, NeedsAttention)
    assert set(failed.left) == {"xvda: a tag is left", "xvdb: no"}
    assert failed.finish == f"pyxlsnap snapshot-recover {UUID}"
    assert case.journal.read() is not None


class TestTheGuestCannotBeResumed:
    """Then memory file and disk snapshots are its only copy."""

    ERROR = XenError("broken", rc=-3, operation="libxl_domain_resume")

    @pytest.mark.parametrize(
        ("step", "when"),
        [("suspend", "after"), ("disk snapshots", "before"), ("disk snapshots", "after")],
    )
    def test_everything_is_kept(self, world: World, step: str, when: str) -> None:
        case = Case(world)
        world.fail("resume", self.ERROR)
        error = case.fails_at(step, when, raising(FAULTS["bug"]), NeedsAttention)
        assert "nothing was deleted" in str(error)
        assert not [e for e in world.events if e.startswith("undo")]
        assert world.photo().disk_snapshots == case.at_fault.disk_snapshots
        # And the command that it gives is taken.
        assert isinstance(error, NeedsAttention)
        words = shlex.split(error.finish)
        cfg = Path(words[3])
        for disk in case.guest.configuration.disks:  # a revert looks into those that it leaves out
            subprocess.run(
                ["qemu-img", "create", "-q", "-f", "qcow2", disk.target, "1M"], check=True
            )
        plan = plan_revert(
            world.host, words[2], cfgfile.read(cfg), cfg, force="--force" in words[4:]
        )
        complete = (step, when) == ("disk snapshots", "after")
        assert [v for s in plan.strategies for v in s.vdevs] == ["xvda", "xvdb"] * complete
        # The journal stays as long as the guest is suspended.
        entry = case.journal.read()
        assert isinstance(entry, CreateEntry)
        assert (entry.way_back, entry.has_disks) == (str(case.plan.cfgfile), complete)
        assert f"`pyxlsnap snapshot-recover {UUID}` tries again" in str(error)

    def test_the_snapshot_is_completed_and_revert_takes_it(self, world: World) -> None:
        case = Case(world)
        world.fail("resume", self.ERROR)
        error = case.fails(NeedsAttention)
        assert isinstance(error, NeedsAttention)
        assert error.step == "resume"
        assert set(world.storage.snapshots) == {("xvda", "snap"), ("xvdb", "snap")}
        command = shlex.split(error.finish)
        assert command == ["pyxlsnap", "snapshot-revert", UUID, str(case.plan.cfgfile)]
        plan = plan_revert(
            world.host, command[2], cfgfile.read(command[3]), Path(command[3]), force=False
        )
        assert plan.guest is case.guest
        assert {v for s in plan.strategies for v in s.vdevs} == {"xvda", "xvdb"}

    def test_a_memory_file_that_cannot_be_published_is_named(self, world: World) -> None:
        case = Case(world)

        def somebody(event: str) -> None:
            if event == "suspend":
                case.memory_path.write_text("somebody else's")

        world.on_event = somebody
        world.fail("resume", self.ERROR)
        error = case.fails(NeedsAttention)
        assert isinstance(error, NeedsAttention)
        (temporary,) = case.memory_path.parent.glob(".snap.save.*")
        assert str(temporary) in error.left[1]
        assert error.finish == f"pyxlsnap snapshot-recover {UUID}"
        assert case.journal.read() is not None

    def test_the_memory_file_is_named_where_it_is_if_only_the_cfgfile_fails(
        self, world: World
    ) -> None:
        case = Case(world)

        def somebody(event: str) -> None:
            if event == "suspend":
                case.plan.cfgfile.write_text("somebody else's")

        world.on_event = somebody
        world.fail("resume", self.ERROR)
        error = case.fails(NeedsAttention)
        assert case.memory_path.exists()
        assert f"its memory is in {case.memory_path} " in error.left[1]

    def test_the_disk_snapshots_are_finished(self, world: World) -> None:
        """A copy is not durable before, and a frozen file can be written."""
        case = Case(world)
        world.fail("resume", self.ERROR)
        there: list[bool] = []

        def on_event(event: str) -> None:
            if event.startswith("finish"):
                there.append(case.plan.cfgfile.exists())

        world.on_event = on_event
        case.fails(NeedsAttention)
        assert there == [False, False]

    def test_disk_snapshots_that_were_not_taken_are_not_finished(self, world: World) -> None:
        case = Case(world)
        world.fail("resume", self.ERROR)
        case.fails_at("suspend", "after", raising(FAULTS["bug"]), NeedsAttention)
        assert not [e for e in world.events if e.startswith("finish")]

    @pytest.mark.parametrize("error", [DiskError("no room", vdev="xvda"), RuntimeError("a bug")])
    def test_one_that_cannot_be_finished_is_named(self, world: World, error: Exception) -> None:
        case = Case(world)
        world.fail("resume", self.ERROR)
        world.fail("finish xvda", error)
        failed = case.fails(NeedsAttention)
        assert "finish xvdb" in world.events
        assert str(error) in str(failed)
        assert case.plan.cfgfile.exists()

    @pytest.mark.parametrize("method", ["publish_memory", "publish_cfgfile"])
    def test_the_journal_knows_before_the_files_are_there(
        self, world: World, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        """If the process is killed between, a recovery would take them for a whole snapshot."""
        case = Case(world)

        class Killed(BaseException):
            pass

        def killed(*_: object) -> None:
            raise Killed

        monkeypatch.setattr(snapshot_files.SnapshotFiles, method, killed)
        world.fail("create xvda", FAULTS["xen"]())
        world.fail("resume", self.ERROR)
        with pytest.raises(Killed):
            case.run()
        entry = case.journal.read()
        assert isinstance(entry, CreateEntry)
        assert (entry.way_back, entry.has_disks) == (str(case.plan.cfgfile), False)

    def test_without_the_journal_nothing_is_published(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        case = Case(world)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Journal, "rewrite", full)
        world.fail("resume", self.ERROR)
        failed = case.fails(NeedsAttention)
        assert isinstance(failed, NeedsAttention)
        (temporary,) = case.memory_path.parent.glob(".snap.save.*")
        assert str(temporary) in str(failed)
        assert not case.memory_path.exists()
        assert not case.plan.cfgfile.exists()
        assert failed.finish == f"pyxlsnap snapshot-recover {UUID}"

    def test_half_a_memory_file_is_not_published(self, world: World) -> None:
        case = Case(world)
        world.fail("resume", self.ERROR)
        world.fail("suspend", XenError("late", rc=-9, operation="suspend"), after=True)
        error = case.fails(NeedsAttention)
        assert isinstance(error, NeedsAttention)
        assert not case.memory_path.exists()
        assert error.finish == f"pyxlsnap snapshot-recover {UUID}"


@pytest.mark.parametrize("call", range(1, 6))
def test_a_directory_that_cannot_be_synced_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The fault is inside a step, after the file or the directory has its name."""
    case = Case(world)
    calls: list[Path] = []
    sync = files.sync_directory

    def fails(directory: Path) -> None:
        if directory != paths.JOURNALS:
            calls.append(directory)
            if len(calls) == call:
                raise OSError(errno.EIO, "Input/output error")
        sync(directory)

    monkeypatch.setattr(files, "sync_directory", fails)
    there = case.memory_path.parent
    if call < 5:  # two new directories, memory file, cfgfile
        case.fails()
        case.assert_as_before()
    else:
        case.run()
        assert calls == [there.parent.parent, there.parent, there, there]


@pytest.mark.parametrize(
    ("stream", "step", "says"),
    [
        (streams.hvm_stream()[:-8], "suspend", "ends before its END"),
        (streams.hvm_stream().replace(streams.HVM_CONTEXT, b""), "memory file", "HVM_CONTEXT"),
    ],
)
def test_a_damaged_stream_is_no_snapshot(world: World, stream: bytes, step: str, says: str) -> None:
    case = Case(world)
    case.guest.stream = stream
    error = case.fails()
    assert error.step == step
    assert says in str(error)
    case.assert_as_before()


@pytest.mark.parametrize("fails_in", ["memory", "disks", "nothing"])
def test_the_qemu_of_an_hvm_guest_records_no_more(
    world: World, fails_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libxl leaves it on after an abort; a suspend that succeeds has switched it off."""
    monkeypatch.setattr(paths, "QEMU_SOCKETS", tmp_path)
    case = Case(world, live=True)
    case.guest.device_model = os.getpid()
    with recording(case.guest.domid) as qemu:
        if fails_in == "memory":
            case.guest.while_suspending = case.cancel.set
            case.fails(Interrupted)
        elif fails_in == "disks":
            world.fail("create xvda", QmpError("no", command="transaction"))
            case.fails()
        else:
            case.run()
    assert qemu.records == (fails_in != "memory")
    assert qemu.told == ([True, False] if fails_in == "memory" else [])


class StallingWriter(StreamWriter):
    """The storage of its file does not answer, until it does."""

    goes_on = threading.Event()

    def run(self, pipe_fd: int, stop_fd: int) -> None:
        self.goes_on.wait(20)
        super().run(pipe_fd, stop_fd)


def test_storage_that_stalls_does_not_keep_the_guest_suspended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    StallingWriter.goes_on.clear()
    monkeypatch.setattr(snapshot_files, "StreamWriter", StallingWriter)
    monkeypatch.setattr(snapshot_files, "_ANSWER_S", 0.05)
    case = Case(world)
    world.fail("suspend", XenError("no", rc=-3, operation="libxl_domain_suspend"), after=True)
    error = case.fails(NeedsAttention)
    assert isinstance(error, NeedsAttention)
    assert case.guest.resumes == 1
    (temporary,) = case.memory_path.parent.iterdir()
    assert error.left == (
        f"the storage of {temporary} does not answer: this unfinished memory file may be left",
    )
    assert error.finish == f"pyxlsnap snapshot-recover {UUID}"
    StallingWriter.goes_on.set()
    assert eventually(lambda: not temporary.parent.exists())


def test_a_cancel_ends_the_wait_for_storage_that_stalls(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libxl has written all of the stream, and the guest is suspended."""
    StallingWriter.goes_on.clear()
    monkeypatch.setattr(snapshot_files, "StreamWriter", StallingWriter)
    monkeypatch.setattr(snapshot_files, "_ANSWER_S", 0.05)
    case = Case(world)
    world.on_event = lambda event: case.cancel.set() if event == "suspend" else None
    case.fails(NeedsAttention)
    assert case.guest.resumes == 1
    StallingWriter.goes_on.set()
    assert eventually(lambda: not case.memory_path.parent.exists())


@pytest.mark.parametrize("live", [False, True])
def test_a_memory_file_that_cannot_be_written_aborts_libxl(world: World, live: bool) -> None:
    case = Case(world, live=live)
    guest = case.guest
    guest.stream = written.stream_of(False, written.in_order(4000))
    # libxl takes a moment to write the other half: the abort comes meanwhile.
    guest.while_suspended = lambda: eventually(lambda: guest.aborts > 0)  # type: ignore[assignment]
    with written.file_size_limit(3 << 20):
        error = case.fails()
    assert error.step == "suspend"
    assert guest.aborts
    case.assert_as_before()


#: a guest of each kind; some pages come again, and some are zero then
SENT = {
    pv: written.stream_of(
        pv, [*written.in_order(1500), written.page_record((n, 0, n % 2) for n in range(99))]
    )
    for pv in (False, True)
}
SIZES = {pv: len(written.file_of(stream)) for pv, stream in SENT.items()}
#: a journal is not longer
JOURNAL_BYTES = 16 << 10


@settings(max_examples=60)
@given(pv=st.booleans(), live=st.booleans(), data=st.data())
def test_a_disk_that_is_full_at_any_byte_leaves_everything_as_before(
    pv: bool, live: bool, data: st.DataObject
) -> None:
    room = data.draw(st.integers(JOURNAL_BYTES, SIZES[pv] - 1))
    with new_world() as world:
        case = Case(world, live=live)
        case.guest.stream = SENT[pv]
        with written.file_size_limit(room):
            error = case.fails()
        assert error.step == "suspend"
        assert f"{case.memory_path}: File too large" in str(error)
        assert "create xvda" not in world.events
        case.assert_as_before()


@pytest.mark.parametrize("pv", [False, True])
def test_a_disk_with_just_enough_room_has_enough(world: World, pv: bool) -> None:
    """The test above tries all sizes that are too small."""
    case = Case(world)
    case.guest.stream = SENT[pv]
    with written.file_size_limit(SIZES[pv]):
        case.run()
    assert case.memory_path.stat().st_size == SIZES[pv]


def test_holes_are_made_when_the_guest_runs_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To make them takes long where the file is not yet on the disk."""
    case, punch, made = Case(world), StreamWriter.punch, 0
    case.guest.stream = SENT[False]

    def noting(writer: StreamWriter) -> None:
        nonlocal made
        assert case.guest.runs
        (path,) = case.memory_path.parent.iterdir()
        with path.open("rb") as file:
            before = written.holes(file)
            punch(writer)
            made = len(written.holes(file) - before)

    monkeypatch.setattr(StreamWriter, "punch", noting)
    case.run()
    # Pages 0 and 50 were zero from the beginning.
    assert made == len([n for n in range(0, 99, 2) if n % 50])


def test_a_memory_file_that_is_larger_than_it_could_be_is_told(world: World) -> None:
    case = Case(world)
    odd = streams.record(0x80000123)
    again = streams.page_data((0,))
    case.guest.stream = written.stream_of(False, [*written.in_order(3), odd, again])
    (warning,) = case.run().warnings
    assert "larger than necessary" in warning
    assert "type 0x80000123" in warning


def test_a_journal_that_cannot_be_written_stops_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(world)
    blocked = world.root / "blocked"
    blocked.touch()
    monkeypatch.setattr(paths, "JOURNALS", blocked / "journals")
    case.before = world.photo()
    assert case.fails().step == "journal"
    case.assert_as_before()


class TestSuccess:
    def test_the_result_lists_the_files_and_disk_snapshots(self, world: World) -> None:
        case = Case(world)
        snapshot = case.run()
        assert (snapshot.name, snapshot.domain, snapshot.uuid) == ("snap", "vm1", UUID)
        assert snapshot.memory_path == str(world.directory / UUID / "snap.save")
        assert snapshot.cfgfile == str(world.directory / UUID / "snap.cfg")
        assert [a.kind for a in snapshot.artefacts] == [
            "memory file",
            "cfgfile",
            "disk snapshot",
            "disk snapshot",
        ]
        assert snapshot.seconds_suspended > 0
        assert list(snapshot.seconds) == STEPS
        inside = snapshot.seconds["disk snapshots"] + snapshot.seconds["resume"]
        assert snapshot.seconds_suspended >= inside - 0.05  # the step ends a little later
        assert case.guest.runs
        assert case.guest.resumes == 1

    def test_nothing_temporary_is_left(self, world: World) -> None:
        case = Case(world)
        case.run()
        directory = case.memory_path.parent
        assert set(world.photo().files) - set(case.before.files) == {
            directory.parent,
            directory,
            case.memory_path,
            case.plan.cfgfile,
        }
        assert case.journal.read() is None

    def test_files_are_private(self, world: World) -> None:
        case = Case(world)
        case.run()
        modes = {
            p.name: stat.S_IMODE(p.stat().st_mode) for p in case.memory_path.parent.parent.rglob("")
        }
        assert modes == {"snapshots": 0o700, UUID: 0o700}
        for path in (case.memory_path, case.plan.cfgfile):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_the_cfgfile_reads_back_as_the_snapshot(self, world: World) -> None:
        case = Case(world)
        case.run()
        assert cfgfile.read(case.plan.cfgfile) == SnapshotConfig(
            "snap",
            "why",
            str(case.memory_path),
            (DiskRequest("xvda"), DiskRequest("xvdb")),
        )

    def test_the_memory_file_has_configuration_metadata_and_stream(self, world: World) -> None:
        case = Case(world)
        case.run()
        with case.memory_path.open("rb") as file:
            header = read_header(file, "x")
            assert header.config_json == case.plan.examined.config.json
            assert header.metadata == case.plan.metadata
            assert header.metadata.state is RunState.RUNNING
            assert header.metadata.versions["xen"] == "4.17"
            found = restored(case.memory_path.read_bytes(), header.stream_offset)
            sent = restored(with_memory(case.guest.stream, case.guest.memory))
            assert (found.memory, found.others) == (sent.memory, sent.others)

    def test_the_window_holds_the_disk_snapshots_and_no_more(self, world: World) -> None:
        Case(world).run()
        looks = ["disk_targets", "frontend_states", "devices changed"]
        events = [e for e in world.events if not e.startswith(("info", "find"))]
        start, end = events.index("suspend"), events.index("resume")
        disks = ["commit xvda", "create xvda", "commit xvdb", "create xvdb"]
        assert [e for e in events[start:end] if e not in looks] == ["suspend", *disks]
        # The devices are looked at before the suspend; the last look comes beside the memory.
        prepared = max(i for i, event in enumerate(events) if event.startswith("prepare"))
        begun = events.index("commit xvda")
        assert [e for e in events[prepared:begun] if e in looks] == looks
        assert not set(looks) & set(events[begun:])


class TestAPausedGuest:
    """It runs just long enough to answer the suspend request."""

    def test_is_unpaused_for_the_request_and_paused_again(self, world: World) -> None:
        case = Case(world, paused=True)
        snapshot = case.run()
        events = [e for e in world.events if e in ("unpause", "suspend", "resume", "pause")]
        assert events == ["unpause", "suspend", "resume"]
        assert case.guest.paused
        assert not case.guest.suspended
        assert snapshot.state is RunState.PAUSED
        assert 0 < snapshot.seconds_unpaused < 2

    def test_paused_twice_fails_and_stays_paused(self, world: World) -> None:
        case = Case(world, paused=True)
        case.guest.paused_twice = True
        error = case.fails()
        assert "paused more than once: run `xl unpause vm1`" in str(error)
        assert case.guest.aborts == 1
        assert world.events.count("unpause") == world.events.count("pause") == 1
        case.assert_as_before()

    def test_without_a_request_is_unpaused_after_a_while(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As one without PV drivers."""
        monkeypatch.setattr(paused, "_NO_REQUEST_S", 0.05)
        case = Case(world, paused=True)
        monkeypatch.setattr(case.guest, "suspend_requested", lambda: False)
        assert case.run().seconds_unpaused > 0
        assert case.guest.paused

    def test_live_is_not_unpaused_before_the_request(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However long its memory takes."""
        monkeypatch.setattr(paused, "_NO_REQUEST_S", 0.0)
        case = Case(world, live=True, paused=True)
        asked = time.monotonic() + 0.2
        monkeypatch.setattr(case.guest, "suspend_requested", lambda: time.monotonic() >= asked)
        case.run()
        assert time.monotonic() >= asked

    def does_not_answer(self, world: World, monkeypatch: pytest.MonkeyPatch) -> Case:
        monkeypatch.setattr(paused, "_ANSWER_S", 0.2)
        case = Case(world, paused=True)
        case.guest.answers = False
        return case

    def assert_paused_again(self, case: Case, error: OperationFailed) -> None:
        """The text does not call that "as before"."""
        assert "as before" not in str(error)
        assert re.search(r"vm1 is paused again; it ran for [0-9.]+ m?s to answer", str(error))
        case.assert_as_before()

    def test_that_never_answers_is_paused_again_soon(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        case = self.does_not_answer(world, monkeypatch)
        ran: list[float] = []
        world.on_event = lambda e: ran.append(time.monotonic()) if "pause" in e else None
        error = case.fails()
        assert "vm1 did not answer the suspend request within 0.2 s" in str(error)
        assert [e for e in world.events if "pause" in e] == ["unpause", "pause"]
        assert ran[1] - ran[0] < 1
        self.assert_paused_again(case, error)

    def test_that_has_taken_the_request_is_given_time_to_suspend(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else it would suspend at the next unpause of its owner."""
        case = self.does_not_answer(world, monkeypatch)
        case.guest.suspends_late_s = 2

        def taken(event: str) -> None:
            if event == "unpause":
                case.guest.requested = False

        world.on_event = taken
        self.assert_paused_again(case, case.fails())
        assert case.guest.resumes == 1

    @pytest.mark.parametrize("fault", FAULTS)
    def test_is_paused_again_whatever_fails_while_it_runs(self, world: World, fault: str) -> None:
        case = Case(world, paused=True)
        case.guest.while_suspending = raising(FAULTS[fault])
        with pytest.raises(OperationFailed) as caught:
            case.run()
        self.assert_paused_again(case, caught.value)

    def test_is_paused_again_when_it_is_cancelled_while_it_runs(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        case = self.does_not_answer(world, monkeypatch)
        monkeypatch.setattr(paused, "_ANSWER_S", 60)

        def soon(event: str) -> None:
            if event == "unpause":
                threading.Timer(0.3, case.cancel.set).start()

        world.on_event = soon
        self.assert_paused_again(case, case.fails(Interrupted))

    def test_is_paused_again_even_if_its_disks_cannot_be_settled(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        case = self.does_not_answer(world, monkeypatch)
        world.fail("settle xvda", DiskError("no", vdev="xvda"))
        error = case.fails(NeedsAttention)
        assert case.guest.paused
        assert not case.guest.requested
        assert "it ran for" in str(error)

    def test_the_journal_says_when_it_was_unpaused(self, world: World) -> None:
        case = Case(world, paused=True)
        seen: list[float | None] = []

        def look(event: str) -> None:
            if event == "unpause":
                entry = case.journal.read()
                assert isinstance(entry, CreateEntry)
                seen.append(entry.unpaused_at)

        world.on_event = look
        case.run()
        (when,) = seen
        assert when is not None
        assert abs(time.time() - when) < 5

    def test_is_not_unpaused_if_the_journal_cannot_say_so(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        case = Case(world, paused=True)

        def full(_: Journal, entry: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Journal, "rewrite", full)
        error = case.fails()
        assert "No space left on device" in str(error)
        assert str(error).endswith("everything is as before")
        assert "unpause" not in world.events
        case.assert_as_before()

    def test_whose_xen_cannot_be_talked_to_a_second_time(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        case = Case(world, paused=True)

        def fails() -> bool:
            raise XenError("no", rc=-3, operation="xs_read")

        monkeypatch.setattr(case.guest, "suspend_requested", fails)
        assert str(case.fails()).endswith("(suspend): no; everything is as before")
        case.assert_as_before()


class TestTheWholeFunction:
    def make(self, world: World, **options: object) -> Snapshot:
        path = world.root / "images" / "m.save"
        wanted = SnapshotConfig(name="snap", memory_path=str(path))
        return operations.create(world.host, "vm1", wanted, **options)  # type: ignore[arg-type]

    def test_takes_a_snapshot_and_lets_go_of_lock_and_disks(self, world: World) -> None:
        world.guest(world.image("xvda"))
        phases: list[str] = []
        shared: list[str] = []

        def note(progress: Progress) -> None:
            phases.append(progress.phase)

        self.make(world, on_progress=note, share_lock=lambda uuid, fd: shared.append(uuid))
        assert phases == ["checking", "memory", "domain now suspended", "resumed"]
        assert shared == [UUID]
        assert "close xvda" in world.events
        DomainLock(UUID, domain="vm1").release()

    def test_a_failure_lets_go_of_lock_and_disks(self, world: World) -> None:
        world.guest(world.image("xvda"))
        world.fail("create xvda", QmpError("no", command="transaction"))
        with pytest.raises(OperationFailed):
            self.make(world)
        assert "close xvda" in world.events
        DomainLock(UUID, domain="vm1").release()

    def test_a_refusal_lets_go_of_lock_and_disks(self, world: World) -> None:
        world.guest(world.image("xvda"))
        world.fail("check_create", Refused("no"))
        with pytest.raises(Refused):
            self.make(world)
        assert "close xvda" in world.events
        assert "suspend" not in world.events
        DomainLock(UUID, domain="vm1").release()

    def test_another_operation_under_way_is_busy(self, world: World) -> None:
        world.guest(world.image("xvda"))
        lock = DomainLock(UUID, domain="vm1")
        with pytest.raises(Busy):
            self.make(world)
        lock.release()
        assert self.make(world).name == "snap"

    def test_an_unfinished_operation_is_to_be_recovered_first(self, world: World) -> None:
        case = Case(world)
        world.fail("undo xvda", QmpError("no", command="x"))
        case.fails_at("disk snapshots", "after", raising(FAULTS["bug"]), NeedsAttention)
        with pytest.raises(Refused, match=f"snapshot-recover {UUID}"):
            self.make(world)
        assert case.journal.read() is not None

    def test_a_callback_that_raises_is_a_failure_like_any_other(self, world: World) -> None:
        guest = world.guest(world.image("xvda"))
        before = world.photo()

        def raises(progress: Progress) -> None:
            if progress.phase == "resumed":
                raise RuntimeError("a bug of the caller's")

        with pytest.raises(PyxlsnapError, match="a bug of the caller's"):
            self.make(world, on_progress=raises)
        assert guest.runs
        assert world.photo() == before


@pytest.mark.parametrize("when", ["before the disks", "during the disks"])
def test_a_guest_resumed_by_another_program_is_noticed(world: World, when: str) -> None:
    """It has written since: memory and disks would not belong together."""
    case = Case(world)
    verb = "suspend" if when == "before the disks" else "create xvda"

    def resume(event: str) -> None:
        if event == verb:
            case.guest.suspended = False

    case.world.on_event = resume
    error = case.fails()
    assert "another program has resumed vm1" in str(error)
    case.assert_as_before()
    assert case.guest.resumes == 0


def _paused(guest: FakeGuest) -> None:
    guest.paused = True


def _suspended(guest: FakeGuest) -> None:
    guest.suspended = True


def _renamed(guest: FakeGuest) -> None:
    guest.present = "vm9"


INTERFERENCE = [
    (_paused, "another program has paused vm1 meanwhile"),
    (_suspended, "vm1 has shut down meanwhile (suspend)"),
    (_renamed, "vm1 was renamed to vm9 meanwhile"),
]


@pytest.mark.parametrize(("interfere", "says"), INTERFERENCE)
@pytest.mark.parametrize("step", STEPS[: STEPS.index("suspend")])
def test_interference_is_noticed_before_anything_is_asked_of_the_guest(
    world: World, interfere: Callable[[FakeGuest], None], says: str, step: str
) -> None:
    """Above all a guest that another program is saving is not resumed by our undo."""
    case = Case(world)
    error = case.fails_at(step, "after", lambda: interfere(case.guest), OperationFailed)
    assert says in str(error)
    assert "suspend" not in world.events
    assert case.guest.resumes == 0
    assert world.photo() == case.before


def test_an_owners_unpause_is_noticed(world: World) -> None:
    case = Case(world, paused=True)
    error = case.fails_at("header", "after", case.guest.unpause, OperationFailed)
    assert "another program has unpaused vm1 meanwhile" in str(error)
    assert case.guest.runs
    assert world.photo() == case.before


def test_a_disk_that_comes_while_the_memory_is_saved_is_noticed(world: World) -> None:
    """It is not in the configuration that was saved, but the guest in the memory knows it."""
    case = Case(world)

    def attach() -> None:
        case.guest.attached = ("/dev/new",)

    case.guest.while_suspending = attach
    assert "disks of vm1 were attached or detached meanwhile: /dev/new" in str(case.fails())
    assert not [e for e in world.events if e.startswith("create")]
    case.assert_as_before()


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({"vbd/51712": 3, "vif/0": 4}, "vbd/51712 of vm1 went from xenbus state 4 to 3 meanwhile"),
        ({"vbd/51712": 4, "vif/0": 1}, "vif/0 of vm1 went from xenbus state 4 to 1 meanwhile"),
        ({"vbd/51712": 4, "vif/0": 4, "vkbd/0": 1}, "vkbd/0 of vm1 was attached meanwhile"),
        ({"vbd/51712": 4}, "vif/0 of vm1 was detached meanwhile"),
    ],
)
def test_a_device_that_is_not_steady_at_the_instant_is_noticed(
    world: World, now: dict[str, int], says: str, live: bool
) -> None:
    """A guest that connects a device at that moment goes on, but could not be restored."""
    case = Case(world, live=live)

    def changes() -> None:
        case.guest.frontends = [now]

    case.guest.while_suspending = changes
    error = case.fails()
    assert says in str(error)
    assert error.step == "disk snapshots"
    assert not [e for e in world.events if e.startswith("create")]
    assert case.guest.resumes == 1
    case.assert_as_before()


def test_a_device_plugged_in_after_the_configuration_was_fetched_is_noticed(world: World) -> None:
    guest = world.guest(world.image("xvda"))
    (before,) = guest.frontends
    guest.frontends = [before, {**before, "vif/1": 4}]
    with pytest.raises(Refused, match=r"attached or detached meanwhile \(vif/1\): try again"):
        operations.create(world.host, "vm1", WANTED)
    assert "suspend" not in world.events


def test_a_guest_that_ended_is_noticed_before_disks_are_prepared(world: World) -> None:
    case = Case(world)
    steps = dict(case.creation().steps())
    steps["journal"]()
    steps["header"]()
    case.guest.exists = False
    with pytest.raises(DomainNotFound):
        steps["prepare disks"]()
    assert not [e for e in case.world.events if e.startswith("prepare")]


def test_a_cancel_while_a_frontend_is_waited_for(world: World) -> None:
    case = Case(world)
    case.guest.frontends = [{"vbd/51712": 3}]
    threading.Timer(0.2, case.cancel.set).start()
    start = time.monotonic()
    with pytest.raises(Interrupted, match="the snapshot of vm1 was interrupted"):
        operations.create(world.host, "vm1", WANTED, cancel=case.cancel)
    assert time.monotonic() - start < 10
    assert "suspend" not in world.events
    case.assert_as_before()


def test_a_cancel_while_the_memory_file_is_read_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(world)

    def cancelling(*args: Any, on_bytes: Callable[[int], None]) -> None:
        case.cancel.set()
        walk(*args, on_bytes=on_bytes)

    monkeypatch.setattr(snapshot_files, "walk", cancelling)
    assert case.fails(Interrupted).step == "memory file"
    case.assert_as_before()


class TestADryRun:
    def preview(self, world: World, **options: object) -> Plan:
        return operations.preview_create(world.host, "vm1", WANTED, **options)  # type: ignore[arg-type]

    def test_describes_the_run_and_changes_nothing(self, world: World) -> None:
        case = Case(world)
        plan = self.preview(world, live=True)
        assert (plan.operation, plan.name, plan.domain, plan.uuid) == (
            "create",
            "snap",
            "vm1",
            UUID,
        )
        assert [(d.vdev, d.how, d.path) for d in plan.disks] == [
            ("xvda", "fake", ""),
            ("xvdb", "fake", ""),
        ]
        case.assert_as_before()
        assert case.journal.read() is None
        assert "suspend" not in world.events
        made = operations.create(world.host, "vm1", WANTED, live=True)
        assert (plan.memory_path, plan.cfgfile) == (made.memory_path, made.cfgfile)

    def test_is_refused_as_the_run_would_be(self, world: World) -> None:
        case = Case(world)
        lock = DomainLock(UUID, domain="vm1")
        with pytest.raises(Busy):
            self.preview(world)
        lock.release()
        case.guest.shutdown_reason = "crash"
        with pytest.raises(Refused, match="crash"):
            self.preview(world)

    def test_memory_and_disks_make_the_downtime(self, world: World) -> None:
        case = Case(world)
        case.guest.memory_kb = 2 << 20
        stopped, live = self.preview(world), self.preview(world, live=True)
        assert stopped.seconds_suspended == pytest.approx(8, abs=0.5)
        assert live.seconds_suspended == pytest.approx(0.4)
        world.expected_seconds = 3.0
        slower = self.preview(world, live=True).seconds_suspended
        assert slower == pytest.approx(0.4 + 2 * 3.0)

    @pytest.mark.parametrize("live", [False, True])
    def test_the_last_snapshot_tells_what_the_memory_takes(self, world: World, live: bool) -> None:
        case = Case(world, live=live)
        done = operations.create(world.host, "vm1", WANTED, live=live)
        memory_s = done.seconds_suspended - done.seconds["disk snapshots"]
        case.guest.memory_kb *= 2
        world.expected_seconds = 3.0
        wanted = replace(WANTED, name="next")
        expected = (1 if live else 2) * memory_s + 2 * 3.0
        plan = operations.preview_create(world.host, "vm1", wanted, live=live)
        assert plan.seconds_suspended == pytest.approx(expected)
        other = operations.preview_create(world.host, "vm1", wanted, live=not live)
        assert other.seconds_suspended != pytest.approx(expected)

    def test_a_refusal_by_the_last_snapshots_says_so(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A refused one measures nothing: what was slow once must not count for ever."""
        case = Case(world, live=True)
        last_time.remember(UUID, True, 9.0, case.guest.memory_kb)
        with pytest.raises(Refused, match=r"9.0 s \(its last snapshots within a day needed 9.0 s"):
            operations.create(world.host, "vm1", WANTED, live=True, max_downtime=1)
        later = time.time() + 25 * 3600
        monkeypatch.setattr(time, "time", lambda: later)
        operations.create(world.host, "vm1", WANTED, live=True, max_downtime=1)

    def test_a_wait_at_the_resume_is_not_expected_again(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(create_operation, "_RESUME_S", 0.1)
        Case(world)
        world.on_event = lambda event: time.sleep(0.6) if event == "resume" else None
        done = operations.create(world.host, "vm1", WANTED, live=True)
        assert done.seconds_suspended > 0.6
        plan = operations.preview_create(world.host, "vm1", replace(WANTED, name="b"), live=True)
        assert plan.seconds_suspended is not None
        assert plan.seconds_suspended < 0.5

    def test_slow_disks_are_announced_with_a_quicker_way(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Case(world)
        world.expected_seconds = 3.0
        assert self.preview(world).warnings == ()
        monkeypatch.setattr(FakeStrategy, "quicker", lambda _: "walk", raising=False)
        warning, _ = self.preview(world).warnings
        assert warning.startswith("xvda: the disk snapshots are expected to take 3 s")
        assert warning.endswith(": walk")
        with pytest.raises(Refused, match=r"most of this time is for xvda \(fake\); walk$"):
            operations.create(world.host, "vm1", WANTED, live=True, max_downtime=1)
        world.expected_seconds = 0.1
        assert self.preview(world).warnings == ()

    @pytest.mark.parametrize(
        ("live", "disk_seconds", "allowed", "way_out"),
        [
            (False, 0.0, 5, "--live"),
            (True, 3.0, 5, "xvda"),
            (True, 0.0, 0.1, "no shorter time is possible"),
        ],
    )
    def test_one_that_takes_too_long_is_refused(
        self, world: World, live: bool, disk_seconds: float, allowed: float, way_out: str
    ) -> None:
        case = Case(world)
        case.guest.memory_kb = 2 << 20
        world.expected_seconds = disk_seconds
        for run in (operations.preview_create, operations.create):
            with pytest.raises(Refused, match=f"max_downtime allows {allowed:g} s: .*{way_out}"):
                run(world.host, "vm1", WANTED, live=live, max_downtime=allowed)
        case.assert_as_before()
        self.preview(world, live=live, max_downtime=100)


@pytest.mark.parametrize(
    ("live", "rate", "says"),
    [(False, 20.0, "--live"), (True, 0.5, "at least 1"), (True, float("nan"), "at least 1")],
)
def test_a_rate_that_is_of_no_use_is_refused(
    world: World, live: bool, rate: float, says: str
) -> None:
    case = Case(world)
    for run in (operations.preview_create, operations.create):
        with pytest.raises(UsageError, match=says):
            run(world.host, "vm1", WANTED, live=live, max_rate=rate)
    case.assert_as_before()


def test_a_live_snapshot_is_written_no_faster_than_asked(world: World) -> None:
    case = Case(world)
    case.guest.stream = written.stream_of(False, written.in_order(1024))
    begun = time.monotonic()
    operations.create(world.host, "vm1", WANTED, live=True, max_rate=8)
    assert time.monotonic() - begun > 2 / 8 * 0.7  # half of the memory, before the suspend


@pytest.mark.parametrize("reported", [False, True])
def test_no_limit_holds_while_the_guest_is_suspended(world: World, reported: bool) -> None:
    """Whether libxl's report of the suspend comes or is lost."""
    case = Case(world, live=True)

    def suspend() -> None:
        case.guest.suspended = True
        if reported:
            creation._suspending(Progress("domain now suspended"))

    case.guest.stream = written.stream_of(False, written.in_order(3000))
    case.guest.while_suspending = suspend
    plan = replace(case.plan, request=replace(case.plan.request, max_rate=4))
    creation = Creation(plan, cancel=case.cancel)
    begun = time.monotonic()
    creation.run()
    took = time.monotonic() - begun
    first_half_s = 6 / 4
    assert first_half_s * 0.7 < took < 2 * first_half_s * 0.7


@pytest.mark.parametrize("verb", ["resume", "undo xvda"])
def test_a_second_ctrl_c_does_not_stop_the_undo(world: World, verb: str) -> None:
    case = Case(world)
    case.world.fail("create xvdb", KeyboardInterrupt())
    real = case.world.doing
    calls: list[str] = []

    @contextmanager
    def once(what: str) -> Iterator[None]:
        if what == verb and not calls:
            calls.append(what)
            raise KeyboardInterrupt
        with real(what):
            yield

    case.world.doing = once  # type: ignore[method-assign,assignment]
    case.fails(Interrupted)
    assert calls
    case.assert_as_before()


def test_a_journal_of_another_operation_is_left_alone(world: World) -> None:
    case = Case(world)
    other = revert_entry(name="other", destroy_begun=True)
    case.journal.write(other)
    assert case.fails().step == "journal"
    assert case.journal.read() == other
