"""Caller and worker: if one of them dies, the other notices, and nothing is left behind."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap import api
from pyxlsnap.api import clones
from pyxlsnap.cancel import Cancel
from pyxlsnap.create.operation import read_cfgfile
from pyxlsnap.errors import (
    AlreadyExists,
    Interrupted,
    NeedsAttention,
    OperationFailed,
    PyxlsnapError,
    UsageError,
    WorkerDied,
)
from pyxlsnap.model import DiskRequest, RunState, SnapshotConfig
from pyxlsnap.request import CreateRequest
from pyxlsnap.results import Artefact, DomainEvent, PlannedDisk, Progress, Recovered
from pyxlsnap.serialize import log_from_plain, log_to_plain
from pyxlsnap.worker.channel import Channel
from tests.unit.support.scenarios import apart, deaths, logs, ordinary, watches
from tests.unit.support.standin import StandIn, kill_by_progress
from tests.unit.support.standin_site import Call
from tests.unit.support.values import UUID
from tests.unit.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


class TestResult:
    def test_comes_back_as_it_was(self, worker: StandIn) -> None:
        worker.set(ordinary.taken)
        snapshot = api.create_snapshot("vm1")
        assert (snapshot.name, snapshot.domid, snapshot.uuid) == ("snap", 7, UUID)
        assert snapshot.artefacts == (Artefact("cfgfile", "/c", "rm /c"),)
        assert snapshot.left_out == {"hdc": "empty"}
        assert snapshot.warnings == ("careful",)
        assert snapshot.seconds_suspended == 0.25
        assert snapshot.state is RunState.PAUSED

    def test_the_request_arrives_as_it_was(self, worker: StandIn) -> None:
        worker.set(ordinary.says_what_was_asked)
        config = SnapshotConfig("snap", "ä\n", "/m", (DiskRequest("xvda"),))
        api.create_snapshot("vm1", config=config, live=True)
        assert worker.said() == repr(("vm1", config, True))

    def test_errors_come_back_as_they_were(self, worker: StandIn) -> None:
        worker.set(ordinary.exists)
        with pytest.raises(AlreadyExists, match="taken") as caught:
            api.create_snapshot("vm1")
        assert caught.value.where == "xvda"

    def test_a_bug_is_an_internal_error_and_logged(
        self, worker: StandIn, caplog: pytest.LogCaptureFixture
    ) -> None:
        worker.set(ordinary.has_a_bug)
        with pytest.raises(PyxlsnapError, match="internal error: RuntimeError: a bug"):
            api.create_snapshot("vm1")
        assert [(r.name, r.levelname) for r in caplog.records] == [("pyxlsnap.worker", "ERROR")]

    def test_progress_arrives_in_order_on_the_callers_thread(self, worker: StandIn) -> None:
        worker.set(ordinary.five_hundred_reports)
        seen: list[tuple[int, int]] = []
        api.create_snapshot(
            "vm1", on_progress=lambda p: seen.append((p.bytes_done, threading.get_ident()))
        )
        assert seen == [(n, threading.get_ident()) for n in range(500)]

    def test_log_records_arrive_with_level_and_extras(
        self, worker: StandIn, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "pyxlsnap")
        worker.set(logs.error_of_libxl)
        api.create_snapshot("vm1")
        (record,) = [r for r in caplog.records if r.name == "pyxlsnap.libxl"]
        assert (record.levelno, record.getMessage()) == (logging.ERROR, "50% x")
        assert vars(record)["domain"] == "vm1"

    def test_recover_says_what_was_done(self, worker: StandIn) -> None:
        worker.set()
        assert api.recover(UUID) == Recovered(("recovered",), rolled_back=True)


class TestProcess:
    def test_is_apart_from_its_caller(self, worker: StandIn) -> None:
        worker.set(apart.says_how)
        api.create_snapshot("vm1")
        assert worker.said() == repr((True, "/", os.getpid(), True))

    def test_has_sigchld_at_its_default_whatever_the_caller_does(self, worker: StandIn) -> None:
        worker.set(apart.has_sigchld_at_its_default)
        previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            assert api.create_snapshot("vm1").name == "snap"
        finally:
            signal.signal(signal.SIGCHLD, previous)

    def test_its_stdout_is_not_the_callers(
        self, worker: StandIn, capfd: pytest.CaptureFixture[str]
    ) -> None:
        worker.set(apart.noisy)
        api.create_snapshot("vm1")
        assert capfd.readouterr() == ("", "")


def seen(worker: StandIn) -> Callable[[Progress], None]:
    """Tell the worker that the last of its phases has come."""

    def on_progress(progress: Progress) -> None:
        if progress.phase not in ("checking", "suspend"):
            (worker.here / "seen").touch()

    return on_progress


class TestTheWorkerDies:
    def test_before_it_has_touched_anything(self, worker: StandIn) -> None:
        worker.set(deaths.without_the_lock)
        start = time.monotonic()
        with pytest.raises(OperationFailed, match="killed by signal 9; everything is as") as e:
            api.create_snapshot("vm1", on_progress=kill_by_progress)
        assert time.monotonic() - start < 10
        assert isinstance(e.value.__cause__, WorkerDied)
        assert not (worker.here / "recovered").exists()

    def test_with_the_lock_and_its_supervisor_recovers(self, worker: StandIn) -> None:
        """The recovery takes the lock, so all copies of the lock must be released."""
        worker.set(deaths.with_the_lock)
        with pytest.raises(OperationFailed) as caught:
            api.create_snapshot("vm1", on_progress=kill_by_progress)
        assert type(caught.value) is OperationFailed
        assert caught.value.undone == ("recovered",)
        assert worker.said("recovered") == UUID

    def test_and_a_guest_that_ran_meanwhile_is_not_called_as_before(self, worker: StandIn) -> None:
        worker.set(deaths.with_the_lock, recover=deaths.paused_again)
        with pytest.raises(OperationFailed, match="rolled back: vm1 is paused again") as caught:
            api.create_snapshot("vm1", on_progress=kill_by_progress)
        assert "as before" not in str(caught.value)

    def test_while_it_closes_libxl_and_the_result_is_there_all_the_same(
        self, worker: StandIn
    ) -> None:
        worker.set(ordinary.taken, close=deaths.aborted_in_closing)
        assert api.create_snapshot("vm1").name == "snap"

    def test_in_the_middle_of_a_message(self, worker: StandIn) -> None:
        worker.set(deaths.in_the_middle_of_a_message)
        with pytest.raises(OperationFailed, match="signal 9") as caught:
            api.create_snapshot("vm1", on_progress=lambda _: (worker.here / "cut off").touch())
        assert caught.value.undone == ("recovered",)

    def test_and_so_does_its_supervisor_and_its_caller_recovers(self, worker: StandIn) -> None:
        worker.set(deaths.with_its_supervisor)

        def kill_both(progress: Progress) -> None:
            (worker_pid,) = children(progress.bytes_done)
            os.kill(progress.bytes_done, signal.SIGKILL)
            os.kill(worker_pid, signal.SIGKILL)

        with pytest.raises(OperationFailed, match="signal 9; everything is as") as caught:
            api.create_snapshot("vm1", on_progress=kill_both)
        assert caught.value.undone == ("recovered",)

    def test_not_when_only_its_supervisor_does(self, worker: StandIn) -> None:
        worker.set(deaths.only_the_supervisor)
        assert api.create_snapshot("vm1").name == "snap"
        assert not (worker.here / "recovered").exists()

    def test_and_its_caller_is_dead_already(self, worker: StandIn) -> None:
        worker.set(deaths.after_its_caller)
        code = "from pyxlsnap import create_snapshot as c; c('vm1')"
        done = subprocess.run([sys.executable, "-c", code])
        assert done.returncode == -signal.SIGKILL
        assert eventually((worker.here / "recovered").exists)

    def test_and_a_revert_is_finished_by_its_supervisor(
        self, worker: StandIn, tmp_path: Path
    ) -> None:
        worker.set(revert=deaths.with_the_lock_by_itself, recover=deaths.finished_a_revert)
        (tmp_path / "a.cfg").write_text("memory_path = '/m'\n")
        reverted = api.revert_snapshot("vm1", tmp_path / "a.cfg")
        assert (reverted.domid, reverted.state, reverted.disks) == (9, RunState.PAUSED, ("xvda",))
        (first, said) = reverted.warnings
        assert first == "w"
        assert "was killed by signal 9" in said
        assert "finished" in said

    def test_and_a_delete_is_finished_by_its_supervisor(
        self, worker: StandIn, tmp_path: Path
    ) -> None:
        worker.set(delete=deaths.with_the_lock_by_itself, recover=deaths.finished_a_delete)
        (tmp_path / "a.cfg").write_text("memory_path = '/m'\n")
        deleted = api.delete_snapshot(tmp_path / "a.cfg")
        assert deleted.lines == ("removed /c",)
        (first, said) = deleted.warnings
        assert first == "w"
        assert "was killed by signal 9; a recovery finished the delete" in said

    def test_and_a_delete_that_had_deleted_nothing_is_an_error(
        self, worker: StandIn, tmp_path: Path
    ) -> None:
        worker.set(delete=deaths.with_the_lock_by_itself, recover=deaths.deleted_nothing)
        (tmp_path / "a.cfg").write_text("memory_path = '/m'\n")
        with pytest.raises(OperationFailed, match="everything is as before") as caught:
            api.delete_snapshot(tmp_path / "a.cfg")
        assert caught.value.undone == ("nothing was deleted",)

    def test_after_its_work_was_done_and_that_is_not_called_undone(self, worker: StandIn) -> None:
        worker.set(deaths.with_the_lock, recover=deaths.found_done)
        with pytest.raises(NeedsAttention, match="signal 9; recovered") as caught:
            api.create_snapshot("vm1", on_progress=kill_by_progress)
        assert caught.value.left == ("recovered",)

    def test_in_its_preparations_and_nothing_is_unreported(self, worker: StandIn) -> None:
        """A clone prepares before it has a journal: a recovery finds nothing to do."""
        for death in (deaths.in_its_preparations, deaths.while_it_waits_in_its_checks):
            worker.set(death, recover=deaths.found_nothing)
            with pytest.raises(OperationFailed, match="everything is as before") as caught:
                api.create_snapshot("vm1", on_progress=seen(worker))
            assert type(caught.value) is OperationFailed
            (worker.here / "seen").unlink()

    def test_after_it_had_begun_and_nothing_is_found(self, worker: StandIn) -> None:
        """It may have finished, or undone, what it did."""
        worker.set(deaths.while_it_waits_in_an_undo, recover=deaths.found_nothing)
        with pytest.raises(NeedsAttention, match="died before reporting the result"):
            api.create_snapshot("vm1", on_progress=seen(worker))

    def test_while_a_child_of_the_caller_has_copies_of_everything(self, worker: StandIn) -> None:
        """A daemon that forks without exec: its child keeps our descriptors open."""
        worker.set(deaths.with_the_lock)
        children: list[int] = []

        def fork_and_kill(progress: Progress) -> None:
            if progress.phase == "pid" and not children:
                if not (child := os.fork()):
                    time.sleep(60)
                    os._exit(0)
                children.append(child)
            kill_by_progress(progress)

        try:
            with pytest.raises(OperationFailed) as caught:
                api.create_snapshot("vm1", on_progress=fork_and_kill)
            assert caught.value.undone == ("recovered",)
        finally:
            os.kill(children[0], signal.SIGKILL)
            os.waitpid(children[0], 0)

    def test_and_the_recovery_needs_a_person(self, worker: StandIn) -> None:
        worker.set(deaths.with_the_lock, recover=deaths.recovery_needs_a_person)
        with pytest.raises(NeedsAttention, match="signal 9; stuck") as caught:
            api.create_snapshot("vm1", on_progress=kill_by_progress)
        assert (caught.value.left, caught.value.finish) == (("a",), "do this")

    def test_and_so_does_the_recovery(self, worker: StandIn) -> None:
        worker.set(deaths.with_the_lock, recover=deaths.recovery_dies)
        with pytest.raises(NeedsAttention, match="signal 6") as caught:
            api.create_snapshot("vm1", on_progress=kill_by_progress)
        assert caught.value.finish == f"pyxlsnap snapshot-recover {UUID}"
        assert worker.said("tries") == "xx"  # its supervisor's, and its caller's

    def test_what_it_wrote_to_stderr_is_in_the_error(self, worker: StandIn) -> None:
        worker.set(deaths.aborted)
        with pytest.raises(OperationFailed, match="signal 6: libxl: Assertion failed") as caught:
            api.create_snapshot("vm1")
        died = caught.value.__cause__
        assert isinstance(died, WorkerDied)
        assert "first\nlibxl: Assertion failed\n" in died.stderr

    def test_of_a_long_stderr_the_end_is_kept(self, worker: StandIn) -> None:
        worker.set(deaths.with_a_long_stderr)
        with pytest.raises(OperationFailed, match="ended with status 3: the end") as caught:
            api.create_snapshot("vm1")
        assert isinstance(caught.value.__cause__, WorkerDied)
        assert len(caught.value.__cause__.stderr) == 4096

    def test_before_it_has_read_the_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Dead(subprocess.Popen[bytes]):
            def __init__(self, command: list[str], **options: object) -> None:
                super().__init__(["false"], **options)  # type: ignore[call-overload]
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

        monkeypatch.setattr(subprocess, "Popen", Dead)
        with pytest.raises(OperationFailed, match="worker process ended with status 1"):
            api.create_snapshot("vm1")


class TestCancel:
    def test_from_another_thread(self, worker: StandIn) -> None:
        worker.set(ordinary.rolled_back)
        cancel = Cancel()
        threads: list[threading.Thread] = []

        def later(_: Progress) -> None:
            threads.append(threading.Thread(target=cancel.set))
            threads[0].start()

        with pytest.raises(Interrupted) as caught:
            api.create_snapshot("vm1", on_progress=later, cancel=cancel)
        threads[0].join()
        assert caught.value.step == "suspend"
        assert (worker.here / "rolled back").exists()

    def test_beforehand(self, worker: StandIn) -> None:
        worker.set(ordinary.interrupted)
        cancel = Cancel()
        cancel.set()
        with pytest.raises(Interrupted, match="before it began"):
            api.create_snapshot("vm1", cancel=cancel)

    @pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt()])
    def test_by_an_exception_of_the_progress_callback(
        self, worker: StandIn, error: BaseException
    ) -> None:
        worker.set(ordinary.rolled_back)

        def raises(_: Progress) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            api.create_snapshot("vm1", on_progress=raises)
        assert caught.value is error
        assert (worker.here / "rolled back").exists()

    def test_by_one_that_comes_too_late(
        self, worker: StandIn, caplog: pytest.LogCaptureFixture
    ) -> None:
        worker.set(ordinary.taken_though_cancelled)
        error = RuntimeError("a bug")

        def raises(_: Progress) -> None:
            raise error

        with pytest.raises(RuntimeError):
            api.create_snapshot("vm1", on_progress=raises)
        assert error.__notes__ == ["too late to cancel the create of vm1: it is done (/c)"]
        assert caplog.messages == error.__notes__
        assert vars(caplog.records[0])["operation"] == "create"

    def test_a_check_is_not_reported_as_done(self, worker: StandIn) -> None:
        worker.set(feasibility=ordinary.possible_with_a_warning)

        class Interrupts(logging.Handler):
            def emit(self, _: logging.LogRecord) -> None:
                raise KeyboardInterrupt

        handler, logger = Interrupts(), logging.getLogger("pyxlsnap")
        logger.addHandler(handler)
        try:
            with pytest.raises(KeyboardInterrupt) as caught:
                api.can_snapshot("vm1")
        finally:
            logger.removeHandler(handler)
        assert not hasattr(caught.value, "__notes__")

    def test_a_rollback_that_needs_a_person_is_not_hidden_by_it(self, worker: StandIn) -> None:
        worker.set(ordinary.needs_a_person)

        def raises(_: Progress) -> None:
            raise RuntimeError("a bug")

        with pytest.raises(NeedsAttention, match="stuck") as caught:
            api.create_snapshot("vm1", on_progress=raises)
        assert isinstance(caught.value.__cause__, RuntimeError)

    def test_the_callback_is_not_called_again_after_it_raised(self, worker: StandIn) -> None:
        worker.set(ordinary.reports_then_interrupted)
        calls: list[int] = []

        def raises(progress: Progress) -> None:
            calls.append(progress.bytes_done)
            raise RuntimeError

        with pytest.raises(RuntimeError):
            api.create_snapshot("vm1", on_progress=raises)
        assert calls == [0]

    def test_by_the_callers_death(self, worker: StandIn) -> None:
        worker.set(ordinary.rolled_back)
        code = "from pyxlsnap import create_snapshot as c\nc('vm1', on_progress=print)"
        with subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE) as caller:
            assert caller.stdout
            assert caller.stdout.readline()
            assert not (worker.here / "rolled back").exists()
            caller.kill()
        assert eventually((worker.here / "rolled back").exists)

    @pytest.mark.parametrize(
        "scenario",
        [ordinary.tells_its_pid_and_rolls_back, ordinary.tells_its_supervisors_pid_and_rolls_back],
    )
    def test_by_a_sigterm_to_the_worker_or_its_supervisor(
        self, worker: StandIn, scenario: Callable[[Call], NoReturn]
    ) -> None:
        worker.set(scenario)
        with pytest.raises(Interrupted):
            api.create_snapshot("vm1", on_progress=lambda p: os.kill(p.bytes_done, signal.SIGTERM))
        assert (worker.here / "rolled back").exists()


def test_a_caller_that_does_not_read_does_not_hold_up_the_worker(worker: StandIn) -> None:
    """A stopped caller must not keep a guest suspended."""
    worker.set(ordinary.many_long_reports)
    stopped: list[bool] = []

    def stops(_: Progress) -> None:
        if not stopped:
            stopped.append(eventually((worker.here / "went on").exists))

    api.create_snapshot("vm1", on_progress=stops)
    assert stopped == [True]


class TestRequest:
    def test_config_and_cfgfile_exclude_each_other(self) -> None:
        with pytest.raises(UsageError, match="either config"):
            api.create_snapshot("vm1", config=SnapshotConfig(), name="snap")

    def test_a_relative_cfgfile_is_of_the_callers_directory(
        self, worker: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        worker.set(ordinary.says_what_is_wanted)
        (tmp_path / "a.cfg").write_text("name = 'snap'\nmemory_path = 'm'\n")
        monkeypatch.chdir(tmp_path)
        api.create_snapshot("vm1", cfgfile="a.cfg")
        # and a relative memory file is beside it, where a revert looks for it
        assert worker.said() == repr(SnapshotConfig("snap", None, str(tmp_path / "m")))

    def test_a_relative_memory_path_is_of_the_callers_directory(
        self, worker: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        worker.set(ordinary.says_what_is_wanted)
        monkeypatch.chdir(tmp_path)
        api.create_snapshot("vm1", config=SnapshotConfig(memory_path="m"))
        assert worker.said() == repr(SnapshotConfig(memory_path=str(tmp_path / "m")))

    @pytest.mark.parametrize("name", [None, "same"])
    def test_the_cfgfiles_name_goes_first_with_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str | None
    ) -> None:
        cfg = tmp_path / "a.cfg"
        cfg.write_text("name = 'same'\n")

        def read(said: str | None) -> str | None:
            config = SnapshotConfig(name=said)
            request = CreateRequest(domain="vm1", cfgfile=str(cfg), config=config)
            return read_cfgfile(request).config.name

        assert read(name) == "same"
        assert caplog.messages == []
        assert read("other") == "same"
        assert caplog.messages == ["the cfgfile names the snapshot same: other is ignored"]

    def test_the_name_alone_is_used(self, tmp_path: Path) -> None:
        cfg = tmp_path / "a.cfg"
        cfg.write_text("description = 'd'\n")
        request = CreateRequest(domain="vm1", cfgfile=str(cfg), config=SnapshotConfig(name="snap"))
        assert read_cfgfile(request).config == SnapshotConfig("snap", "d")


class TestWire:
    @pytest.fixture
    def ends(self) -> Iterator[tuple[Channel, Channel]]:
        a, b = (Channel(s) for s in socket.socketpair())
        yield a, b
        a.close()
        b.close()

    def test_messages_keep_their_order_and_bounds(self, ends: tuple[Channel, Channel]) -> None:
        ours, theirs = ends
        messages = [{"n": n, "text": "ä\n" * n} for n in range(50)]
        for message in messages:
            ours.send(message)
        assert [theirs.receive() for _ in messages] == messages

    def test_a_big_message_is_whole(self, ends: tuple[Channel, Channel]) -> None:
        ours, theirs = ends
        message = {"text": "x" * 1_000_000}
        sender = threading.Thread(target=ours.send, args=(message,))
        sender.start()
        assert theirs.receive() == message
        sender.join()

    def test_the_end_is_none(self, ends: tuple[Channel, Channel]) -> None:
        ours, theirs = ends
        ours.send({"last": 1})
        ours.close()
        assert theirs.receive() == {"last": 1}
        assert theirs.receive() is None
        with pytest.raises(OSError):  # noqa: PT011
            theirs.send({})

    def test_descriptors_come_along_and_are_closed_with_it(
        self, ends: tuple[Channel, Channel]
    ) -> None:
        ours, theirs = ends
        read, write = os.pipe()
        ours.send({"lock": 1}, write)
        ours.send({"lock": 2}, write)
        os.close(write)
        assert [theirs.receive(), theirs.receive()] == [{"lock": 1}, {"lock": 2}]
        os.set_blocking(read, False)
        with pytest.raises(BlockingIOError):  # a writer is left
            os.read(read, 1)
        theirs.close_fds()
        assert os.read(read, 1) == b""
        os.close(read)

    @given(
        st.text(max_size=30), st.sampled_from([10, 20, 30, 40, 50]), st.text(max_size=5) | st.none()
    )
    def test_log_records_survive(self, text: str, level: int, domain: str | None) -> None:
        extra = {} if domain is None else {"domain": domain}
        record = logging.getLogger("x").makeRecord("x", level, "", 0, text, (), None, extra=extra)
        there = log_from_plain(log_to_plain(record))
        assert there.getMessage() == record.getMessage()
        assert (there.levelno, there.name, there.created) == (level, "x", record.created)
        assert getattr(there, "domain", None) == domain


class TestMonitor:
    """A watch that lasts as long as the call."""

    def test_events_arrive_on_the_callers_thread(self, worker: StandIn) -> None:
        worker.set(monitor=watches.three_reboots)
        seen: list[tuple[DomainEvent, int]] = []
        api.monitor_domain("vm1", on_event=lambda e: seen.append((e, threading.get_ident())))
        assert seen == [(watches.REBOOTED, threading.get_ident())] * 3

    def test_ends_when_it_is_cancelled(self, worker: StandIn) -> None:
        worker.set(monitor=watches.until_cancelled)
        cancel = Cancel()
        with pytest.raises(Interrupted):
            api.monitor_domain("vm1", on_event=lambda _: cancel.set(), cancel=cancel)

    def test_what_the_callback_raises_ends_it(self, worker: StandIn) -> None:
        worker.set(monitor=watches.until_cancelled)

        def fail(_: DomainEvent) -> None:
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            api.monitor_domain("vm1", on_event=fail)

    def test_the_death_of_the_worker_is_reported(self, worker: StandIn) -> None:
        worker.set(monitor=deaths.killed_while_it_watches)
        with pytest.raises(NeedsAttention, match="killed by signal 9; no process watches vm1") as e:
            api.monitor_domain("vm1")
        assert e.value.left == ("no process watches vm1",)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_worker_knows_whether_to_start_a_monitor(worker: StandIn, wanted: bool) -> None:
    worker.set(ordinary.says_who_watches)
    api.create_snapshot("vm1", monitor=wanted)
    assert ("start_monitor" in worker.said()) is wanted


class TestPlans:
    def test_come_back_as_they_were(self, worker: StandIn) -> None:
        worker.set(ordinary.taken)
        (worker.here / "c.cfg").write_text('name="snap"')
        plan = api.plan_create("vm1", live=True)
        assert (plan.operation, plan.state, plan.warnings) == ("create", RunState.RUNNING, ())
        assert plan.disks == (PlannedDisk("xvda", "/a", "qcow2", ""),)
        assert api.plan_revert("vm1", worker.here / "c.cfg") == plan
        assert clones.plan_clone(worker.here / "c.cfg", "c1") == plan
