"""Operations that succeed, or fail, or roll back when they are cancelled."""

import logging
import os
import time
from typing import NoReturn

from pyxlsnap.errors import AlreadyExists, Interrupted, NeedsAttention, Refused
from pyxlsnap.model import RunState
from pyxlsnap.results import (
    Artefact,
    Cloned,
    Deleted,
    Feasibility,
    Plan,
    PlannedDisk,
    Recovered,
    Reverted,
    Snapshot,
)
from pyxlsnap.snapshot_info import CloneInfo, SnapshotDisk, SnapshotInfo
from tests.unit.support.processes import caller
from tests.unit.support.standin_site import Call
from tests.unit.support.values import UUID

SNAPSHOT = Snapshot(
    name="snap",
    domain="vm1",
    domid=7,
    uuid=UUID,
    live=False,
    memory_path="/m",
    cfgfile="/c",
    artefacts=(Artefact("cfgfile", "/c", "rm /c"),),
    left_out={"hdc": "empty"},
    warnings=("careful",),
    state=RunState.PAUSED,
    seconds_suspended=0.25,
)
REVERTED = Reverted("snap", "vm1", 9, UUID, RunState.PAUSED, ("xvda",), ("w",))
CLONED = Cloned("snap", "c1", 9, UUID, RunState.PAUSED, (), (), (), ("w",))
PLAN = Plan(
    operation="create",
    name="snap",
    domain="vm1",
    uuid=UUID,
    memory_path="/m",
    cfgfile="/c",
    live=True,
    state=RunState.RUNNING,
    disks=(PlannedDisk("xvda", "/a", "qcow2", ""),),
    left_out={},
    warnings=(),
    seconds_suspended=0.4,
)
INFO = SnapshotInfo(
    name="snap",
    description="before the upgrade",
    cfgfile="/c",
    memory_path="/m",
    domain="vm1",
    uuid=UUID,
    guest_kind="pvh",
    created=1.0,
    state=RunState.RUNNING,
    versions={"xen": "4.17"},
    memory_kb=1024,
    size_bytes=4096,
    disks=(SnapshotDisk("xvda", "/a", "qcow2", "/a.snap", 1, ("/base",), ("/a",)),),
    left_out={"hdc": "a CD-ROM drive"},
    clones=(CloneInfo("c1", UUID, {"xvda": "/a.snap.c1"}),),
    missing=(),
)
DELETED = Deleted("snap", "vm1", UUID, "/c", ("removed /c",), ("w",))


def nothing(_: Call) -> None:
    """Done at once."""


def taken(_: Call) -> Snapshot:
    return SNAPSHOT


def reverted(_: Call) -> Reverted:
    return REVERTED


def cloned(_: Call) -> Cloned:
    return CLONED


def planned(_: Call) -> Plan:
    return PLAN


def read(_: Call) -> SnapshotInfo:
    return INFO


def deleted(call: Call) -> Deleted:
    call.say(call.domain)
    return DELETED


def recovered(_: Call) -> Recovered:
    return Recovered(("recovered",), rolled_back=True)


def possible(call: Call) -> Feasibility:
    return Feasibility(call.domain, UUID, (), ())


def exists(_: Call) -> NoReturn:
    raise AlreadyExists("taken", where="xvda")


def refused(_: Call) -> NoReturn:
    raise Refused("no")


def has_a_bug(_: Call) -> NoReturn:
    raise RuntimeError("a bug")


def rolled_back(call: Call) -> NoReturn:
    """Writes memory until it is cancelled."""
    call.report("memory", 1, 2)
    rolls_back(call)


def rolls_back(call: Call) -> NoReturn:
    call.wait_for_cancel()
    call.mark("rolled back")
    raise Interrupted("interrupted", step="suspend")


def tells_its_pid_and_rolls_back(call: Call) -> NoReturn:
    call.report("pid", os.getpid(), 2)
    rolls_back(call)


def tells_its_supervisors_pid_and_rolls_back(call: Call) -> NoReturn:
    call.report("pid", os.getppid(), 2)
    rolls_back(call)


def interrupted(call: Call) -> NoReturn:
    """Waits until it is cancelled, without progress."""
    call.wait_for_cancel()
    raise Interrupted("x", step="x")


def taken_though_cancelled(call: Call) -> Snapshot:
    """Cannot be stopped any more."""
    call.report("memory", 1, 2)
    call.wait_for_cancel()
    return SNAPSHOT


def needs_a_person(call: Call) -> NoReturn:
    """Is cancelled, and cannot roll back."""
    call.report("memory", 1, 2)
    call.wait_for_cancel()
    raise NeedsAttention("stuck", step="x", finish="do this")


def hundred_reports(call: Call) -> Snapshot:
    for n in range(100):
        call.report("x", n)
    return SNAPSHOT


def five_hundred_reports(call: Call) -> Snapshot:
    for n in range(500):
        call.report("x", n)
    return SNAPSHOT


def reports_then_interrupted(call: Call) -> NoReturn:
    for n in range(50):
        call.report("x", n)
    interrupted(call)


def many_long_reports(call: Call) -> Snapshot:
    for n in range(20_000):
        call.report("x" * 100, n)
    call.mark("went on")
    return SNAPSHOT


def three_passes(call: Call) -> Snapshot:
    for n in range(3):
        call.report("memory", n, 3, n)
    return SNAPSHOT


def half_a_pass(call: Call) -> Snapshot:
    for n in range(3):
        call.report("memory", n, 4, 2)
    return SNAPSHOT


def logs(_: Call) -> Snapshot:
    logging.getLogger("pyxlsnap.libxl").debug("a\nb")
    return SNAPSHOT


def fails_and_needs_a_person(_: Call) -> NoReturn:
    raise NeedsAttention("stuck", step="x", finish="do this")


def done(call: Call) -> Snapshot:
    call.mark("done")
    return SNAPSHOT


def says_what_was_asked(call: Call) -> Snapshot:
    call.say((call.domain, call.wanted, call.live))
    return SNAPSHOT


def says_every_argument(call: Call) -> Snapshot:
    limits = (call.max_downtime, call.max_rate)
    call.say((call.domain, call.wanted.name, call.live, *limits, call.start_monitor))
    return SNAPSHOT


def clone_says_its_request(call: Call) -> Cloned:
    call.say(call.request)
    call.report("disks", 1, 2)
    return CLONED


def plan_says_its_request(call: Call) -> Plan:
    call.say(call.request)
    return PLAN


def read_says_its_request(call: Call) -> SnapshotInfo:
    call.say(call.request)
    return INFO


def begins_and_rolls_back(call: Call) -> NoReturn:
    """As an operation that reports no progress."""
    call.mark("begun")
    rolls_back(call)


def says_what_is_wanted(call: Call) -> Snapshot:
    call.say(call.wanted)
    return SNAPSHOT


def says_who_watches(call: Call) -> Snapshot:
    call.say(call.start_monitor)
    return SNAPSHOT


def revert_says_its_options(call: Call) -> Reverted:
    options = [call.options[key] for key in ("running", "force", "keep_current")]
    call.say([*options, call.start_monitor])
    return REVERTED


def possible_but_not_live(call: Call) -> Feasibility:
    return Feasibility(call.domain, UUID, (), ("no",))


def impossible(call: Call) -> Feasibility:
    return Feasibility(call.domain, UUID, ("a", "b"), ("not live",))


def possible_with_a_warning(call: Call) -> Feasibility:
    logging.getLogger("pyxlsnap").warning("x")
    return possible(call)


def signalled(call: Call) -> NoReturn:
    """Sends the caller the signal whose number is in a file; once more when it rolls back."""
    number = int((call.here / "signal").read_text())
    os.kill(caller(), number)
    call.wait_for_cancel()
    os.kill(caller(), number)  # impatient
    call.mark("rolled back")
    raise Interrupted("the snapshot was interrupted", step="suspend")


def taken_though_signalled(call: Call) -> Snapshot:
    """Sends the caller the signal whose number is in a file, which the caller ignores."""
    os.kill(caller(), int((call.here / "signal").read_text()))
    time.sleep(0.3)  # a signal that is caught cancels meanwhile
    assert not call.cancel.is_set()
    return SNAPSHOT
