"""Operations that must wait, and let their caller go when it has cancelled."""

from typing import NoReturn

from pyxlsnap.errors import NeedsAttention
from pyxlsnap.results import Recovered, Snapshot
from tests.unit.support.scenarios.ordinary import SNAPSHOT
from tests.unit.support.standin_site import Call, die


def _waits(call: Call) -> None:
    call.report("waiting for QEMU to answer")
    call.mark("waiting")
    call.wait_for_cancel()
    call.leave(NeedsAttention("it waits", step="waiting", finish="do so"))
    call.wait_for("go on")
    call.mark("done")


def create(call: Call) -> Snapshot:
    call.take_lock()
    _waits(call)
    return SNAPSHOT


def asked(call: Call) -> Snapshot:
    call.take_lock()
    call.ask()
    _waits(call)
    return SNAPSHOT


def dies(call: Call) -> NoReturn:
    call.take_lock()
    die()


def dies_when_cancelled(call: Call) -> NoReturn:
    call.take_lock()
    call.mark("waiting")
    call.wait_for_cancel()
    die()


def recovery(call: Call) -> Recovered:
    assert call.lock
    call.share_lock("", call.lock.fd)
    _waits(call)
    return Recovered((), rolled_back=True)
