"""Reverts and clones in workers that are copies of a warm process."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from pyxlsnap.errors import Interrupted
from pyxlsnap.results import Cloned, Reverted
from tests.unit.support.scenarios import apart, deaths, ordinary
from tests.unit.support.scenarios.ordinary import CLONED, REVERTED
from tests.unit.support.standin_site import Call


def _warm() -> int:
    """The pid of the warm process: the supervisor's parent."""
    status = Path(f"/proc/{os.getppid()}/status").read_text()
    return int(status.split("PPid:")[1].split()[0])


def says_what_it_has(call: Call) -> Reverted:
    apart.says_what_it_has(call)
    return REVERTED


def locks_and_ends(call: Call) -> Reverted:
    call.take_lock()
    call.report("warm", _warm())
    return REVERTED


def kills_the_warm_process(call: Call) -> Reverted:
    call.take_lock()
    os.kill(_warm(), signal.SIGKILL)
    return REVERTED


def dies(call: Call) -> Reverted:
    deaths.with_the_lock_by_itself(call)


def dies_with_its_supervisor(call: Call) -> Reverted:
    deaths.with_its_supervisor(call)


def tells_all_and_rolls_back(call: Call) -> NoReturn:
    call.take_lock()
    (call.here / "pids").write_text(f"{_warm()} {os.getppid()} {os.getpid()}")
    call.report("begun")
    call.wait_for_cancel()
    call.mark("rolled back")
    raise Interrupted("interrupted", step="plan")


def waits_and_is_cancelled(call: Call) -> Reverted:
    ordinary.rolled_back(call)


def clone_locks_and_ends(call: Call) -> Cloned:
    locks_and_ends(call)
    return CLONED


def clone_says_its_options(call: Call) -> Cloned:
    call.say(call.options)
    return CLONED


def clone_waits_for_the_other(call: Call) -> Cloned:
    """Of the clones c1 and c2."""
    call.report("warm", _warm())
    call.mark(f"making {call.domain}")
    call.wait_for(f"making {({'c1', 'c2'} - {call.domain}).pop()}")
    return replace(CLONED, domain=call.domain)


def clone_c1_waits_for_cancel(call: Call) -> Cloned:
    """The clone c1 is made until it is cancelled, and c2 until c1 is rolled back."""
    call.mark(f"making {call.domain}")
    if call.domain != "c1":
        call.wait_for("rolled back")
        return replace(CLONED, domain=call.domain)
    call.wait_for_cancel()
    call.mark("rolled back")
    raise Interrupted("interrupted", step="plan")


def clone_waits_for_close(call: Call) -> Cloned:
    """Until the test has closed the Cloner."""
    call.mark(f"making {call.domain}")
    call.wait_for("closed")
    return replace(CLONED, domain=call.domain)


def clone_dies(call: Call) -> Cloned:
    deaths.with_the_lock_by_itself(call)


def clone_waits_and_is_cancelled(call: Call) -> Cloned:
    ordinary.rolled_back(call)


def clone_tells_all_and_rolls_back(call: Call) -> NoReturn:
    tells_all_and_rolls_back(call)
