"""The watch of a domain that an operation starts: a copy of the supervisor."""

import ast
import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pyxlsnap import api
from pyxlsnap.errors import OperationFailed, PyxlsnapError
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.monitor import launch
from pyxlsnap.results import Snapshot
from pyxlsnap.worker import supervisor
from tests.unit.support.processes import lives
from tests.unit.support.scenarios import watches
from tests.unit.support.standin import StandIn
from tests.unit.support.standin_site import Call
from tests.unit.support.values import UUID
from tests.unit.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("nothing_is_left")
_SYS_RESOURCE = 24


def may_show_another_command() -> bool:
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("CapEff:")
    ]
    return bool(int(line.split()[1], 16) >> _SYS_RESOURCE & 1)


def test_it_goes_on_alone(worker: StandIn) -> None:
    worker.set(watches.started_under_the_lock, watch=watches.until_told)
    api.create_snapshot("vm1")
    found = ast.literal_eval(worker.said())
    shown = ["pyxlsnap.monitor", UUID] if may_show_another_command() else ["pyxlsnap.worker"]
    assert found == {
        "command": [sys.executable, "-P", "-m", *shown],
        "session": True,
        "alone": True,
        "files": [0, 1, 2],
        "handled": [],
    }
    DomainLock(UUID, domain="vm1", directory=worker.here / "run").release()
    pid = int((worker.here / "pid").read_text())
    assert lives(pid)
    (worker.here / "end").touch()
    assert eventually(lambda: not lives(pid))


def test_one_that_waits_goes_on_alone_too(worker: StandIn) -> None:
    worker.set(watches.waits_and_begins, watch=watches.until_told)
    api.create_snapshot("vm1")
    found = ast.literal_eval(worker.said())
    assert (found["session"], found["alone"], found["files"]) == (True, True, [0, 1, 2])
    DomainLock(UUID, domain="vm1", directory=worker.here / "run").release()
    pid = int((worker.here / "pid").read_text())
    assert lives(pid)
    (worker.here / "end").touch()
    assert eventually(lambda: not lives(pid))


@pytest.mark.parametrize("operation", [watches.waits_in_vain, watches.waits_and_is_killed])
def test_one_that_waits_in_vain_ends(
    worker: StandIn, operation: Callable[[Call], Snapshot]
) -> None:
    worker.set(operation, watch=watches.until_told)
    with suppress(OperationFailed):
        api.create_snapshot("vm1")
    assert eventually(lambda: (worker.here / "not begun").exists())
    assert not (worker.here / "pid").exists()


def test_one_that_waits_is_not_there_without_a_supervisor(worker: StandIn) -> None:
    worker.set(watches.waits_without_a_supervisor)
    (worker.here / "end").touch()
    api.create_snapshot("vm1")
    assert worker.said() == "False"


@pytest.mark.parametrize(
    ("watch", "why"),
    [
        (watches.does_not_begin, "no such domain"),
        (watches.breaks, "cannot talk to Xen"),  # then a process of its own is tried
    ],
)
def test_one_that_does_not_begin(worker: StandIn, watch: Callable[[Call], None], why: str) -> None:
    worker.set(watches.started_under_the_lock, watch=watch)
    with pytest.raises(PyxlsnapError, match=f"the watch of {UUID} did not start: {why}"):
        api.create_snapshot("vm1")


def test_no_process_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor says so, and goes on."""

    def fail(_uuid: str, _writer: int, **_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(supervisor, "watch_in_a_copy", fail)
    reader, writer = os.pipe()
    supervisor._start_watch(UUID, writer)
    with os.fdopen(reader, "rb") as pipe, pytest.raises(OperationFailed, match="no more processes"):
        launch.begins(UUID, pipe)


def test_without_a_supervisor_it_is_a_process_of_its_own(worker: StandIn) -> None:
    """Off Xen that one ends at once, and says why."""
    worker.set(watches.started_without_a_supervisor)
    (worker.here / "end").touch()
    with pytest.raises(PyxlsnapError, match=f"the watch of {UUID} did not start: cannot talk"):
        api.create_snapshot("vm1")
