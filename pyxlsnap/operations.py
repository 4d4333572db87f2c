"""The operations, in this process: locks, plan, and the run of the sequence.

:mod:`pyxlsnap.api` runs these in a worker process. Call them here and a libxl that aborts takes
your process with it, and nobody rolls back.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from pyxlsnap import checks
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.create import Creation
from pyxlsnap.create_plan import CreatePlan, plan_create
from pyxlsnap.errors import DomainNotFound, Interrupted
from pyxlsnap.journal import DomainLock, Journal, ShareLock
from pyxlsnap.model import OnProgress, Plan, Progress, Reverted, Snapshot, SnapshotConfig
from pyxlsnap.ports import Host, StartMonitor
from pyxlsnap.revert import Reversion
from pyxlsnap.revert_plan import RevertPlan, plan_revert, saved_uuid


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
    start_monitor: StartMonitor | None = None,
) -> Snapshot:
    """Take a snapshot of a domain, in this process.

    :param host: its libxl context belongs to this call until it returns.
    :param max_downtime: seconds; refuse if the domain is expected to stand still for longer.
    :param share_lock: is given the uuid and descriptor of the lock as soon as it is held.
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
            plan, journal, on_progress=on_progress, cancel=cancel, start_monitor=start_monitor
        ).run()


def preview_create(
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
        wait = partial(checks.wait_for_frontends, check=cancel.check)
        with closing(plan_create(host, guest, wanted, live=live, wait=wait)) as found:
            if max_downtime is not None:
                found.refuse_slow(max_downtime)
            yield found, journal
    except Cancelled:
        raise Interrupted(f"the snapshot of {guest.name} was interrupted", step="plan") from None
    finally:
        lock.release()


def revert(
    host: Host,
    domain: str,
    wanted: SnapshotConfig,
    cfgfile: Path,
    *,
    running: bool = False,
    force: bool = False,
    on_progress: OnProgress = lambda _: None,
    cancel: Cancel | None = None,
    share_lock: ShareLock = lambda _uuid, _fd: None,
    start_monitor: StartMonitor | None = None,
) -> Reverted:
    """Bring a domain back to a snapshot, in this process (see :func:`create`).

    :param wanted: what the cfgfile says; ``cfgfile`` is its path.
    :param share_lock: is given the uuid and descriptor of each lock as soon as it is held.
    :param start_monitor: called when the domain is back, which nobody watches then. Without it the
        result has a warning.
    :raises UsageError, Refused, Risky: nothing was tried.
    :raises OperationFailed, Interrupted: it ended before the domain was destroyed: nothing changed.
    :raises NeedsAttention: it failed later. The domain is off; the error has the command that
        finishes it.
    """
    cancel = cancel or Cancel()
    with _reversion_planned(
        host, domain, wanted, cfgfile, running, force, on_progress, cancel, share_lock
    ) as plan:
        return Reversion(
            host,
            plan,
            running=running,
            force=force,
            on_progress=on_progress,
            cancel=cancel,
            start_monitor=start_monitor,
        ).run()


def preview_revert(
    host: Host,
    domain: str,
    wanted: SnapshotConfig,
    cfgfile: Path,
    *,
    running: bool = False,
    force: bool = False,
    on_progress: OnProgress = lambda _: None,
    cancel: Cancel | None = None,
    share_lock: ShareLock = lambda _uuid, _fd: None,
) -> Plan:
    """What :func:`revert` would do; raises what it would raise, and touches nothing."""
    cancel = cancel or Cancel()
    with _reversion_planned(
        host, domain, wanted, cfgfile, running, force, on_progress, cancel, share_lock
    ) as planned:
        return planned.summary()


@contextmanager
def _reversion_planned(
    host: Host,
    domain: str,
    wanted: SnapshotConfig,
    cfgfile: Path,
    running: bool,
    force: bool,
    on_progress: OnProgress,
    cancel: Cancel,
    share_lock: ShareLock,
) -> Iterator[RevertPlan]:
    """A plan that can be run, under the locks of the domains concerned."""
    locks: list[DomainLock] = []
    try:
        for uuid in _uuids(host, domain, wanted, cfgfile):
            locks.append(DomainLock(uuid, domain=domain))
            share_lock(uuid, locks[-1].fd)
            Journal(uuid).refuse_unfinished(but="revert")  # such a one is finished by this
        on_progress(Progress("checking"))
        with closing(
            plan_revert(
                host, domain, wanted, cfgfile, running=running, force=force, check=cancel.check
            )
        ) as found:
            yield found
    except Cancelled:
        raise Interrupted(f"reverting {domain} was interrupted", step="plan") from None
    finally:
        for lock in locks:
            lock.release()


def _uuids(host: Host, domain: str, wanted: SnapshotConfig, cfgfile: Path) -> list[str]:
    """The domains concerned: the one in the memory file, and the one that is there now."""
    uuids = {saved_uuid(wanted, cfgfile)}
    try:
        uuids.add(host.find(domain).uuid)
    except DomainNotFound:
        pass  # it is off, or the name is wrong: the plan will tell
    return sorted(uuids)
