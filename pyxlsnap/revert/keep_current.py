"""The snapshot of the present state that a revert takes first (``--keep-current``)."""

import logging
import time
from dataclasses import replace

from pyxlsnap.cancel import Cancel
from pyxlsnap.create.plan import CreatePlan, make_plan
from pyxlsnap.create.sequence import Creation
from pyxlsnap.create.waiting import Waiting
from pyxlsnap.disks.lvm.commands import is_lvm
from pyxlsnap.disks.registry import default_request
from pyxlsnap.errors import OperationFailed, PyxlsnapError, Refused
from pyxlsnap.guest.protocols import Host
from pyxlsnap.journal import Journal
from pyxlsnap.model import Disk, DiskRequest, SnapshotConfig
from pyxlsnap.request import Callbacks, CreateRequest
from pyxlsnap.revert.plan import RevertPlan

log = logging.getLogger(__name__)

_KEPT_NAME = 80  # characters of the old snapshot's name in the name of the new one


def plan_present(host: Host, plan: RevertPlan, callbacks: Callbacks, cancel: Cancel) -> CreatePlan:
    """Plan the snapshot of the domain that is to be destroyed.

    :raises Refused: there is no domain, or no snapshot of it is possible.
    """
    guest = plan.guest
    if guest is None:
        raise Refused(
            f"{plan.config.name} is off and has no present state to keep: run the command without "
            f"--keep-current"
        )
    Journal(guest.uuid).refuse_unfinished()
    name = f"before-{plan.name[:_KEPT_NAME]}-{time.strftime('%Y%m%d-%H%M%S')}"
    config = SnapshotConfig(
        name=name,
        description=f"before a revert to {plan.name}",
        disks=_disks(guest.config().disks, plan, name),
    )
    request = CreateRequest(domain=guest.uuid, config=config, monitor=plan.request.monitor)
    waiting = Waiting(guest.name, guest.uuid, callbacks, cancel)
    return make_plan(host, guest, request, cancel, waiting)


def _disks(disks: tuple[Disk, ...], plan: RevertPlan, name: str) -> tuple[DiskRequest, ...]:
    """Disk snapshots that outlive the revert.

    If the revert replaces a disk's file, a disk snapshot inside the file would be lost with it, so
    it goes into a file of its own. Disks that the revert does not change are included, too, except
    those that would have to be copied: a copy may take long, and the user did not ask for it.
    """
    reverted = {r.vdev for r in plan.requests}
    beside = {r.vdev: r for r in plan.requests if r.path and not r.path.startswith("/dev/")}
    return tuple(
        replace(beside[d.vdev], path=f"{beside[d.vdev].path}.{name}")
        if d.vdev in beside
        else default_request(d, name)
        for d in disks
        if not d.left_out and (d.vdev in reverted or d.format != "raw" or is_lvm(d.target))
    )


def take_present(
    present: CreatePlan, plan: RevertPlan, callbacks: Callbacks, cancel: Cancel
) -> str:
    """Take the snapshot of the present state, and check again that the revert is possible.

    :returns: the cfgfile of the snapshot.
    :raises OperationFailed: the snapshot failed, and was undone; or the revert is not possible any
        more, and the snapshot stays.
    :raises Interrupted, NeedsAttention: as :func:`pyxlsnap.create.operation.create`.
    """
    kept = Creation(present, callbacks, cancel).run()
    for warning in kept.warnings:
        log.warning("%s: %s", kept.name, warning)
    try:
        for strategy in plan.strategies:  # the snapshot may have used the space that they need
            strategy.check_revert()
    except PyxlsnapError as e:
        raise OperationFailed(
            f"{e}; nothing was changed; the snapshot of the present state stays: {kept.cfgfile}",
            step="keep current",
        ) from e
    return kept.cfgfile
