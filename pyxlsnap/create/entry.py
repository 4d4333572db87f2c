"""What the journal says of a create under way."""

import time

from pyxlsnap.create.files import SnapshotFiles
from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.journal import CreateEntry, boot_id
from pyxlsnap.model import GuestKind


def entry_of(plan: CreatePlan, files: SnapshotFiles, *, watched: bool) -> CreateEntry:
    """The journal's entry for a create that begins now.

    :param watched: the caller wants a monitor if xl's process ends at the suspend.
    """
    return CreateEntry(
        request=plan.request,
        uuid=plan.guest.uuid,
        domid=plan.guest.domid,
        boot=boot_id(),
        domain=plan.guest.name,
        paused=plan.paused,
        monitor=plan.loses_monitor and watched,
        name=plan.metadata.name,
        temporary=(str(files.temporary), str(files.temporary_cfgfile)),
        directories=tuple(map(str, files.directories)),
        memory_path=str(plan.memory_path),
        cfgfile=str(plan.cfgfile),
        disks=plan.metadata.disks,
        devices=plan.devices,
        disk_state={k: v for s in plan.strategies for k, v in s.state().items()},
        kinds=dict(plan.metadata.kinds),
        started=time.time(),
        hvm=plan.examined.config.kind is GuestKind.HVM,
    )
