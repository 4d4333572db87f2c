"""Workers that die, by themselves or by what they ask for; and recoveries from that."""

import json
import os
import signal
import socket
import time
from typing import NoReturn

from pyxlsnap.errors import NeedsAttention
from pyxlsnap.results import Recovered, Snapshot
from tests.unit.support.processes import caller
from tests.unit.support.scenarios.ordinary import DELETED, REVERTED, SNAPSHOT
from tests.unit.support.standin_site import Call, die, sleep
from tests.unit.support.values import UUID


def without_the_lock(call: Call) -> NoReturn:
    """Report the pid, so that the test can kill this process."""
    call.report("pid", os.getpid())
    sleep()


def with_the_lock(call: Call) -> NoReturn:
    """Report the pid, so that the test can kill this process."""
    call.take_lock()
    without_the_lock(call)


def with_the_lock_by_itself(call: Call) -> NoReturn:
    call.take_lock()
    die()


def with_its_supervisor(call: Call) -> NoReturn:
    """Report the supervisor's pid, so that the test can kill both."""
    call.take_lock()
    call.report("supervisor", os.getppid())
    sleep()


def only_the_supervisor(call: Call) -> Snapshot:
    os.kill(os.getppid(), signal.SIGKILL)
    call.take_lock()
    call.report("x")
    return SNAPSHOT


def after_its_caller(call: Call) -> NoReturn:
    call.take_lock()
    os.kill(caller(), signal.SIGKILL)
    die()


def in_the_middle_of_a_message(call: Call) -> NoReturn:
    call.take_lock()
    call.report("x")
    call.wait_for("cut off")
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        _write_half_a_message(fd)
    die()


def _write_half_a_message(fd: int) -> None:
    try:
        if socket.socket(fileno=os.dup(fd)).getpeername() is not None:
            os.write(fd, b'{"progress": {"pha')
    except OSError:
        pass  # it is no socket that is connected


def aborted(_: Call) -> NoReturn:
    os.write(2, b"first\nlibxl: Assertion failed\n")
    die(signal.SIGABRT)


def aborted_in_c(_: Call) -> NoReturn:
    os.write(2, b"a.c:1: Assertion `x` failed.\n")
    die(signal.SIGABRT)


def with_a_long_stderr(_: Call) -> NoReturn:
    os.write(2, b"x" * 50000 + b"\nthe end\n")
    os._exit(3)


def killed_while_it_watches(_: Call) -> NoReturn:
    die()


def aborted_in_closing(_: Call) -> NoReturn:
    die(signal.SIGABRT)


def in_its_preparations(call: Call) -> NoReturn:
    _after(call, "checking", "prepare")


def while_it_waits_in_its_checks(call: Call) -> NoReturn:
    _after(call, "checking", "waiting for lvs (pid 7) to leave xvda alone")


def while_it_waits_in_an_undo(call: Call) -> NoReturn:
    _after(call, "checking", "suspend", "waiting for QEMU to answer")


def _after(call: Call, *phases: str) -> NoReturn:
    """The test makes the file "seen" when it has heard of the last phase."""
    call.take_lock()
    for phase in phases:
        call.report(phase)
    call.wait_for("seen")
    die()


# Recoveries


def found_nothing(_: Call) -> Recovered:
    return Recovered((), rolled_back=True)


def found_done(_: Call) -> Recovered:
    return Recovered(("recovered",), rolled_back=False)


def paused_again(_: Call) -> Recovered:
    return Recovered(("vm1 is paused again",), rolled_back=True, seconds_unpaused=3.0)


def finished_a_revert(_: Call) -> Recovered:
    return Recovered(("it is back",), rolled_back=False, reverted=REVERTED)


def finished_a_delete(_: Call) -> Recovered:
    return Recovered(("deleted",), rolled_back=False, deleted=DELETED)


def deleted_nothing(_: Call) -> Recovered:
    return Recovered(("nothing was deleted",), rolled_back=True)


def recovery_needs_a_person(_: Call) -> NoReturn:
    raise NeedsAttention("stuck", step="recover", left=["a"], finish="do this")


def recovery_dies(call: Call) -> NoReturn:
    with (call.here / "tries").open("a") as tries:
        tries.write("x")
    assert call.lock
    call.share_lock(UUID, call.lock.fd)
    time.sleep(0.2)
    die(signal.SIGABRT)


def recovery_waits(call: Call) -> Recovered:
    call.mark("recovering")
    call.wait_for("go on")
    return Recovered(("recovered",), rolled_back=True)


# Several in one


def by_the_domains_name(call: Call) -> Snapshot:
    """Die if the domain is named "aborted" or "killed"; else succeed, when the host has looked."""
    signals = {
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "ignored": [n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN],
    }
    (call.here / "worker").write_text(json.dumps(signals))
    if call.domain == "aborted":
        _fail_an_assertion_of_xens_own_library()
    call.take_lock()
    call.report("memory", 1, 2)
    if call.domain == "killed":
        call.report("supervisor", os.getppid())
        sleep()
    call.wait_for("looked")
    return SNAPSHOT


def _fail_an_assertion_of_xens_own_library() -> None:
    from pyxlsnap.xen.ffi import C, ffi

    report = C.pyxlsnap_report_new()
    config = C.xlu_cfg_init(C.pyxlsnap_report_file(report), ffi.new("char[]", b"x"))
    bad = b'a = "x\0y"'
    C.xlu_cfg_readdata(config, bad, len(bad))
