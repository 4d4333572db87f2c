"""Operations that go by what the test, or another one, does meanwhile."""

import time

from pyxlsnap.errors import Interrupted, Refused
from pyxlsnap.results import Snapshot
from tests.unit.support.scenarios.ordinary import SNAPSHOT, rolled_back, taken_though_cancelled
from tests.unit.support.standin_site import Call


def first_rolls_back(call: Call) -> Snapshot:
    """That of vm1; the other one goes on until that is done, and is not cancelled with it."""
    if call.domain == "vm1":
        rolled_back(call)
    call.report("memory", 1, 2)
    call.wait_for("rolled back")
    time.sleep(0.3)
    call.cancel.check()
    return SNAPSHOT


def rolled_back_beside_a_bad_one(call: Call) -> Snapshot:
    if call.domain == "bad":
        raise Refused("no")
    rolled_back(call)


def first_too_late_then_rolled_back(call: Call) -> Snapshot:
    """The first cannot be stopped any more; the second can."""
    if (call.here / "first").exists():
        rolled_back(call)
    call.mark("first")
    return taken_though_cancelled(call)


def slow_rollback(call: Call) -> Snapshot:
    """The test lets it end."""
    call.report("memory", 1, 2)
    call.wait_for_cancel()
    call.mark("rolling back")
    call.wait_for("go on")
    raise Interrupted("interrupted", step="suspend")


def reports_to_a_closed_loop(call: Call) -> Snapshot:
    call.report("memory", 1, 2)
    call.wait_for("closed")
    rolled_back(call)


def waits_for_a_tick(call: Call) -> Snapshot:
    """Ends only if the caller's loop goes on."""
    for n in range(50):
        call.report("memory", n, 50)
        time.sleep(0.02)
    call.mark("tick")
    call.wait_for("tick", there=False)
    return SNAPSHOT


def waits_for_all_four(call: Call) -> Snapshot:
    call.mark(f"{call.domain} is here")
    for n in range(4):
        call.wait_for(f"vm{n} is here")
    return SNAPSHOT
