"""Workers that look at their own process, or make a noise."""

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
