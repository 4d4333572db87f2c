"""Journal entries of operations that were killed."""

from typing import Any

from pyxlsnap.journal import CloneEntry, CreateEntry, DeleteEntry, Journal, RevertEntry
from pyxlsnap.model import Disk, DiskRequest, SnapshotConfig
from pyxlsnap.request import CloneRequest, CreateRequest, DeleteRequest, RevertRequest
from pyxlsnap.results import CloneDisk
from tests.unit.support.values import OTHER_UUID, UUID

_COMMON: dict[str, Any] = {
    "uuid": UUID,
    "domain": "vm1",
    "domid": 7,
    "name": "snap",
    "memory_path": "/m.save",
    "cfgfile": "/m.cfg",
    "disks": (DiskRequest("xvda"),),
    "devices": (Disk("xvda", "/d", "qcow2"),),
    "kinds": {"xvda": "qcow2"},
    "paused": False,
    "monitor": False,
    "started": 1.5,
}


def create_entry(**more: Any) -> CreateEntry:
    """The entry of a create; ``more`` goes in the place of what is usual."""
    own = {"temporary": ("/t",), "directories": (), "disk_state": {"xvda overlay": "/o"}}
    request = CreateRequest(domain="vm1")
    return CreateEntry(**{"request": request, **_COMMON, **own, **more})


def revert_entry(**more: Any) -> RevertEntry:
    """The entry of a revert; ``more`` goes in the place of what is usual."""
    request = RevertRequest(domain=UUID, cfgfile="/m.cfg")
    return RevertEntry(**{"request": request, "boot": "boot", **_COMMON, **more})


def delete_entry(**more: Any) -> DeleteEntry:
    """The entry of a delete; ``more`` goes in the place of what is usual."""
    common = {key: value for key, value in _COMMON.items() if key != "domid"}
    config = SnapshotConfig(name="snap", memory_path="/m.save", disks=(DiskRequest("xvda"),))
    request = DeleteRequest(cfgfile="/m.cfg", config=config)
    return DeleteEntry(**{"request": request, **common, **more})


def clone_entry(**more: Any) -> CloneEntry:
    """The entry of a clone; ``more`` goes in the place of what is usual."""
    own = {"origin": OTHER_UUID, "boot": "boot", "disk_state": {"xvda child": "t"}}
    child = CloneDisk("xvda", "/d.c", "qcow2", "overlay", "rm /d.c", "/d.snap")
    request = CloneRequest(domain="vm1", cfgfile="/m.cfg")
    return CloneEntry(**{"request": request, "children": (child,), **_COMMON, **own, **more})


def killed_revert(uuid: str = UUID) -> RevertEntry:
    """The journal entry of a revert that was killed."""
    entry = Journal(uuid).unfinished_revert()
    assert entry
    return entry
