"""Whether what serves a disk has the very file open that the disk's path leads to.

A path is only a name. A file that was put in the place of a disk (``mv``, rsync) while the guest
runs is not the guest's disk: the guest goes on with the old file, which has no name any more. A
snapshot of the new file would be of other data, and an external one would lead the guest to them.
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.in_use import is_over
from pyxlsnap.disks.qcow2.qemu import image_chain
from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.linux.processes import Opened, identity, leads_to, open_files, process_text
from pyxlsnap.linux.there import is_block_device
from pyxlsnap.model import Disk

_VDEV = re.compile(r"(xvd|hd|sd)([a-z]+)([0-9]*)")
_LOCAL = ("", "0", "Domain-0")


@dataclass(frozen=True, slots=True)
class ServedDisks:
    """The disks of a running guest, and who serves them."""

    domid: int
    #: pid of the guest's QEMU; ``None``: the guest has none
    device_model: int | None
    #: each disk with its own file, and then the backing files of that
    files: tuple[tuple[Disk, tuple[str, ...]], ...]
    #: by file: a descriptor that the QEMU had for it when it was last looked for
    numbers: dict[str, int] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, disks: Sequence[Disk], domid: int, device_model: int | None) -> "ServedDisks":
        """Find the files of disks.

        :raises Refused: an image, or a backing file, cannot be read.
        """
        ours = [d for d in disks if d.target.startswith("/") and not d.script]
        local = [d for d in ours if is_local(d)]
        files = tuple((d, _files(d) if device_model else (d.target,)) for d in local)
        return cls(domid, device_model, files)

    def refuse_replaced(self) -> None:
        """:raises Refused: a disk's path leads to another file than the guest has."""
        for disk, files in self.files:
            if found := self._replaced(disk, files, writable=True):
                raise Refused(f"{disk.vdev}: {_text(disk, *found)}")

    def notice_replaced(self, vdevs: Collection[str]) -> None:
        """Look once more at some of the disks, just before their snapshots are taken.

        :raises DiskError: a disk's path leads to another file than the guest has.
        """
        for disk, files in self.files:
            # (QEMU may have closed an image for writing: that of a live HVM guest.)
            if disk.vdev in vdevs and (found := self._replaced(disk, files, writable=False)):
                raise DiskError(_text(disk, *found), vdev=disk.vdev)

    def replaced(self) -> list[tuple[Disk, str, str]]:
        """The disks whose path leads to another file than the guest has: that, and its server."""
        found = [(disk, self._replaced(disk, f, writable=False)) for disk, f in self.files]
        return [(disk, *wrong) for disk, wrong in found if wrong]

    def _replaced(
        self, disk: Disk, files: Sequence[str], *, writable: bool
    ) -> tuple[str, str] | None:
        """The first file of a disk that is another one, and the server; ``None``: none is."""
        if disk.backend != "qdisk" and (number := _block_device_of(self.domid, disk.vdev)):
            device = paths.SYS / "dev/block" / number
            right = _leads_to_device(disk.target, device, number)
            return None if right else (disk.target, device.resolve().name)
        if self.device_model is None or not disk.for_qemu:
            return None
        if not writable and all(self._is_still_open(self.device_model, file) for file in files):
            return None
        there = open_files(self.device_model)
        for file in files:
            opened = _opened(there, file)
            read_only = opened is not None and opened.mode == os.O_RDONLY
            if opened is None or (writable and file == disk.target and read_only):
                return file, process_text(self.device_model)
            self.numbers[file] = opened.number
        return None

    def _is_still_open(self, device_model: int, file: str) -> bool:
        """A look at one descriptor: a guest may be suspended, and a QEMU has many of them."""
        try:
            wanted = identity(Path(file).stat())
        except OSError:
            return False
        return file in self.numbers and leads_to(device_model, self.numbers[file], wanted)


def is_local(disk: Disk) -> bool:
    """Whether dom0 serves a disk."""
    return disk.backend_domain in _LOCAL


def _text(disk: Disk, file: str, server: str) -> str:
    which = "" if file == disk.target else f", a backing file of {disk.target},"
    return (
        f"{file}{which} is not the file that {server} has open for the guest: another file was put "
        f"in its place. Save the guest's data from inside the guest, shut it down, see to the file "
        f"and start the guest again; or leave {disk.vdev} out of `disks`"
    )


def _files(disk: Disk) -> tuple[str, ...]:
    """A disk's own file, and those of its backing files that have a path."""
    if disk.format != "qcow2":
        return (disk.target,)
    try:
        images = [str(image["filename"]) for image in image_chain(disk, disk.target)]
    except DiskError as e:
        raise Refused(f"{disk.vdev}: {e.message}") from e
    return (disk.target, *(name for name in images[1:] if name.startswith("/")))


def _opened(there: Mapping[tuple[int, int], Opened], file: str) -> Opened | None:
    """How a file is open; ``None``: it is not."""
    try:
        return there.get(identity(Path(file).stat()))
    except OSError:
        return None  # there is no such file


def _block_device_of(domid: int, vdev: str) -> str | None:
    """The block device that blkback serves a disk from, as "major:minor"; ``None``: it has none."""
    device = _device_id(vdev)
    node = paths.SYS / f"bus/xen-backend/devices/vbd-{domid}-{device}/physical_device"
    try:
        major, minor = (int(part, 16) for part in node.read_text().split(":"))
    except (OSError, ValueError):
        return None
    return f"{major}:{minor}"


def _leads_to_device(target: str, device: Path, number: str) -> bool:
    """Whether a path leads to a block device, or to the file under that loop device."""
    try:
        if is_block_device(target):
            found = Path(target).stat().st_rdev
            return f"{os.major(found)}:{os.minor(found)}" == number
    except OSError:
        return False
    return is_over(device / "loop/backing_file", Path(target))


def _device_id(vdev: str) -> int | None:
    """The number of a disk in xenstore (xen-vbd-interface(7)); ``None`` for an unknown name."""
    if not (parts := _VDEV.fullmatch(vdev)):
        return int(vdev, 0) if re.fullmatch(r"0x[0-9a-f]+|[1-9][0-9]*", vdev) else None
    kind, letters, partition = parts[1], parts[2], int(parts[3] or 0)
    disk = 0
    for letter in letters:
        disk = disk * 26 + ord(letter) - ord("a") + 1
    disk -= 1
    if kind == "hd":
        return ((3 if disk < 2 else 22) << 8) | ((disk & 1) << 6) | partition
    if kind == "sd":
        return (8 << 8) | (disk << 4) | partition
    if disk < 16 and partition < 16:
        return (202 << 8) | (disk << 4) | partition
    return (1 << 28) | (disk << 8) | partition
