"""Workers that will talk to a guest's QEMU: what they and their supervisors have loaded."""

import os
import signal
import sys
from typing import NoReturn

from pyxlsnap.results import Recovered, Snapshot
from pyxlsnap.worker.modules import QMP
from tests.unit.support.scenarios.ordinary import SNAPSHOT
from tests.unit.support.standin_site import Call, die


def _ask(call: Call) -> None:
    before = QMP in sys.modules
    call.will_ask_qemu()
    (call.here / "worker").write_text(repr([before, QMP in sys.modules]))


def qmp_and_dies(call: Call) -> NoReturn:
    _ask(call)
    call.take_lock()
    die()


def qmp_without_a_supervisor(call: Call) -> Snapshot:
    os.kill(os.getppid(), signal.SIGKILL)
    _ask(call)
    return SNAPSHOT


def says_what_the_supervisor_has(call: Call) -> Recovered:
    call.say(QMP in sys.modules)
    return Recovered(("recovered",), rolled_back=True)
