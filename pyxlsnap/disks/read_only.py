"""Read-only disks of a restored domain that another domain may write to.

libxl's hotplug script gives a block device to a domain for reading only if no other domain has it
for writing (``check_sharing`` in tools/hotplug/Linux/block of Xen).
"""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.disks.served import is_local
from pyxlsnap.errors import Refused
from pyxlsnap.linux.stalled import stat_within
from pyxlsnap.linux.there import is_block_device
from pyxlsnap.linux.waiting import remaining
from pyxlsnap.model import Disk

# The backend of a domain that was destroyed is there for a moment.
_GOES_S, _POLL_S = 2.0, 0.05
_SCRIPTS = ("", "block", "/etc/xen/scripts/block")
_LOOKS = b"check_sharing"  # (somebody may have put another script in its place)


def refuse_written(disks: Sequence[Disk], domid: int | None) -> None:
    """Refuse a read-only block device that blkback lets another domain write to.

    :param domid: the guest that will be destroyed; ``None``: it is off.
    :raises Refused: the message names the disk and the other domain.
    """
    for disk in disks:
        if disk.readwrite or disk.for_qemu or disk.script not in _SCRIPTS:
            continue
        if not (is_local(disk) and (number := _number(disk.target)) and _looks()):
            continue  # (a file: the script compares loop devices of it in a way that finds none)
        if found := remaining(partial(_others, number, domid), within_s=_GOES_S, poll_s=_POLL_S):
            raise Refused(
                f"{disk.vdev}: domain {found[0]} may write to {disk.target}, so Xen would not give "
                f"the disk to the restored guest: detach it there (xl block-detach)"
            )


def _looks() -> bool:
    """Whether the script of this host looks for other domains."""
    try:
        return _LOOKS in (paths.XEN_SCRIPTS / "block").read_bytes()
    except OSError:
        return False


def _number(target: str) -> str:
    """The number of a block device as blkback shows it; "" if the path leads to none."""
    try:
        if not Path(target).is_absolute() or not (number := stat_within(target).st_rdev):
            return ""
        return f"{os.major(number):x}:{os.minor(number):x}" if is_block_device(target) else ""
    except OSError:
        return ""


def _others(number: str, domid: int | None) -> list[int]:
    return [other for other in _writers(number) if other != domid]


def _writers(number: str) -> Iterator[int]:
    """The domids for which blkback serves a block device, and which may write to it."""
    for backend in (paths.SYS / "bus/xen-backend/devices").glob("vbd-*-*"):
        try:
            if (backend / "physical_device").read_text().strip() != number:
                continue
            mode = (backend / "mode").read_text()
            domid = int(backend.name.split("-")[1])
        except (OSError, ValueError):
            continue  # it has gone, or has no device yet
        if "w" in mode and "!" not in mode:
            yield domid
