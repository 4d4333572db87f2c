"""Watches of a domain in a worker."""

import os
import signal
from pathlib import Path
from typing import NoReturn

from pyxlsnap.monitor.launch import READY
from pyxlsnap.results import DomainEvent, Snapshot
from tests.unit.support.scenarios.ordinary import SNAPSHOT
from tests.unit.support.standin_site import Call, die
from tests.unit.support.values import UUID
from tests.unit.support.waiting import eventually

REBOOTED = DomainEvent("vm1", UUID, 3, "reboot", "restart", 4)


def three_reboots(call: Call) -> None:
    for _ in range(3):
        call.on_event(REBOOTED)


def until_cancelled(call: Call) -> None:
    call.on_event(REBOOTED)
    call.wait_for_cancel()
    call.cancel.check()


def started_under_the_lock(call: Call) -> Snapshot:
    """A snapshot that starts a watching process."""
    call.take_lock()
    assert call.start_monitor
    call.start_monitor(UUID)
    return SNAPSHOT


def waits_and_begins(call: Call) -> Snapshot:
    """A snapshot whose watching process waits for a while."""
    call.take_lock()
    assert call.prepare_monitor
    coming = call.prepare_monitor(UUID)
    assert not (call.here / "pid").exists()
    coming.begin()
    assert coming.has_begun()
    coming.close()
    return SNAPSHOT


def waits_in_vain(call: Call) -> Snapshot:
    assert call.prepare_monitor
    call.prepare_monitor(UUID).close()
    call.wait_for("not begun")
    return SNAPSHOT


def waits_and_is_killed(call: Call) -> NoReturn:
    assert call.prepare_monitor
    coming = call.prepare_monitor(UUID)
    call.mark("waits")
    die()
    coming.close()


def waits_without_a_supervisor(call: Call) -> Snapshot:
    """Nobody starts the process, so another way must be taken."""
    os.kill(os.getppid(), signal.SIGKILL)
    call.wait_for("end")
    assert call.prepare_monitor
    coming = call.prepare_monitor(UUID)
    coming.begin()
    call.say(coming.has_begun())
    coming.close()
    return SNAPSHOT


def started_without_a_supervisor(call: Call) -> Snapshot:
    os.kill(os.getppid(), signal.SIGKILL)
    call.wait_for("end")
    return started_under_the_lock(call)


def until_told(call: Call) -> None:
    """In the watching process: say what it has, and watch until there is a file."""
    fds = [int(link.name) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    handlers = map(signal.getsignal, (signal.SIGTERM, signal.SIGINT))
    found = {
        "command": Path("/proc/self/cmdline").read_text().split("\0")[:-1],
        "session": os.getsid(0) == os.getpid(),
        "alone": eventually(lambda: "pyxlsnap" not in _parent()),
        "files": sorted(fd for fd in fds if fd != call.writer),
        "handled": [handler for handler in handlers if callable(handler)],
    }
    call.say(found)
    (call.here / "pid").write_text(str(os.getpid()))
    os.write(call.writer, READY)
    os.close(call.writer)
    call.wait_for("end")


def _parent() -> str:
    """The command line of the parent: the process that made this one ends at once."""
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the second: it ended after the open
        return "pyxlsnap"  # it has just ended: ask again


def does_not_begin(call: Call) -> None:
    os.write(call.writer, b"no such domain")


def breaks(call: Call) -> NoReturn:
    raise RuntimeError("a bug")
