"""The operations, in this process: locks, plan, and the run of the sequence.

:mod:`pyxlsnap.api` runs these in a worker process. Call them here and a libxl that aborts takes
your process with it, and nobody rolls back.
"""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pyxlsnap import cfgfile as cfgfiles
from pyxlsnap import recovery
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.create import Creation
from pyxlsnap.create_plan import CreatePlan, plan_create
from pyxlsnap.disks import default_request
from pyxlsnap.disks.lvm import is_lvm
from pyxlsnap.errors import (
    DomainNotFound,
    Interrupted,
    OperationFailed,
    PyxlsnapError,
    Refused,
)
from pyxlsnap.hooks import Hook
from pyxlsnap.journal import RIVAL_S, DomainLock, Entry, Journal, ShareLock
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.outcome import (
    OnProgress,
    Plan,
    Progress,
    Recovered,
    Reverted,
    Snapshot,
)
from pyxlsnap.ports import Host, StartMonitor
from pyxlsnap.revert import Reversion
from pyxlsnap.revert_plan import RevertPlan, plan_revert, saved_uuid

log = logging.getLogger(__name__)

_KEPT_NAME = 80  # characters of the snapshot's name in that of the present


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
        with closing(plan_create(host, guest, wanted, live=live, check=cancel.check)) as found:
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
    keep_current: bool = False,
    wait_s: float = 0.0,
    on_progress: OnProgress = lambda _: None,
    cancel: Cancel | None = None,
    share_lock: ShareLock = lambda _uuid, _fd: None,
    before_suspend: Hook = lambda _: None,
    start_monitor: StartMonitor | None = None,
) -> Reverted:
    """Bring a domain back to a snapshot, in this process (see :func:`create`).

    :param wanted: what the cfgfile says; ``cfgfile`` is its path.
    :param keep_current: take a snapshot of the domain as it is now first; if that fails, nothing
        else is done.
    :param wait_s: for so long, wait for somebody else who works on the domain.
    :param share_lock: is given the uuid and descriptor of each lock as soon as it is held.
    :param before_suspend: called before the domain is suspended for ``keep_current``.
    :param start_monitor: called when the domain is back, which nobody watches then. Without it the
        result has a warning.
    :raises UsageError, Refused, Risky: nothing was tried.
    :raises OperationFailed, Interrupted: it ended before the domain was destroyed: nothing changed.
    :raises NeedsAttention: it failed later. The domain is off; the error has the command that
        finishes it.
    """
    cancel = cancel or Cancel()
    with _reversion_planned(
        host, domain, wanted, cfgfile, running, force, on_progress, cancel, share_lock, wait_s
    ) as plan:
        kept = None
        if keep_current:
            with closing(_plan_present(host, plan, cancel)) as present:
                creation = Creation(
                    present,
                    Journal(present.guest.uuid),
                    on_progress=on_progress,
                    cancel=cancel,
                    before_suspend=before_suspend,
                    start_monitor=start_monitor,
                )
                kept = _keep_current(creation, plan)
        return Reversion(
            host,
            plan,
            kept=kept.cfgfile if kept else "",
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
    keep_current: bool = False,
    on_progress: OnProgress = lambda _: None,
    cancel: Cancel | None = None,
    share_lock: ShareLock = lambda _uuid, _fd: None,
) -> Plan:
    """What :func:`revert` would do; raises what it would raise, and touches nothing."""
    cancel = cancel or Cancel()
    with _reversion_planned(
        host, domain, wanted, cfgfile, running, force, on_progress, cancel, share_lock
    ) as planned:
        if keep_current:
            _plan_present(host, planned, cancel).close()
        return planned.summary()


def _keep_current(creation: Creation, plan: RevertPlan) -> Snapshot:
    """Take the snapshot of the present, and see that the revert can still be done."""
    kept = creation.run()
    for warning in kept.warnings:
        log.warning("%s: %s", kept.name, warning)
    try:
        for strategy in plan.strategies:  # the space that it has taken may have been theirs
            strategy.check_revert()
    except PyxlsnapError as e:
        raise OperationFailed(
            f"{e}; nothing was changed, but the present was kept: {kept.cfgfile}",
            step="keep current",
        ) from e
    return kept


def _plan_present(host: Host, plan: RevertPlan, cancel: Cancel) -> CreatePlan:
    """The snapshot of the domain that is to be destroyed.

    Its disk snapshots must outlive the revert: where that puts another file in a disk's place, one
    inside the file would go with it. A disk that the revert leaves alone is in it unless it would
    have to be copied, which nobody has asked for.
    """
    guest = plan.guest
    if guest is None:
        raise Refused(f"{plan.config.name} is off: there is nothing to keep (--keep-current)")
    Journal(guest.uuid).refuse_unfinished()
    name = f"before-{plan.name[:_KEPT_NAME]}-{datetime.now():%Y%m%d-%H%M%S}"
    reverted = {r.vdev for r in plan.requests}
    paths = {r.vdev: r for r in plan.requests if r.path and not r.path.startswith("/dev/")}
    disks = tuple(
        replace(paths[d.vdev], path=f"{paths[d.vdev].path}.{name}")
        if d.vdev in paths
        else default_request(d, name)
        for d in guest.config().disks
        if not d.left_out and (d.vdev in reverted or d.format != "raw" or is_lvm(d.target))
    )
    wanted = SnapshotConfig(name=name, description=f"before a revert to {plan.name}", disks=disks)
    return plan_create(host, guest, wanted, check=cancel.check)


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
    wait_s: float = 0.0,
) -> Iterator[RevertPlan]:
    """A plan that can be run, under the locks of the domains concerned."""
    locks: list[DomainLock] = []
    name = ""
    try:
        for uuid in _uuids(host, domain, wanted, cfgfile):
            locks.append(DomainLock(uuid, domain=domain, wait_s=wait_s))
            share_lock(uuid, locks[-1].fd)
            # One of a revert is finished by this.
            entry = Journal(uuid).refuse_unfinished(but="revert")
            if entry and _is_half_way(host, domain, entry, cfgfile):
                # What is risky was decided then, and its present name may be nowhere else.
                force, name = True, entry.domain
        on_progress(Progress("checking"))
        with closing(
            plan_revert(
                host,
                domain,
                wanted,
                cfgfile,
                running=running,
                force=force,
                name=name,
                check=cancel.check,
            )
        ) as found:
            yield found
    except Cancelled:
        raise Interrupted(f"reverting {domain} was interrupted", step="plan") from None
    finally:
        for lock in locks:
            lock.release()


def _is_half_way(host: Host, domain: str, entry: Entry, cfgfile: Path) -> bool:
    """Whether that revert of the same domain, to the same snapshot, has no way back."""
    if not entry.begun or entry.cfgfile != str(cfgfile):
        return False
    try:
        guest = host.find(domain)
        return guest.uuid in (entry.uuid, entry.replaced) and not guest.info().lives
    except DomainNotFound:
        return True


def recover(
    host: Host,
    domain: str | None,
    *,
    wait_s: float = 0.0,
    share_lock: ShareLock = lambda _uuid, _fd: None,
    start_monitor: StartMonitor | None = None,
) -> Recovered:
    """Finish what operations that were killed had begun, in this process.

    A create is rolled back, a revert that had begun to destroy the domain goes to its end.

    :param domain: name, domid or uuid; it may be off. ``None``: every one that has a journal.
    :param wait_s: for so long, wait for somebody else who works on the domain.
    :raises DomainNotFound: there is neither such a domain nor an operation on one.
    :raises Busy: the one domain's operation is still under way.
    :raises NeedsAttention: something is left that a person has to decide; the error says what, of
        several domains all of it.
    """

    def redo(entry: Entry) -> Reverted:
        cfg = Path(entry.cfgfile)
        return revert(
            host,
            entry.words[2],
            cfgfiles.read(cfg),
            cfg,
            running="--running" in entry.words,
            force="--force" in entry.words,
            wait_s=RIVAL_S,
            share_lock=share_lock,
            start_monitor=start_monitor if entry.monitor else None,
        )

    def one(uuid: str) -> Recovered:
        return recovery.recover(
            host,
            uuid,
            redo=redo,
            wait_s=wait_s,
            share_lock=share_lock,
            start_monitor=start_monitor,
        )

    if domain is None:
        return recovery.recover_every(one)
    return one(recovery.uuid_of(host, domain))


def _uuids(host: Host, domain: str, wanted: SnapshotConfig, cfgfile: Path) -> list[str]:
    """The domains concerned: the one in the memory file, and the one that is there now."""
    uuids = {saved_uuid(wanted, cfgfile)}
    try:
        uuids.add(host.find(domain).uuid)
    except DomainNotFound:
        pass  # it is off, or the name is wrong: the plan will tell
    return sorted(uuids)
