"""Workers that look at their own process, or make a noise."""

import logging
import os
import signal
from pathlib import Path

from pyxlsnap.results import Snapshot
from tests.unit.support.processes import caller
from tests.unit.support.scenarios.ordinary import SNAPSHOT
from tests.unit.support.standin_site import Call


def says_how(call: Call) -> Snapshot:
    default = signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    call.say((os.getsid(0) == os.getppid(), str(Path.cwd()), caller(), default))
    return SNAPSHOT


def has_sigchld_at_its_default(_: Call) -> Snapshot:
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    return SNAPSHOT


def noisy(_: Call) -> Snapshot:
    os.write(1, b"noise")
    os.write(2, b"noise")
    return SNAPSHOT


def says_what_it_has(call: Call) -> Snapshot:
    """Its name, and what it has of its caller's."""
    opened = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)]
    call.say(
        {
            "name": Path("/proc/self/comm").read_text().strip(),
            "session": os.getsid(0) == os.getppid(),
            "cwd": str(Path.cwd()),
            "files": [name for name in opened if name.startswith(str(call.here))],
            "streams": [str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in (0, 1)],
            "SIGINT": handlers[0] == signal.SIG_IGN,
            "SIGUSR1": handlers[1] == signal.SIG_DFL,
            "root": [logging.getLogger().level, len(logging.getLogger().handlers)],
        }
    )
    return SNAPSHOT
