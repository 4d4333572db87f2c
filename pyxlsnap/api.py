"""The high level: each call runs in a worker process of its own and returns when it has ended.

Nothing of the calling process is touched, whatever libxl does. If the caller dies, the worker
rolls back; if the worker dies, its supervisor recovers, and if that dies too, the caller.
"""

import os
from dataclasses import replace
from pathlib import Path
from types import NoneType

from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import UsageError
from pyxlsnap.hooks import Hooks
from pyxlsnap.model import SnapshotConfig, check_uuid
from pyxlsnap.monitor import launch
from pyxlsnap.request import (
    CreateRequest,
    FeasibilityRequest,
    MonitorRequest,
    RecoverRequest,
    RevertRequest,
)
from pyxlsnap.results import Feasibility, OnEvent, OnProgress, Plan, Recovered, Reverted, Snapshot
from pyxlsnap.worker.call import run

StrPath = str | os.PathLike[str]


def create_snapshot(
    domain: str,
    *,
    cfgfile: StrPath | None = None,
    name: str | None = None,
    config: SnapshotConfig | None = None,
    live: bool = False,
    max_downtime: float | None = None,
    monitor: bool = True,
    hooks: Hooks | None = None,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Snapshot:
    """Take a snapshot of a running or paused domain: its memory, and its disks at the same instant.

    :param domain: name, domid or uuid.
    :param cfgfile: the file to read the snapshot's name, memory file and disks from.
    :param name: the snapshot's name, if the cfgfile has none (the file wins, with a warning).
    :param config: all of it as a value, instead of cfgfile and name.
    :param live: let the domain run while its memory is written.
    :param max_downtime: seconds; refuse if the domain is expected to stand still for longer.
    :param monitor: before Xen 4.20 the process with which xl watches a domain leaves when it is
        suspended; if there was one, start ours in its place (:func:`start_monitor`).
    :param hooks: what is to be called before the suspend and after the resume.
    :param on_progress: called on the calling thread. What it raises cancels the operation and
        reaches the caller after the rollback; if it was too late for that, with a note.
    :param cancel: a token; when it is set, the operation is rolled back.
    :raises UsageError: name, file or option is wrong. Nothing was tried.
    :raises Refused: it cannot be done, and why. Nothing was tried.
    :raises XenError, QmpError, DiskError: libxl, the guest's QEMU or a disk failed while it was
        looked at. Nothing was tried.
    :raises OperationFailed: it failed and was undone: guest, disks and files are as before.
    :raises Interrupted: it was cancelled; the same.
    :raises NeedsAttention: it failed and something is left; the error says what, and the command
        that finishes it.
    """
    request = CreateRequest(
        domain=domain,
        cfgfile=_absolute(cfgfile),
        config=_config(cfgfile, name, config),
        live=live,
        max_downtime=max_downtime,
        monitor=monitor,
    )
    return run(request, Snapshot, on_progress=on_progress, cancel=cancel, hooks=hooks)


def plan_create(
    domain: str,
    *,
    cfgfile: StrPath | None = None,
    name: str | None = None,
    config: SnapshotConfig | None = None,
    live: bool = False,
    max_downtime: float | None = None,
    cancel: Cancel | None = None,
) -> Plan:
    """What :func:`create_snapshot` would do, and for how long the domain would stand still.

    Its parameters are the same, and so are the errors that are raised before anything was tried.
    Nothing is changed, whatever comes of it.

    :raises UsageError, Refused: the operation would raise it, too.
    :raises Interrupted: ``cancel`` was set.
    """
    request = CreateRequest(
        domain=domain,
        cfgfile=_absolute(cfgfile),
        config=_config(cfgfile, name, config),
        live=live,
        max_downtime=max_downtime,
        dry_run=True,
    )
    return run(request, Plan, cancel=cancel)


def _config(
    cfgfile: StrPath | None, name: str | None, config: SnapshotConfig | None
) -> SnapshotConfig:
    if config is None:
        return SnapshotConfig(name=name)
    if (cfgfile, name) != (None, None):
        raise UsageError("give either config, or cfgfile and name")
    if not config.memory_path:
        return config
    return replace(config, memory_path=_absolute(config.memory_path))


def can_snapshot(domain: str, *, cancel: Cancel | None = None) -> Feasibility:
    """Whether :func:`create_snapshot` would be possible now, and live, and all reasons why not.

    For every writable disk, where :func:`create_snapshot` puts it if nothing is said. Nothing is
    changed and no lock is taken, so that an operation under way is not noticed.

    :param domain: name, domid or uuid.
    :param cancel: a token; when it is set, the look ends.
    :raises DomainNotFound: there is no such domain.
    :raises XenUnavailable: Xen cannot be talked to.
    :raises Interrupted: it was cancelled.
    """
    return run(FeasibilityRequest(domain=domain), Feasibility, cancel=cancel)


def revert_snapshot(
    domain: str,
    cfgfile: StrPath,
    *,
    running: bool = False,
    force: bool = False,
    keep_current: bool = False,
    monitor: bool = True,
    hooks: Hooks | None = None,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Reverted:
    """Bring a domain back to a snapshot. What it has done since is lost.

    :param domain: name, domid or uuid; it may be off.
    :param cfgfile: the file that :func:`create_snapshot` wrote.
    :param running: the domain runs afterwards, even if it was paused in the snapshot.
    :param force: do it even if it is risky.
    :param keep_current: take a snapshot of the domain as it is now first (named ``before-…``, its
        disks where those of this snapshot are); if that fails, nothing else is done.
    :param monitor: have the guest's own reboot, power-off or crash acted on afterwards, as by xl
        (:func:`start_monitor`). Leave it out if you do that (:func:`monitor_domain`, or your own).
    :param hooks: what is to be called when it is done; of ``keep_current``, before its suspend and
        after its resume, too.
    :param on_progress: as with :func:`create_snapshot`.
    :param cancel: the same; once the domain is destroyed the revert goes on to its end.
    :raises UsageError, Refused, XenError, DiskError: as with :func:`create_snapshot`: nothing was
        tried.
    :raises Risky: nothing was tried; ``force`` would do it.
    :raises OperationFailed, Interrupted: it ended before anything was changed.
    :raises NeedsAttention: it failed after the domain was destroyed; run it again to finish. (If
        only its worker is killed there, the revert is finished, and the result has a warning.)
    """
    request = RevertRequest(
        domain=domain,
        cfgfile=_absolute(cfgfile),
        running=running,
        force=force,
        keep_current=keep_current,
        monitor=monitor,
    )
    return run(request, Reverted, on_progress=on_progress, cancel=cancel, hooks=hooks)


def plan_revert(
    domain: str,
    cfgfile: StrPath,
    *,
    running: bool = False,
    force: bool = False,
    keep_current: bool = False,
    cancel: Cancel | None = None,
) -> Plan:
    """What :func:`revert_snapshot` would do.

    Its parameters are the same, and so are the errors that are raised before anything was tried.
    Nothing is changed, whatever comes of it.

    :raises UsageError, Refused, Risky: the operation would raise it, too.
    :raises Interrupted: ``cancel`` was set.
    """
    request = RevertRequest(
        domain=domain,
        cfgfile=_absolute(cfgfile),
        running=running,
        force=force,
        keep_current=keep_current,
        dry_run=True,
    )
    return run(request, Plan, cancel=cancel)


def recover(domain: str | None = None) -> Recovered:
    """Finish what an operation that was killed had begun on a domain, or on any.

    A create is rolled back; a revert that had begun to destroy the domain is brought to its end.
    To be called at the start of a daemon, and when the host has crashed. Where nothing was in
    flight it does nothing.

    :param domain: name, domid or uuid; it may be off. ``None``: every domain. Operations that are
        under way are left alone then.
    :raises DomainNotFound: there is neither such a domain nor an operation on one.
    :raises Busy: the domain's operation is still under way.
    :raises NeedsAttention: something is left that needs a person.
    """
    return run(RecoverRequest(domain=domain), Recovered)


def start_monitor(uuid: str) -> None:
    """Start a process that acts on a domain's own reboot, power-off and crash, as xl has one.

    What it does is in the domain's configuration (``on_reboot`` and the others in xl.cfg(5)). It
    outlives the caller (not its systemd unit, unless that has ``KillMode=process``), ends when the
    domain has gone for good, and writes to ``/var/log/xen/pyxlsnap-<name>.log``.

    :param uuid: the domain's uuid.
    :raises UsageError: that is no uuid.
    :raises OperationFailed: it could not be started.
    """
    launch.start_monitor(check_uuid(uuid))


def monitor_domain(
    domain: str, *, on_event: OnEvent | None = None, cancel: Cancel | None = None
) -> None:
    """Act on a domain's own reboot, power-off and crash, as :func:`start_monitor`, by this call.

    It returns when the domain has gone for good.

    :param domain: name, domid or uuid.
    :param on_event: called on the calling thread when something has been acted on. What it raises
        ends the watch and reaches the caller.
    :param cancel: a token; when it is set, the watch ends.
    :raises DomainNotFound: there is no such domain.
    :raises Interrupted: it was cancelled. The domain is as it was.
    :raises NeedsAttention: the domain has shut down, and what it is configured for could not be
        done; or the watch itself has died.
    """
    run(MonitorRequest(domain=domain), NoneType, on_event=on_event, cancel=cancel)


def _absolute(path: StrPath | None) -> str:
    return str(Path(path).absolute()) if path is not None else ""  # the worker starts in /
