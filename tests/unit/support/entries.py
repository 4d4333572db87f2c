"""Journal entries of operations that were killed."""

from typing import Any

from pyxlsnap.journal import CreateEntry, Journal, RevertEntry
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.request import CreateRequest, RevertRequest
from tests.unit.support.values import UUID

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


def killed_revert(uuid: str = UUID) -> RevertEntry:
    """The journal entry of a revert that was killed."""
    entry = Journal(uuid).unfinished_revert()
    assert entry
    return entry
