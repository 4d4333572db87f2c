"""What a disk snapshot is on the host: where it is, its size, and what depends on it.

This only looks. Strategies of other packages are not asked: nothing is known of their disk
snapshots.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.copy.block_device import BlockCopy
from pyxlsnap.disks.copy.raw_file import RawFile
from pyxlsnap.disks.lvm.commands import volumes
from pyxlsnap.disks.lvm.names import place
from pyxlsnap.disks.lvm.thick import LvmThick
from pyxlsnap.disks.lvm.thin import LvmThin
from pyxlsnap.disks.qcow2.backing import chain_files
from pyxlsnap.disks.qcow2.qemu import checked_tags
from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.disks.standing import standing_on
from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.linux.stalled import stat_within
from pyxlsnap.linux.there import exists
from pyxlsnap.model import Disk, DiskRequest

_BLOCK = 512  # bytes: the unit of st_blocks


@dataclass(frozen=True, slots=True)
class Found:
    """A disk snapshot as it was found."""

    #: as in :class:`pyxlsnap.SnapshotDisk`
    where: str
    size_bytes: int | None = None
    stands_on: tuple[str, ...] = ()
    supports: tuple[str, ...] = ()
    #: what is missing or damaged; "" if nothing is
    missing: str = ""


def look(disk: Disk, request: DiskRequest, kind: str, name: str, looks_in: Iterable[Path]) -> Found:
    """Find a disk snapshot. Changes nothing, and does not wait for a server that is silent.

    :param disk: the disk in the saved configuration.
    :param kind: the strategy that took the disk snapshot.
    :param name: the snapshot's name.
    :param looks_in: further directories in which images may be that depend on it.
    """
    try:
        if look := _LOOKS.get(kind):
            return look(disk, request, name, looks_in)
    except (OSError, DiskError, Refused) as e:
        text = e.strerror or str(e) if isinstance(e, OSError) else str(e)
        return Found(request.path or disk.target, missing=f"{disk.vdev}: {text}")
    return Found(request.path or f"{name} of {disk.target}")


def _qcow2(disk: Disk, request: DiskRequest, name: str, looks_in: Iterable[Path]) -> Found:
    if request.internal:
        return _inside(disk, name)
    path = Path(request.path)
    size = _size(path)
    if size is None:
        return Found(str(path), missing=f"{disk.vdev}: there is no file {path}")
    chain = chain_files(path)
    lost = "" if exists(chain[-1]) else f"{disk.vdev}: {path} stands on {chain[-1]}, which is gone"
    beside = (path.parent, Path(os.path.realpath(disk.target)).parent, *looks_in)
    standing = standing_on(path, beside)
    return Found(
        str(path), size, tuple(map(str, chain[1:])), tuple(map(str, standing)), missing=lost
    )


def _inside(disk: Disk, name: str) -> Found:
    where = f"{name} in {disk.target}"
    stat_within(disk.target)
    tags = [tag.name for tag in checked_tags(disk)]
    lost = "" if name in tags else f"{disk.vdev}: {disk.target} has no disk snapshot {name} inside"
    return Found(where, None, (disk.target,), missing=lost)


def _copy(disk: Disk, request: DiskRequest, name: str, looks_in: Iterable[Path]) -> Found:
    size = _size(Path(request.path))
    lost = f"{disk.vdev}: there is no file {request.path}" if size is None else ""
    return Found(request.path, size, missing=lost)


def _volume(disk: Disk, request: DiskRequest, name: str, looks_in: Iterable[Path]) -> Found:
    at = place(disk, request, name)
    where = at.full(at.snapshot)
    volume = volumes(at.vdev, at.vg).get(at.snapshot)
    if volume is None:
        return Found(where, missing=f"{disk.vdev}: there is no volume {where}")
    lost = f"{disk.vdev}: the volume {where} has run full, and is lost" if volume.invalid else ""
    thick = "thin" not in volume.layout
    stands_on = (at.full(at.lv),) if thick else ()
    return Found(where, volume.size if thick else None, stands_on, missing=lost)


def _size(path: Path) -> int | None:
    """The space that a file takes, bytes; ``None`` if there is no such file."""
    try:
        return stat_within(path).st_blocks * _BLOCK
    except FileNotFoundError:
        return None


_LOOKS: dict[str, Callable[[Disk, DiskRequest, str, Iterable[Path]], Found]] = {
    Qcow2.kind: _qcow2,
    RawFile.kind: _copy,
    BlockCopy.kind: _copy,
    LvmThin.kind: _volume,
    LvmThick.kind: _volume,
}
