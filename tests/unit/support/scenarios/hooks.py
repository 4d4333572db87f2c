"""Snapshots that come to the point before the suspend, where the caller's hook is called."""

import os
from typing import NoReturn

from pyxlsnap.errors import Interrupted, NeedsAttention, OperationFailed
from pyxlsnap.results import Reverted, Snapshot
from tests.unit.support.scenarios.ordinary import REVERTED, SNAPSHOT, interrupted
from tests.unit.support.standin_site import Call, sleep


def asked(call: Call) -> Snapshot:
    """Does not say that the guest is resumed."""
    call.ask()
    return SNAPSHOT


def asked_and_resumed(call: Call) -> Snapshot:
    call.ask()
    call.report("resumed")
    return SNAPSHOT


def asked_and_suspended(call: Call) -> Snapshot:
    call.ask()
    call.mark("suspended")
    return SNAPSHOT


def resumed_and_waiting_for_the_thaw(call: Call) -> Snapshot:
    call.ask()
    call.report("resumed")
    call.wait_for("thawed")
    return SNAPSHOT


def not_to_ask(call: Call) -> Snapshot:
    assert call.before_suspend is None
    return SNAPSHOT


def fails_when_resumed(call: Call) -> NoReturn:
    call.ask()
    call.report("resumed")
    raise OperationFailed("no", step="resume", undone=["x"])


def asked_and_needs_a_person(call: Call) -> NoReturn:
    call.ask()
    raise NeedsAttention("no", step="s", left=["a"], finish="do it")


def asked_and_killed(call: Call) -> NoReturn:
    """Hold the lock and report the pid, so that the test can kill this process."""
    call.take_lock()
    call.ask()
    call.report("pid", os.getpid())
    sleep()


def cancelled_while_asking(call: Call) -> NoReturn:
    try:
        call.ask()
    except BaseException as e:
        raise Interrupted(type(e).__name__, step="before suspend") from None
    raise AssertionError("the hook has not cancelled")


def asked_and_interrupted(call: Call) -> NoReturn:
    call.ask()
    interrupted(call)


def resumed_and_interrupted(call: Call) -> NoReturn:
    call.ask()
    call.report("resumed")
    interrupted(call)


def restores(call: Call) -> Reverted:
    call.report("restore")
    return REVERTED
