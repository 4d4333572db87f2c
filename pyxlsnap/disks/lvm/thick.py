"""Thick LVM volumes: a snapshot as large as the disk; a revert copies back what differs.

Merging would be quicker, but consumes the snapshot. The content before a revert is not kept: that
would take as much space again.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from pyxlsnap.disks.lvm.base import Groups, LvmDisks
from pyxlsnap.disks.lvm.clones import ThickClones
from pyxlsnap.disks.lvm.commands import Volume, free_space, lvm, volumes, wait_for_path
from pyxlsnap.disks.lvm.names import Place, device_path
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.results import CloneDisk
from pyxlsnap.text import mib

_CHUNK = 4096  # lvcreate's default for snapshots
_EXCEPTIONS = _CHUNK // 16  # chunks that one chunk of a snapshot's metadata describes
_READ = 2**20


class LvmThick(LvmDisks):
    """Volumes that are not thin. See :class:`pyxlsnap.disks.protocol.DiskStrategy`."""

    kind = "LVM thick"
    options = ("-l", "100%ORIGIN")
    seconds = 1.0  # 6 to 9 s where everything is emulated, most of it waiting for udev

    def __init__(self, disks: Sequence[tuple[Disk, DiskRequest]], task: DiskTask) -> None:
        super().__init__(disks, task)
        self._clones = ThickClones([disk for disk, _ in disks], self._places, task)

    def state(self) -> dict[str, str]:
        return super().state() | self._clones.state()

    # create

    def check_kind(self, at: Place, origin: Volume) -> None:
        if "thin" in origin.layout or "pool" in origin.layout:
            raise Refused(
                f"{at.vdev}: {at.full(at.lv)} is a thin volume now, or a pool: run the "
                f"command again, or leave {at.vdev} out of `disks`"
            )
        if "thicksnapshot" in origin.role:
            raise Refused(
                f"{at.vdev}: {at.full(at.lv)} is a snapshot of {at.full(origin.origin)}, and LVM "
                f"cannot snapshot a snapshot: copy it into a volume of its own"
            )

    def check_room(self, origins: Sequence[tuple[Place, Volume]], found: Groups) -> None:
        for vg, vdev in self.groups().items():
            free, extent = free_space(vdev, vg)
            need = sum(needed(origin.size, extent) for at, origin in origins if at.vg == vg)
            if need > free:
                vdevs = ", ".join(at.vdev for at, _ in origins if at.vg == vg)
                raise Refused(
                    f"{vdevs}: the volume group {vg} has {mib(free)} free, and a snapshot that "
                    f"cannot overflow takes {mib(need)}: extend it (vgextend), remove volumes, or "
                    f"leave disks out"
                )

    def taken(self, at: Place) -> str:
        return f"takes a little more than {mib(self._sizes[at.vdev])} of {at.vg}"

    # revert

    def check_revert(self) -> None:
        with refusing_os_errors():
            found = self.volumes_now()
            for at in self._places:
                _check(at, found[at.vg])

    def revert(self) -> None:
        self.closed_volumes()
        tell = self._waiting
        self.put_each_back(lambda at: _put_back(at, partial(tell, f"the copy back to {at.vdev}")))

    def finish_revert(self, domid: int) -> list[str]:
        return []

    # clones

    def check_clone(self, name: str, wanted: Mapping[str, DiskRequest]) -> list[CloneDisk]:
        return self._clones.check(name, wanted, self._refuse_lost)

    def clone(self) -> None:
        self._clones.make()
        found = self.volumes_now()
        for at in self._places:  # a snapshot that ran full meanwhile has lost what was not copied
            _check(at, found[at.vg])

    def _refuse_lost(self, at: Place) -> None:
        with refusing_os_errors():
            _check(at, volumes(at.vdev, at.vg))

    def delete_clone(self, disks: Sequence[CloneDisk], state: Mapping[str, str]) -> list[str]:
        return self._clones.delete(disks, state)

    def close(self) -> None:
        self._clones.close()


def needed(size: int, extent: int) -> int:
    """The size of a snapshot that has room for every chunk of its origin.

    That is a header, the chunks, and metadata: one chunk for each 256, and one that ends them.
    """
    chunks = -(-size // _CHUNK)
    total = (1 + chunks + chunks // _EXCEPTIONS + 1) * _CHUNK
    return -(-total // extent) * extent


def _check(at: Place, found: Mapping[str, Volume]) -> None:
    """:raises DiskError: the snapshot is not there, is another disk's, or has lost its content."""
    disk, snapshot = found.get(at.lv), found.get(at.snapshot)
    if disk is None:
        raise DiskError(f"there is no volume {at.full(at.lv)}", vdev=at.vdev)
    if disk.read_only:
        raise DiskError(
            f"{at.full(at.lv)} is read-only: `lvchange -prw {at.full(at.lv)}` it first",
            vdev=at.vdev,
        )
    if snapshot is None:
        raise DiskError(
            f"there is no volume {at.full(at.snapshot)}, the disk snapshot", vdev=at.vdev
        )
    if "thicksnapshot" not in snapshot.role or snapshot.origin != at.lv:
        raise DiskError(
            f"{at.full(at.snapshot)} is not a snapshot of {at.full(at.lv)}", vdev=at.vdev
        )
    if partial := [v.name for v in (disk, snapshot) if v.trouble == "partial"]:
        raise DiskError(
            f"{at.full(partial[0])} is partial, as a physical volume is missing: bring the device "
            f"back (see `lvs -a -o +devices {at.vg}`)",
            vdev=at.vdev,
        )
    if disk.merging or snapshot.merging:
        raise DiskError(f"{at.full(at.snapshot)} is being merged", vdev=at.vdev)
    if snapshot.invalid or (snapshot.data_percent or 0.0) >= 100.0:
        raise DiskError(
            f"{at.full(at.snapshot)} is invalid: it ran full, and its content is lost: "
            f"revert to another snapshot, and `lvremove {at.full(at.snapshot)}`",
            vdev=at.vdev,
        )


def _put_back(at: Place, waiting: Callable[[], None]) -> None:
    """Make the disk equal to the snapshot. After an interruption a second run does the rest."""
    lvm(at.vdev, "lvchange", "-ay", "-K", at.full(at.lv))  # activates its snapshots, too
    found = volumes(at.vdev, at.vg)
    _check(at, found)  # LVM knows only of an active snapshot whether it is valid
    for name in (at.lv, at.snapshot):
        wait_for_path(at.vdev, at.vg, name, found[name])
    try:
        paths = (device_path(at.vg, at.snapshot), device_path(at.vg, at.lv))
        copy_differences(*paths, waiting=waiting)
    except OSError as e:
        raise DiskError(
            f"copying {at.full(at.snapshot)} to {at.full(at.lv)}: {e.strerror}: the disk is "
            f"reverted in part; run the command again to complete it",
            vdev=at.vdev,
        ) from e
    _check(at, volumes(at.vdev, at.vg))


def copy_differences(
    source: Path, target: Path, *, waiting: Callable[[], None] = lambda: None
) -> int:
    """Make ``target`` equal to ``source``, durably; return the bytes written.

    Only what differs is written: writing to other chunks would copy them into the snapshot. Nobody
    has the devices open, so the page cache has nothing of them that is older than blkback's writes.

    :param waiting: called often.
    :raises OSError: a device failed, or ``target`` is in use.
    """
    written = offset = 0
    old = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # O_EXCL: fails while the block device is mounted, or served to a domain
        new = os.open(target, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        try:
            while wanted := os.pread(old, _READ, offset):
                waiting()
                written += _write_differences(new, wanted, offset)
                offset += len(wanted)
            os.fsync(new)
        finally:
            os.close(new)
    finally:
        os.close(old)
    return written


def _write_differences(fd: int, wanted: bytes, offset: int) -> int:
    present = os.pread(fd, len(wanted), offset)
    if present == wanted:
        return 0
    written = 0
    for at in range(0, len(wanted), _CHUNK):
        piece = wanted[at : at + _CHUNK]
        if present[at : at + _CHUNK] != piece:
            written += _write_all(fd, piece, offset + at)
    return written


def _write_all(fd: int, data: bytes, offset: int) -> int:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
    return done
