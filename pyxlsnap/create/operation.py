"""The operations, in this process: locks, plan, and the run of the sequence.

:mod:`pyxlsnap.api` runs these in a worker process. Call them here and a libxl that aborts takes
your process with it, and nobody rolls back.
"""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager

from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.create.plan import CreatePlan, plan_create
from pyxlsnap.create.sequence import Creation
from pyxlsnap.errors import Interrupted
from pyxlsnap.guest.protocols import Host, StartMonitor
from pyxlsnap.hooks import Hook
from pyxlsnap.journal import Journal
from pyxlsnap.linux.locks import DomainLock, ShareLock
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.results import OnProgress, Plan, Progress, Snapshot

log = logging.getLogger(__name__)


def create(
    host: Host,
    domain: str,
    wanted: SnapshotConfig,
    *,
    live: bool = False,
    max_downtime: float | None = None,
    on_progress: OnProgress = lambda _: None,
    cancel: Cancel | None = None,
    share_lock: ShareLock = lambda _uuid, _fd: None,
    before_suspend: Hook = lambda _: None,
    start_monitor: StartMonitor | None = None,
) -> Snapshot:
    """Take a snapshot of a domain, in this process.

    :param host: its libxl context belongs to this call until it returns.
    :param max_downtime: seconds; refuse if the domain is expected to stand still for longer.
    :param share_lock: is given the uuid and descriptor of the lock as soon as it is held.
    :param before_suspend: called when all is prepared; what it raises undoes that.
    :param start_monitor: called if the process with which xl watched the domain leaves at the
        suspend, as it does before Xen 4.20. Without it the result has a warning then.
    :raises UsageError, Refused: nothing was tried.
    :raises OperationFailed: it failed; guest, disks and files are as before.
    :raises Interrupted: ``cancel`` was set; the same.
    :raises NeedsAttention: it failed and something is left; the error says what.
    """
    cancel = cancel or Cancel()
    with _creation_planned(
        host, domain, wanted, live, max_downtime, on_progress, cancel, share_lock
    ) as (
        plan,
        journal,
    ):
        return Creation(
            plan,
            journal,
            on_progress=on_progress,
            cancel=cancel,
            before_suspend=before_suspend,
            start_monitor=start_monitor,
        ).run()


def preview(
    host: Host,
    domain: str,
    wanted: SnapshotConfig,
    *,
    live: bool = False,
    max_downtime: float | None = None,
    on_progress: OnProgress = lambda _: None,
    cancel: Cancel | None = None,
    share_lock: ShareLock = lambda _uuid, _fd: None,
) -> Plan:
    """What :func:`create` would do; raises what it would raise, and touches nothing."""
    cancel = cancel or Cancel()
    with _creation_planned(
        host, domain, wanted, live, max_downtime, on_progress, cancel, share_lock
    ) as (
        planned,
        _,
    ):
        return planned.summary()


@contextmanager
def _creation_planned(
    host: Host,
    domain: str,
    wanted: SnapshotConfig,
    live: bool,
    max_downtime: float | None,
    on_progress: OnProgress,
    cancel: Cancel,
    share_lock: ShareLock,
) -> Iterator[tuple[CreatePlan, Journal]]:
    """A plan that can be run, under the domain's lock."""
    guest = host.find(domain)
    lock = DomainLock(guest.uuid, domain=str(guest.name))
    try:
        share_lock(guest.uuid, lock.fd)
        on_progress(Progress("checking"))
        journal = Journal(guest.uuid)
        journal.refuse_unfinished()
        with closing(plan_create(host, guest, wanted, live=live, check=cancel.check)) as found:
            if max_downtime is not None:
                found.refuse_slow(max_downtime)
            yield found, journal
    except Cancelled:
        raise Interrupted(f"the snapshot of {guest.name} was interrupted", step="plan") from None
    finally:
        lock.release()
