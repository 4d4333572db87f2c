"""Taking a snapshot, in this process: the lock, the plan, and the run of the sequence.

:mod:`pyxlsnap.api` runs these functions in a worker process. A program that calls them directly
has no such protection: if libxl aborts, the program ends, and the snapshot is not rolled back.
"""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from pyxlsnap import cfgfile
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.create.ended import plan_unless_ended
from pyxlsnap.create.last_time import remember
from pyxlsnap.create.plan import CreatePlan, make_plan
from pyxlsnap.create.sequence import Creation
from pyxlsnap.create.waiting import Waiting
from pyxlsnap.errors import Interrupted
from pyxlsnap.guest.protocols import Host
from pyxlsnap.journal import Journal
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.model import check_name
from pyxlsnap.request import Callbacks, CreateRequest
from pyxlsnap.results import Plan, Progress, Snapshot

log = logging.getLogger(__name__)

#: no resume takes longer, unless the guest's QEMU does not answer
_RESUME_S = 2.0


def create(
    host: Host, request: CreateRequest, callbacks: Callbacks, cancel: Cancel | None = None
) -> Snapshot:
    """Take a snapshot of a domain, in this process.

    :param host: only this call may use its libxl context until the call returns.
    :returns: the snapshot; the guest runs again, or is paused as before.
    :raises UsageError, Refused: the request is wrong or not possible; nothing was changed.
    :raises OperationFailed: a step failed; guest, disks and files are as before.
    :raises Interrupted: ``cancel`` was set; guest, disks and files are as before.
    :raises GuestEnded: the guest rebooted, powered off or crashed by itself before the snapshot was
        complete; disks and files are as before.
    :raises NeedsAttention: a step failed, and so did its undo; the error lists what is left.
    """
    cancel = cancel or Cancel()
    with _planned(host, request, callbacks, cancel) as (plan, lock):
        snapshot = Creation(plan, callbacks, cancel, lock).run()
        if snapshot.seconds_suspended:
            remember(snapshot.uuid, snapshot.live, _memory_s(snapshot), plan.examined.memory_kb)
        return snapshot


def _memory_s(snapshot: Snapshot) -> float:
    """For how long the memory has suspended the guest.

    Without the disks, and without a wait for a QEMU that did not answer: the next one may.
    """
    waited_s = max(0.0, snapshot.seconds["resume"] - _RESUME_S)
    return snapshot.seconds_suspended - snapshot.seconds["disk snapshots"] - waited_s


def preview(
    host: Host, request: CreateRequest, callbacks: Callbacks, cancel: Cancel | None = None
) -> Plan:
    """Plan a snapshot without taking it. Changes nothing.

    :raises UsageError, Refused, Interrupted, GuestEnded: as :func:`create`.
    """
    with _planned(host, request, callbacks, cancel or Cancel()) as (plan, _):
        return plan.summary()


def read_cfgfile(request: CreateRequest) -> CreateRequest:
    """Read the request's cfgfile into its ``config``. Needs no Xen.

    :raises UsageError: the cfgfile or the name is wrong.
    """
    said = request.config
    if said.name is not None:
        check_name(said.name)
    if not request.cfgfile:
        return request
    found = cfgfile.read(Path(request.cfgfile))
    if said.name and found.name and said.name != found.name:
        log.warning("the cfgfile names the snapshot %s: %s is ignored", found.name, said.name)
    memory = found.memory_path  # relative to the cfgfile, as in a revert: a worker may be in /
    if memory:
        memory = str(Path(request.cfgfile).parent / memory)
    config = replace(found, name=found.name or said.name, memory_path=memory)
    return replace(request, config=config, cfgfile="")


@contextmanager
def _planned(
    host: Host, request: CreateRequest, callbacks: Callbacks, cancel: Cancel
) -> Iterator[tuple[CreatePlan, DomainLock]]:
    """Make a plan, and hold the domain's lock while the plan is used."""
    request = read_cfgfile(request)
    guest = host.find(request.domain)
    lock = DomainLock(guest.uuid, domain=str(guest.name))
    try:
        lock.open_to_monitor()
        callbacks.share_lock(guest.uuid, lock.fd)
        callbacks.on_progress(Progress("checking"))
        Journal(guest.uuid).refuse_unfinished()
        waiting = Waiting(guest.name, guest.uuid, callbacks, cancel)
        make = partial(make_plan, host, guest, request, cancel, waiting)
        with closing(plan_unless_ended(guest, make)) as plan:
            if request.max_downtime is not None:
                plan.downtime.refuse_longer(request.max_downtime)
            yield plan, lock
    except Cancelled:
        raise Interrupted(f"the snapshot of {guest.name} was interrupted", step="plan") from None
    finally:
        lock.release()
