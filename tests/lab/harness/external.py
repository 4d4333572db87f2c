"""External snapshots of a guest's two qcow2 disks, with the frozen files in one directory."""

from typing import Any

from .guests import Guest
from .snapshots import create

FROZEN = "/lab/frozen"


def ask(guest: Guest, name: str) -> str:
    """Write a cfgfile for a snapshot whose disks are frozen as FROZEN/<vdev>.<name>."""
    disks = ", ".join(f"'{FROZEN}/{vdev}.{name},qcow2,{vdev}'" for vdev in guest.disks)
    cfg = f"/tmp/snap/{guest.name}-{name}.cfg"
    guest.dom0.run(f"mkdir -p {FROZEN}")
    guest.dom0.write(cfg, f'name="{name}"\ndisks=[{disks}]\n')
    return cfg


def take(guest: Guest, name: str, *words: str) -> dict[str, Any]:
    """Such a snapshot."""
    return create(guest, ask(guest, name), *words)
