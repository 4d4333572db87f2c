"""What would keep the disks of a clone from being deleted: found while the clone still runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pyxlsnap.clone.line_files import made_files
from pyxlsnap.clone.names import refuse_renamed
from pyxlsnap.clone.removal import strategies_of
from pyxlsnap.clone_file import CloneFile, not_mounted
from pyxlsnap.disks.rivals import refuse_users
from pyxlsnap.disks.standing import has_snapshots_inside, standing_on
from pyxlsnap.errors import Refused
from pyxlsnap.guest import checks
from pyxlsnap.guest.device_model import servers
from pyxlsnap.guest.protocols import Host
from pyxlsnap.journal import CloneEntry
from pyxlsnap.linux.changeable import unchangeable
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.there import is_file, lexists
from pyxlsnap.results import CloneDisk


def refuse_undeletable(host: Host, entry: CloneEntry, waiting: Callable[[str], None]) -> None:
    """Refuse to take a clone apart whose domain or disks somebody else needs or protects.

    :param waiting: called again and again while others use a disk; what it raises ends the wait.
    :raises Refused: its domain was renamed; a strategy that made a disk is not there; a disk is in
        use by others; a disk or the file of a serial line cannot be deleted; an image stands on a
        disk; a disk has disk snapshots inside; or the filesystem of a disk is not mounted.
    """
    guest = host.find_if_there(entry.uuid)
    refuse_renamed(guest, entry.domain)
    with strategies_of(entry, waiting), refusing_os_errors():
        devices = {disk.vdev: disk for disk in entry.devices}
        disks = {
            child: replace(devices[child.vdev], target=child.target, format=child.format)
            for child in entry.children
            if child.vdev in devices  # (a strategy of another package may name more)
        }
        checks.refuse_shared(host, guest, [*disks.values()])
        refuse_users([*disks.values()], servers(guest), waiting)
        for child in disks:
            _refuse_kept(entry, child)
        for path in filter(lexists, made_files(entry)):
            _refuse_protected(entry, Path(path))


def _refuse_protected(entry: CloneEntry, path: Path) -> None:
    """Refuse a file that could not be deleted."""
    if why := unchangeable(path, write=False) or unchangeable(path.parent):
        raise Refused(f"the clone {entry.domain} cannot be deleted: {path} {why}")


def _refuse_kept(entry: CloneEntry, child: CloneDisk) -> None:
    path = Path(child.target)
    if where := not_mounted(entry, child):
        raise Refused(
            f"the clone {entry.domain} cannot be deleted: its disk {path} is not there, and no "
            f"filesystem is mounted at {where}: mount it first; if it is lost, destroy the domain "
            f"and remove {CloneFile(entry.uuid).path}"
        )
    if not is_file(path):
        return
    _refuse_protected(entry, path)
    if images := standing_on(path, [path.parent]):
        raise Refused(
            f"the clone {entry.domain} cannot be deleted: {images[0]} stands on its disk {path}: "
            f"delete what stands there first"
        )
    # (What a guest has written to a raw disk may look like an image.)
    if child.format == "qcow2" and has_snapshots_inside(path):
        raise Refused(
            f"the clone {entry.domain} cannot be deleted: there are disk snapshots inside its disk "
            f"{path}, which would be lost: delete them first, with the commands that "
            f"snapshot-create printed (`qemu-img snapshot -l` lists them)"
        )
