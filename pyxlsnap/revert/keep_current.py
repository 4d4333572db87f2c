"""The snapshot of the present that a revert takes first (``--keep-current``)."""

import logging
from dataclasses import replace
from datetime import datetime

from pyxlsnap.cancel import Cancel
from pyxlsnap.create.plan import CreatePlan, plan_create
from pyxlsnap.create.sequence import Creation
from pyxlsnap.disks.lvm.commands import is_lvm
from pyxlsnap.disks.registry import default_request
from pyxlsnap.errors import OperationFailed, PyxlsnapError, Refused
from pyxlsnap.guest.protocols import Host
from pyxlsnap.journal import Journal
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.results import Snapshot
from pyxlsnap.revert.plan import RevertPlan

log = logging.getLogger(__name__)


_KEPT_NAME = 80  # characters of the snapshot's name in that of the present


def take_present(creation: Creation, plan: RevertPlan) -> Snapshot:
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


def plan_present(host: Host, plan: RevertPlan, cancel: Cancel) -> CreatePlan:
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
