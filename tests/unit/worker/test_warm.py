"""Many reverts through one warm process: each is a revert like any other, and nothing grows."""

import ast
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyxlsnap import Reverter, revert_snapshot
from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import (
    ClosedError,
    Interrupted,
    OperationFailed,
    PyxlsnapError,
    Refused,
    UsageError,
)
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.linux.processes import Process
from pyxlsnap.request import RevertRequest
from pyxlsnap.results import Progress
from pyxlsnap.worker import warm as warm_process
from pyxlsnap.worker import warm_client
from pyxlsnap.worker.channel import Channel
from tests.host_state import children, children_of
from tests.unit.support.processes import lives
from tests.unit.support.scenarios import ordinary, warm
from tests.unit.support.scenarios.ordinary import REVERTED
from tests.unit.support.standin import StandIn
from tests.unit.support.values import UUID
from tests.unit.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("nothing_is_left")

REVERTS, FIRST = 50, 10
GROWTH_KIB = 1024


@pytest.fixture
def cfgfile(tmp_path: Path) -> Path:
    path = tmp_path / "snap.cfg"
    path.write_text('name = "snap"\nmemory_path = "/nowhere/snap.save"\n')
    return path


@pytest.fixture
def reverter(worker: StandIn, cfgfile: Path) -> Iterator[Reverter]:
    worker.set(revert=warm.locks_and_ends)
    with Reverter("vm1", cfgfile) as found:
        yield found


@dataclass(frozen=True)
class Figures:
    """What a process has."""

    descriptors: int
    threads: int
    children: int
    rss_kib: int

    @classmethod
    def of(cls, pid: int) -> "Figures":
        here = Path(f"/proc/{pid}")
        status = (here / "status").read_text()
        threads = len(list((here / "task").iterdir()))
        rss = re.search(r"VmRSS:\s+(\d+)", status)
        assert rss
        return cls(len(list((here / "fd").iterdir())), threads, len(children_of(pid)), int(rss[1]))

    def assert_not_more_than(self, before: "Figures") -> None:
        assert self.descriptors <= before.descriptors
        assert self.threads <= before.threads
        assert self.children <= before.children
        assert self.rss_kib - before.rss_kib <= GROWTH_KIB


def at_rest(pid: int) -> Figures | None:
    """What a process has that waits; ``None``: it runs, or had run before all was counted."""
    status = Path(f"/proc/{pid}/status")  # it counts how often the process has waited
    before = status.read_text()
    now = Figures.of(pid)
    waits = "State:\tS" in before and (now.children, now.threads) == (0, 1)
    return now if waits and status.read_text() == before else None


def test_fifty_reverts_grow_by_nothing(reverter: Reverter) -> None:
    warm_pids: set[int] = set()

    def note(progress: Progress) -> None:
        warm_pids.add(progress.bytes_done)

    figures: list[tuple[Figures, Figures]] = []
    for _ in range(REVERTS):
        assert reverter.revert(on_progress=note) == REVERTED
        (pid,) = children()
        warm_one = eventually(partial(at_rest, pid))
        assert warm_one
        figures.append((Figures.of(os.getpid()), warm_one))
    assert warm_pids == set(children())
    for last, first in zip(figures[-1], figures[FIRST - 1], strict=True):
        last.assert_not_more_than(first)


def test_a_worker_has_nothing_of_the_warm_process(worker: StandIn, cfgfile: Path) -> None:
    worker.set(revert=warm.says_what_it_has)
    with Reverter("vm1", cfgfile) as reverter:
        reverter.revert()
    assert ast.literal_eval(worker.said()) == {
        "name": "xlsnap-worker",
        "session": True,
        "cwd": "/",
        "files": [],
        "streams": ["/dev/null", "/dev/null"],
        "SIGINT": True,
        "SIGUSR1": True,
        "root": [30, 0],
    }


def test_nothing_is_locked_between_two(reverter: Reverter, worker: StandIn) -> None:
    for _ in range(2):
        reverter.revert()
        lock = DomainLock(UUID, domain="vm1", directory=worker.here / "run", wait_s=10)
        lock.release()


def test_a_warm_process_that_was_killed_is_replaced(reverter: Reverter) -> None:
    reverter.revert()
    (pid,) = children()
    os.kill(pid, signal.SIGKILL)
    assert reverter.revert() == REVERTED
    (other,) = children()
    assert other != pid


def test_a_revert_goes_on_without_the_warm_process(worker: StandIn, cfgfile: Path) -> None:
    worker.set(revert=warm.kills_the_warm_process)
    with Reverter("vm1", cfgfile) as reverter:
        assert [reverter.revert(), reverter.revert()] == [REVERTED, REVERTED]


@pytest.mark.parametrize("operation", [warm.dies, warm.dies_with_its_supervisor])
def test_a_revert_that_is_killed_is_recovered_from(
    worker: StandIn, cfgfile: Path, operation: object
) -> None:
    def kill(progress: Progress) -> None:
        if progress.phase == "supervisor":
            task = Path(f"/proc/{progress.bytes_done}/task/{progress.bytes_done}/children")
            for pid in (progress.bytes_done, *map(int, task.read_text().split())):
                os.kill(pid, signal.SIGKILL)

    worker.set(revert=operation, recover=ordinary.recovered)  # type: ignore[arg-type]
    with Reverter("vm1", cfgfile) as reverter:
        for _ in range(2):
            with pytest.raises(OperationFailed, match=r"everything is as before|rolled back"):
                reverter.revert(on_progress=kill)
            assert (worker.here / "recovered").read_text() == UUID
            (worker.here / "recovered").unlink()


def test_a_cancelled_revert_leaves_the_process_warm(worker: StandIn, cfgfile: Path) -> None:
    worker.set(revert=warm.tells_all_and_rolls_back)
    with Reverter("vm1", cfgfile) as reverter:
        before = children()
        for _ in range(2):
            cancel = Cancel()
            with pytest.raises(Interrupted):
                reverter.revert(cancel=cancel, on_progress=lambda _, cancel=cancel: cancel.set())  # type: ignore[misc]
            (worker.here / "rolled back").unlink()
        assert children() == before


PROGRAM = """
import sys
from pyxlsnap import Reverter
with Reverter("vm1", sys.argv[1]) as reverter:
    reverter.revert(on_progress=lambda _: print("begun", flush=True))
"""


def test_all_of_it_ends_when_the_caller_is_killed(worker: StandIn, cfgfile: Path) -> None:
    worker.set(revert=warm.tells_all_and_rolls_back)
    words = [sys.executable, "-c", PROGRAM, str(cfgfile)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout
        assert caller.stdout.readline() == "begun\n"
        caller.kill()
    assert eventually(lambda: (worker.here / "rolled back").exists())
    pids = (worker.here / "pids").read_text().split()
    assert len(pids) == 3
    assert eventually(lambda: not any(lives(int(pid)) for pid in pids))


def test_a_copy_of_the_host_has_a_warm_process_of_its_own(reverter: Reverter) -> None:
    reverter.revert()
    (ours,) = children()
    if not (copy := os.fork()):
        status = 1
        try:
            done = reverter.revert() == REVERTED
            theirs = children()
            reverter.close()
            status = 0 if done and len(theirs) == 1 and theirs != [ours] else 1
        finally:
            os._exit(status)
    assert os.waitpid(copy, 0)[1] == 0
    assert lives(ours)
    assert reverter.revert() == REVERTED
    assert children() == [ours]


def test_a_process_that_does_not_answer_is_replaced(
    reverter: Reverter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_client, "_EXIT_S", 0.5)
    reverter.revert()
    (pid,) = children()
    os.kill(pid, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        answer = warm_client._WarmProcess._answer

        def soon(process: warm_client._WarmProcess, cancel: Cancel) -> Any:
            patch.setattr(warm_client, "_ANSWER_S", 0.5 if lives(pid) else 60.0)
            return answer(process, cancel)

        patch.setattr(warm_client._WarmProcess, "_answer", soon)
        assert reverter.revert() == REVERTED
    assert pid not in children()


class LookedAt(Cancel):
    """Tells when a call has looked whether it is cancelled, and waits now."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_at = threading.Event()

    def check(self) -> None:
        super().check()
        self.looked_at.set()


@pytest.fixture
def stopped(reverter: Reverter) -> Iterator[int]:
    """A warm process that does not answer: its pid."""
    reverter.revert()
    (pid,) = children()
    os.kill(pid, signal.SIGSTOP)
    yield pid
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def test_a_call_that_waits_for_an_answer_can_be_cancelled(reverter: Reverter, stopped: int) -> None:
    """The process is killed: it must not make the worker later."""
    cancel = Cancel()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(reverter.revert, cancel=cancel)
        assert eventually(reverter._workers._lock.locked)
        cancel.set()
        with pytest.raises(Interrupted, match="was cancelled before it began"):
            call.result(timeout=20)
    assert not lives(stopped)
    assert reverter.revert() == REVERTED


def test_a_call_that_waits_for_another_one_can_be_cancelled(
    reverter: Reverter, stopped: int
) -> None:
    cancel = LookedAt()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(reverter.revert)
        assert eventually(reverter._workers._lock.locked)
        second = pool.submit(reverter.revert, cancel=cancel)
        assert cancel.looked_at.wait(10)
        cancel.set()
        with pytest.raises(Interrupted, match="was cancelled before it began"):
            second.result(timeout=20)
        os.kill(stopped, signal.SIGCONT)
        assert first.result(timeout=60) == REVERTED
    assert children() == [stopped]


@pytest.mark.parametrize("what", ["libxl_was_replaced", "_release"])
def test_after_an_upgrade_of_the_host_it_makes_no_worker(
    monkeypatch: pytest.MonkeyPatch, cfgfile: Path, what: str
) -> None:
    """Its caller takes the end of the socket for the end of a process that was killed."""
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull) as nothing:
        request = RevertRequest(domain="vm1", cfgfile=str(cfgfile))
        process = warm_process.Warm(Channel(theirs), request)
        caller = Channel(ours)
        caller.send({"stderr": True}, nothing.fileno())
        caller.send({"connection": True}, nothing.fileno())
        monkeypatch.setattr(warm_process, what, lambda: True)
        process.run()
        process._channel.close()
        assert caller.receive() is None


def test_a_descriptor_for_which_there_is_no_room(
    reverter: Reverter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel drops the descriptor, and says nothing."""
    answer = warm_client._WarmProcess._answer

    def dropped(process: warm_client._WarmProcess, cancel: Cancel) -> Any:
        found = answer(process, cancel)
        process._channel.close_fds()
        return found

    monkeypatch.setattr(warm_client._WarmProcess, "_answer", dropped)
    with pytest.raises(Refused, match="cannot be started: Too many open files"):
        reverter.revert()


class TestEnd:
    def test_an_object_that_is_dropped_leaves_nothing(self, worker: StandIn, cfgfile: Path) -> None:
        assert Reverter("vm1", cfgfile).revert() == REVERTED
        gc.collect()
        assert children() == []

    def test_close_does_not_wait_for_a_copy_of_the_host(
        self, worker: StandIn, cfgfile: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The copy has the socket, too."""
        reverter = Reverter("vm1", cfgfile)
        reverter.revert()
        (warm_pid,) = children()
        if not (copy := os.fork()):
            signal.pause()
        killed: list[Process] = []
        monkeypatch.setattr(Process, "kill", killed.append)
        try:
            reverter.close()
            assert (killed, lives(warm_pid)) == ([], False)
        finally:
            os.kill(copy, signal.SIGKILL)
            os.waitpid(copy, 0)

    def test_close_ends_the_process(self, worker: StandIn, cfgfile: Path) -> None:
        reverter = Reverter("vm1", cfgfile)
        assert children() == []
        reverter.open()
        assert len(children()) == 1
        reverter.close()
        reverter.close()
        assert children() == []
        for call in (reverter.open, reverter.revert):
            with pytest.raises(ClosedError, match="make another one"):
                call()

    def test_a_call_that_begins_beside_the_close_starts_no_process(
        self, worker: StandIn, cfgfile: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reverter = Reverter("vm1", cfgfile)
        start = warm_client.WarmWorkers.start

        def closed_meanwhile(
            workers: warm_client.WarmWorkers, *words: Any, cancel: Cancel
        ) -> int | Process:
            reverter.close()
            return start(workers, *words, cancel=cancel)

        monkeypatch.setattr(warm_client.WarmWorkers, "start", closed_meanwhile)
        with pytest.raises(ClosedError, match="this Reverter was closed"):
            reverter.revert()

    def test_of_one_that_was_never_opened(self, cfgfile: Path) -> None:
        Reverter("vm1", cfgfile).close()

    def test_it_is_started_by_the_first_revert_too(self, worker: StandIn, cfgfile: Path) -> None:
        reverter = Reverter("vm1", cfgfile)
        assert reverter.revert() == REVERTED
        reverter.close()


def test_a_wrong_value_is_refused_at_once(cfgfile: Path) -> None:
    with pytest.raises(UsageError, match="running"):
        Reverter("vm1", cfgfile, running="yes")  # type: ignore[arg-type]


def test_a_process_that_cannot_be_started(cfgfile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    reverter = Reverter("vm1", cfgfile)
    with pytest.raises(Refused, match="the process for reverts cannot be started"):
        reverter.open()
    with pytest.raises(Refused, match="the worker process cannot be started"):
        reverter.revert()


def test_a_process_that_ends_at_once(
    cfgfile: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "false").symlink_to("/bin/false")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "false"))
    with Reverter("vm1", cfgfile) as reverter, pytest.raises(PyxlsnapError) as caught:
        reverter.revert()
    with pytest.raises(PyxlsnapError) as cold:
        revert_snapshot("vm1", cfgfile)
    assert (type(caught.value), str(caught.value)) == (type(cold.value), str(cold.value))
    assert "None" not in str(caught.value)


def test_no_more_processes(reverter: Reverter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm process says that it could not be copied; the next revert starts another."""

    def fail(*_: object) -> None:
        raise BlockingIOError(11, "no more processes")

    reverter.revert()
    with monkeypatch.context() as patch:
        patch.setattr(warm_client._WarmProcess, "start_copy", fail)
        with pytest.raises(Refused, match="cannot be started: no more processes"):
            reverter.revert()
    assert reverter.revert() == REVERTED
