"""The calls of the high level about clones; like those of :mod:`pyxlsnap.api`."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pyxlsnap.api import StrPath, absolute
from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import UsageError
from pyxlsnap.hooks import Hooks
from pyxlsnap.model import DiskRequest
from pyxlsnap.request import CloneConfigurationRequest, CloneRequest, DeleteCloneRequest
from pyxlsnap.results import CloneConfiguration, Cloned, Deleted, OnProgress, Plan
from pyxlsnap.worker.call import run

#: changes libxl's JSON in place
Edit = Callable[[dict[str, Any]], None]


def clone_snapshot(
    cfgfile: StrPath,
    name: str,
    *,
    disks: Sequence[DiskRequest] = (),
    bridge: str | None = None,
    edit: Edit | None = None,
    running: bool = False,
    paused: bool = False,
    replace: bool = False,
    force: bool = False,
    monitor: bool = True,
    hooks: Hooks | None = None,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Cloned:
    """Make a new domain from a snapshot: it goes on from there, under a name and uuid of its own.

    The snapshot is only read. Each disk of the clone is a child of its disk snapshot that holds
    what the clone writes: a qcow2 overlay, a reflink, a thin volume; or a copy, which is made only
    of a disk that is named in ``disks``. Many clones of one snapshot may be made at once, while its
    domain runs or is reverted.

    :param cfgfile: the file that :func:`create_snapshot` wrote.
    :param name: the name of the new domain.
    :param disks: where disks of the clone are made (vdev, path, format). By default: beside the
        disk snapshot, under its name with the clone's name at the end.
    :param bridge: the bridge for all its network devices. ``None``: those of the snapshot.
    :param edit: called on the calling thread with the clone's configuration (libxl's JSON as a
        dictionary), to change it in place. Name, uuid, type, memory, processors, the clone's disks
        and the number of devices must stay.
    :param running: unpause the clone, even if the domain was paused in the snapshot.
    :param paused: leave the clone paused: it has run no instruction.
    :param replace: if there is a clone of this name from the same snapshot, destroy it and delete
        its disks. The new one has its uuid and MAC addresses. What can be done before is done
        before.
    :param force: make the clone even if that cannot be shown to be safe.
    :param monitor: start a monitor for the clone (:func:`start_monitor`).
    :param hooks: ``after_clone`` is called when the clone is made.
    :param on_progress: as with :func:`create_snapshot`.
    :param cancel: a token; setting it cancels the operation, until the memory is restored or a
        clone is destroyed.
    :raises UsageError, Refused, XenError, DiskError: a check failed. Nothing was changed.
    :raises Risky: it cannot be shown to be safe, and needs ``force``. Nothing was changed.
    :raises OperationFailed, Interrupted: it failed, or was cancelled, and was undone: there is no
        clone, and nothing is left of it.
    :raises NeedsAttention: something is left, and the error lists it; or it failed after the clone
        that was to be replaced had been destroyed.
    """
    request = asked(cfgfile, name, disks, bridge, running=running, paused=paused)
    request = dataclasses.replace(request, force=force, replace=replace, monitor=monitor)
    request = edited(request, edit, run, cancel)
    return run(request, Cloned, on_progress=on_progress, cancel=cancel, hooks=hooks)


def plan_clone(
    cfgfile: StrPath,
    name: str,
    *,
    disks: Sequence[DiskRequest] = (),
    bridge: str | None = None,
    edit: Edit | None = None,
    running: bool = False,
    paused: bool = False,
    replace: bool = False,
    force: bool = False,
    cancel: Cancel | None = None,
) -> Plan:
    """Return what :func:`clone_snapshot` would do.

    Its parameters are the same, and it does the same checks. It never changes anything.

    :raises UsageError, Refused, Risky, XenError, DiskError: as with :func:`clone_snapshot`, which
        would fail in the same way.
    :raises Interrupted: the call was cancelled.
    """
    request = asked(cfgfile, name, disks, bridge, running=running, paused=paused)
    request = dataclasses.replace(request, force=force, replace=replace, dry_run=True)
    return run(edited(request, edit, run, cancel), Plan, cancel=cancel)


def delete_clone(
    name: str, *, on_progress: OnProgress | None = None, cancel: Cancel | None = None
) -> Deleted:
    """Destroy a clone, and delete its disks. The clone may be off.

    Only what :func:`clone_snapshot` made is deleted. If it is killed, :func:`recover` deletes the
    rest.

    :param name: the clone's name, as it was given to :func:`clone_snapshot`. A clone whose domain
        was renamed since is kept.
    :param on_progress: as with :func:`create_snapshot`.
    :param cancel: a token; setting it cancels the operation, until it has begun.
    :raises DomainNotFound: there is no clone of this name. Nothing was changed.
    :raises Refused, Busy: a check failed: an image stands on one of its disks, for example, or a
        disk has disk snapshots inside. Nothing was changed.
    :raises Interrupted: it was cancelled before it had begun.
    :raises NeedsAttention: something is left, and the error lists it: a disk that another file has
        replaced, for example, as a snapshot or a revert of the clone does.
    """
    request = DeleteCloneRequest(domain=name)
    return run(request, Deleted, on_progress=on_progress, cancel=cancel)


def asked(
    cfgfile: StrPath,
    name: str,
    disks: Sequence[DiskRequest],
    bridge: str | None,
    *,
    running: bool,
    paused: bool,
) -> CloneRequest:
    """The request for a clone; the parameters are those of :func:`clone_snapshot`.

    :raises UsageError: a value is wrong.
    :meta private:
    """
    if len({disk.vdev for disk in disks}) < len(disks):
        raise UsageError("disks names a disk twice: name each once")
    if bridge is not None and not bridge.strip():
        raise UsageError(
            "the name of the bridge is empty: name the bridge, or leave the choice to the snapshot"
        )
    return CloneRequest(
        domain=name,
        cfgfile=absolute(cfgfile),
        disks=tuple(_absolute(disk) for disk in disks),
        bridge=bridge or "",
        running=running,
        paused=paused,
    )


def _absolute(disk: DiskRequest) -> DiskRequest:
    return dataclasses.replace(disk, path=absolute(disk.path)) if disk.path else disk


class Run(Protocol):
    """:func:`pyxlsnap.worker.call.run`, or the same in a process that is kept ready.

    :meta private:
    """

    def __call__(
        self,
        request: CloneConfigurationRequest,
        returns: type[CloneConfiguration],
        *,
        cancel: Cancel | None,
    ) -> CloneConfiguration: ...


def edited(
    request: CloneRequest, edit: Edit | None, run: Run, cancel: Cancel | None
) -> CloneRequest:
    """Let the caller change the configuration that the clone would have.

    :param edit: see :func:`clone_snapshot`; ``None``: the caller changes nothing.
    :param run: finds that configuration.
    :raises UsageError: the configuration is no JSON any more.
    :raises PyxlsnapError: the clone cannot be made.
    :meta private:
    """
    if edit is None:
        return request
    wanted = CloneConfigurationRequest(clone=request)
    found = run(wanted, CloneConfiguration, cancel=cancel)
    values = json.loads(found.json)
    edit(values)
    try:
        text = json.dumps(values)
    except (TypeError, ValueError) as e:
        raise UsageError(f"the edited configuration of {request.domain}: {e}") from e
    return dataclasses.replace(request, edited=text, uuid=found.uuid)
