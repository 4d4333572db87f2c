"""Going back to a snapshot, in this process: locks, plan, and the run of the sequence."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.create.sequence import Creation
from pyxlsnap.errors import DomainNotFound, Interrupted
from pyxlsnap.guest.protocols import Host, StartMonitor
from pyxlsnap.hooks import Hook
from pyxlsnap.journal import Entry, Journal
from pyxlsnap.linux.locks import DomainLock, ShareLock
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.results import OnProgress, Plan, Progress, Reverted
from pyxlsnap.revert.keep_current import plan_present, take_present
from pyxlsnap.revert.plan import RevertPlan, plan_revert, saved_uuid
from pyxlsnap.revert.sequence import Reversion

log = logging.getLogger(__name__)


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
            with closing(plan_present(host, plan, cancel)) as present:
                creation = Creation(
                    present,
                    Journal(present.guest.uuid),
                    on_progress=on_progress,
                    cancel=cancel,
                    before_suspend=before_suspend,
                    start_monitor=start_monitor,
                )
                kept = take_present(creation, plan)
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


def preview(
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
            plan_present(host, planned, cancel).close()
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


def _uuids(host: Host, domain: str, wanted: SnapshotConfig, cfgfile: Path) -> list[str]:
    """The domains concerned: the one in the memory file, and the one that is there now."""
    uuids = {saved_uuid(wanted, cfgfile)}
    try:
        uuids.add(host.find(domain).uuid)
    except DomainNotFound:
        pass  # it is off, or the name is wrong: the plan will tell
    return sorted(uuids)
