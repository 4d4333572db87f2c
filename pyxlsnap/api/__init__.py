"""The high level: each call runs in a worker process of its own, and returns when it has ended.

A failure inside libxl cannot harm the calling process. If the calling process dies, the worker
rolls back. If the worker dies, its supervisor process recovers. If the supervisor dies too, the
calling process recovers.
"""

import os
from dataclasses import replace
from pathlib import Path
from types import NoneType

from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import UsageError
from pyxlsnap.hooks import Hooks
from pyxlsnap.model import SnapshotConfig, check_uuid
from pyxlsnap.request import (
    CreateRequest,
    DeleteRequest,
    FeasibilityRequest,
    MonitorRequest,
    ReadRequest,
    RecoverRequest,
    RevertRequest,
)
from pyxlsnap.results import (
    Deleted,
    Feasibility,
    OnEvent,
    OnProgress,
    Plan,
    Recovered,
    Reverted,
    Snapshot,
)
from pyxlsnap.snapshot_info import SnapshotInfo
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
    max_rate: float | None = None,
    monitor: bool = True,
    hooks: Hooks | None = None,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Snapshot:
    """Take a snapshot of a running or paused domain: its memory and disks at the same instant.

    The domain is suspended for the disk snapshots, and without ``live`` while its memory is
    written, too. A paused domain is paused again afterwards.

    :param domain: name, domid or uuid.
    :param cfgfile: the file with the snapshot's name, memory file and disks. By default: named
        after the time, every writable disk, in ``/var/lib/xen/snapshots/<uuid>``.
    :param name: the snapshot's name. A name in the cfgfile goes first, with a warning.
    :param config: the content of a cfgfile as a value, instead of ``cfgfile`` and ``name``.
    :param live: let the domain run while its memory is written.
    :param max_downtime: seconds; refuse if a longer suspension is expected. ``None``: no limit.
    :param max_rate: MiB a second, at least 1; with ``live``: write the memory no faster while the
        domain runs, so that other guests can use the disk. ``None``: no limit. A low limit gives
        the domain more time to change memory that is then written while it is suspended.
    :param monitor: :func:`start_monitor` if xl's own exits at the suspend, before Xen 4.20.
    :param hooks: functions to call before the suspend and after the resume.
    :param on_progress: called on the calling thread. An exception from it cancels the operation and
        is raised after the rollback; a note on it says if it came too late for that.
    :param cancel: a token; setting it cancels the operation.
    :raises UsageError, Refused, XenError, QmpError, DiskError: a check failed. Nothing was changed.
    :raises OperationFailed, Interrupted: it failed, or was cancelled, and was undone: guest, disks
        and files are as before.
    :raises GuestEnded: it ended by itself before the suspend. Disks and files are as before.
    :raises NeedsAttention: something is left: the error lists it, with the command that finishes.
    """
    asked = _asked(domain, cfgfile, name, config)
    request = replace(
        asked, live=live, max_downtime=max_downtime, max_rate=max_rate, monitor=monitor
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
    max_rate: float | None = None,
    cancel: Cancel | None = None,
) -> Plan:
    """Return what :func:`create_snapshot` would do, and for how long the domain would be suspended.

    Its parameters are the same, and it does the same checks. It never changes anything.

    :raises UsageError, Refused, XenError, QmpError, DiskError: as with :func:`create_snapshot`,
        which would fail in the same way.
    :raises Interrupted: the call was cancelled.
    """
    asked = _asked(domain, cfgfile, name, config)
    request = replace(asked, live=live, max_downtime=max_downtime, max_rate=max_rate, dry_run=True)
    return run(request, Plan, cancel=cancel)


def _asked(
    domain: str, cfgfile: StrPath | None, name: str | None, config: SnapshotConfig | None
) -> CreateRequest:
    said = _config(cfgfile, name, config)
    return CreateRequest(domain=domain, cfgfile=absolute(cfgfile), config=said)


def _config(
    cfgfile: StrPath | None, name: str | None, config: SnapshotConfig | None
) -> SnapshotConfig:
    if config is None:
        return SnapshotConfig(name=name)
    if (cfgfile, name) != (None, None):
        raise UsageError("give either config, or cfgfile and name")
    if not config.memory_path:
        return config
    return replace(config, memory_path=absolute(config.memory_path))


def can_snapshot(domain: str, *, cancel: Cancel | None = None) -> Feasibility:
    """Check whether a snapshot is possible now, and a live snapshot; return all reasons against it.

    The check is for a snapshot of every writable disk, in the default places. Nothing is changed.
    No lock is taken: another operation on the domain, which would make :func:`create_snapshot`
    raise :class:`Busy`, is not noticed.

    :param domain: name, domid or uuid.
    :param cancel: a token; setting it ends the check.
    :raises DomainNotFound: there is no such domain.
    :raises XenUnavailable: this process cannot use Xen.
    :raises Interrupted: the check was cancelled.
    """
    return run(FeasibilityRequest(domain=domain), Feasibility, cancel=cancel)


def revert_snapshot(
    domain: str,
    cfgfile: StrPath,
    *,
    running: bool = False,
    paused: bool = False,
    force: bool = False,
    keep_current: bool = False,
    monitor: bool = True,
    hooks: Hooks | None = None,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Reverted:
    """Revert a domain to a snapshot. Everything that the domain did since the snapshot is lost.

    The domain is destroyed, its disks are put back, and its memory is restored, after everything
    was checked. The restored domain has a new domid.

    :param domain: name, domid or uuid. The domain may be off.
    :param cfgfile: the file that :func:`create_snapshot` wrote.
    :param running: unpause the domain afterwards, even if it was paused in the snapshot.
    :param paused: leave the domain paused, even if it ran in the snapshot: it has run no
        instruction since.
    :param force: do the revert even if it cannot be shown to be safe.
    :param keep_current: first take a snapshot of the domain as it is now (named ``before-…``, disk
        snapshots beside those of this snapshot). If that fails, nothing is reverted.
    :param monitor: start a monitor for the restored domain (:func:`start_monitor`). False: your
        program acts on the domain's reboots (:func:`monitor_domain`).
    :param hooks: functions to call when the revert is done, and around the snapshot of
        ``keep_current``.
    :param on_progress: as with :func:`create_snapshot`.
    :param cancel: a token; setting it cancels the operation, until the domain is destroyed.
    :raises UsageError, Refused, XenError, DiskError: a check failed. Nothing was changed.
    :raises Risky: it cannot be shown to be safe, and needs ``force``. Nothing was changed.
    :raises OperationFailed, Interrupted: it failed, or was cancelled, before the domain was
        destroyed. Everything is as before; a snapshot of ``keep_current`` stays, and is named.
    :raises NeedsAttention: it failed after the destroy. Run the revert again to finish it. (If only
        the worker was killed, a recovery finishes the revert, and the result has a warning.)
    """
    request = RevertRequest(
        domain=domain,
        cfgfile=absolute(cfgfile),
        running=running,
        paused=paused,
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
    paused: bool = False,
    force: bool = False,
    keep_current: bool = False,
    cancel: Cancel | None = None,
) -> Plan:
    """Return what :func:`revert_snapshot` would do.

    Its parameters are the same, and it does the same checks. It never changes anything.

    :raises UsageError, Refused, Risky, XenError, DiskError: as with :func:`revert_snapshot`, which
        would fail in the same way.
    :raises Interrupted: the call was cancelled.
    """
    request = RevertRequest(
        domain=domain,
        cfgfile=absolute(cfgfile),
        running=running,
        paused=paused,
        force=force,
        keep_current=keep_current,
        dry_run=True,
    )
    return run(request, Plan, cancel=cancel)


def delete_snapshot(
    cfgfile: StrPath,
    *,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Deleted:
    """Delete what one cfgfile names: the disk snapshots, the memory file, and the cfgfile itself.

    The domain may run, be paused, or be off. Only parts that pyxlsnap made are deleted. What stands
    on a disk snapshot (the disk, or a later disk snapshot) is first made independent of it, which
    copies data: in a running domain by its QEMU, else by qemu-img. If a part cannot be deleted
    safely in the present state of the domain, nothing is deleted. A part that is not there counts
    as deleted.

    If it fails after something was deleted, or is killed, :func:`recover` or another call with the
    same ``cfgfile`` deletes the rest. The cfgfile is deleted first, so there is never a cfgfile of
    a snapshot that is not whole.

    :param cfgfile: the file that :func:`create_snapshot` wrote.
    :param on_progress: as with :func:`create_snapshot`.
    :param cancel: a token; setting it cancels the operation, until something is deleted.
    :raises UsageError, Refused, XenError, DiskError: a check failed. Nothing was changed.
    :raises OperationFailed, Interrupted: it failed, or was cancelled, before anything was deleted.
        The snapshot is whole.
    :raises NeedsAttention: it failed later. The error lists what is left. (If only the worker was
        killed, a recovery finishes the delete, and the result has a warning.)
    """
    request = DeleteRequest(cfgfile=absolute(cfgfile))
    return run(request, Deleted, on_progress=on_progress, cancel=cancel)


def read_snapshot(cfgfile: StrPath, *, cancel: Cancel | None = None) -> SnapshotInfo:
    """Find what one cfgfile stands for: names, time, versions, sizes, disks, and what is missing.

    For programs that show snapshots, or delete old ones. Needs no running Xen. Takes no lock, so an
    operation that is under way may change what is found.

    :param cfgfile: the file that :func:`create_snapshot` wrote.
    :param cancel: a token; setting it ends the call.
    :raises ConfigError: the cfgfile is wrong, or belongs to another memory file.
    :raises Refused: the file of some clone cannot be read, or a journal, which may be that of one.
    :raises Interrupted: the call was cancelled.
    """
    return run(ReadRequest(cfgfile=absolute(cfgfile)), SnapshotInfo, cancel=cancel)


def recover(
    domain: str | None = None,
    *,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Recovered:
    """Finish or undo the operations that were killed, on one domain or on all domains.

    A create is rolled back, and so is a clone whose memory was not restored yet. A revert that had
    begun to destroy the domain is finished, and so are any other clone, and a delete that had
    deleted something. Call this when a daemon starts, and after a crash of the host.

    :param domain: name, domid or uuid. The domain may be off. ``None``: all domains; operations
        that are under way are left alone.
    :param on_progress: called while the recovery has to wait, for a QEMU that does not answer: the
        guest is suspended until then.
    :param cancel: ends such a wait of this call, with :class:`NeedsAttention`. The recovery itself
        cannot be cancelled: it goes on in its process.
    :raises DomainNotFound: there is no such domain, and no unfinished operation on it.
    :raises Busy: an operation on ``domain`` is under way. Nothing was changed.
    :raises NeedsAttention: an operation could not be finished or undone, or a person must decide.
        The error lists what is left, and has the commands to run. The journals of these operations
        stay.
    """
    request = RecoverRequest(domain=domain)
    return run(request, Recovered, on_progress=on_progress, cancel=cancel)


def start_monitor(uuid: str) -> None:
    """Start a monitor: a process that acts on a domain's own reboot, power-off and crash.

    The process does what ``on_reboot``, ``on_poweroff``, ``on_crash`` and similar settings of the
    domain say (xl.cfg(5)), as xl's own process does. It continues when the caller ends (in a
    systemd unit only with ``KillMode=process``). It ends when the domain is destroyed, or has shut
    down and its action does not start it again. It logs to ``/var/log/xen/pyxlsnap-<name>.log``.

    :param uuid: the domain's uuid.
    :raises UsageError: ``uuid`` is not a uuid. Nothing was started.
    :raises OperationFailed: the process could not be started, and no process watches the domain.
    """
    from pyxlsnap.monitor import launch  # only here: the other calls do not need the module

    launch.start_monitor(check_uuid(uuid))


def monitor_domain(
    domain: str, *, on_event: OnEvent | None = None, cancel: Cancel | None = None
) -> None:
    """Act on a domain's own reboot, power-off and crash while this call runs.

    The call does what the process of :func:`start_monitor` does, and returns when that would end.

    :param domain: name, domid or uuid.
    :param on_event: called on the calling thread after each action. An exception from it ends the
        call, and is raised again.
    :param cancel: a token; setting it ends the call.
    :raises DomainNotFound: there is no such domain.
    :raises Interrupted: the call was cancelled, after an action that had begun was completed. No
        process watches the domain.
    :raises NeedsAttention: the domain shut down, and the configured action failed; or the worker
        process died. No process watches the domain.
    """
    run(MonitorRequest(domain=domain), NoneType, on_event=on_event, cancel=cancel)


def absolute(path: StrPath | None) -> str:
    """The absolute path of a file, "" for ``None``.

    :meta private:
    """
    return str(Path(path).absolute()) if path is not None else ""  # the worker starts in /
