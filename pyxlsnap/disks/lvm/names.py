"""The names of LVM volumes: the volume that a disk's path leads to, and those that we make."""

import os
import re
import stat
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.dataclass import dataclass
from pyxlsnap.errors import Refused
from pyxlsnap.linux.block_devices import attribute, sys_directory
from pyxlsnap.linux.there import is_symlink
from pyxlsnap.model import KEPT_SUFFIX, Disk, DiskRequest

_LINKS = 40  # as many as the kernel follows
#: directories of /dev that no volume group can have as its name
_NOT_GROUPS = ("block", "bus", "char", "disk", "dri", "fd", "input", "mapper", "net", "pts", "shm")
_NAME = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]*")
# lvm(8), "VALID NAMES"
_RESERVED = re.compile(
    r"^\.{1,2}$|^(?:snapshot|pvmove)|_(?:[ct]data|[ct]meta|cvol|corig|wcorig|cpool|mimage|mlog"
    r"|pmspare|rimage|rmeta|imeta|iorig|vdata|vorigin)"
)
_MAPPED_LIMIT = 127 - len("-real")  # device mapper's limit, less LVM's suffix of hidden parts


@dataclass(frozen=True, slots=True)
class Place:
    """One disk, and the names of the volumes that belong to it; all in one group."""

    vdev: str
    vg: str
    lv: str
    #: the disk snapshot
    snapshot: str
    #: the disk as it was before a revert
    kept: str
    #: the volume that a revert makes, until it is renamed to the disk's name
    fresh: str

    def full(self, name: str) -> str:
        """A volume's name as LVM's commands take it."""
        return f"{self.vg}/{name}"


def place(disk: Disk, request: DiskRequest, name: str) -> Place:
    """Find the disk's volume, and choose the names of the others.

    :raises Refused: the disk is not a volume, or LVM does not allow the names.
    """
    names = names_of(disk.target)
    if names is None:
        raise Refused(
            f"{disk.vdev}: {disk.target} is not an LVM volume, or is a hidden part of one: "
            f"name the volume itself in the domain's configuration"
        )
    vg, lv = names
    if wrong := re.search(r"[^A-Za-z0-9+_.-]", name):
        raise Refused(
            f"snapshot name {name!r}: LVM allows no {wrong[0]!r} in a volume's name, and "
            f"{disk.vdev} is a volume ({vg}/{lv}): choose a name of letters, digits and _ + . -"
        )
    kept = f"{lv}.{name}{KEPT_SUFFIX}"
    snapshot = f"{lv}-{name}" if request.internal else _asked_for(request, vg, lv)
    found = Place(disk.vdev, vg, lv, snapshot, kept, f"{lv}.{name}.new{KEPT_SUFFIX}")
    for volume in (found.snapshot, found.fresh):
        check_volume_name(found, volume)
    return found


def _asked_for(request: DiskRequest, vg: str, lv: str) -> str:
    """The volume's name in an external request."""
    path = Path(request.path)
    if request.format not in ("", "raw"):
        raise Refused(
            f"{request.vdev}: a snapshot of an LVM volume is a volume, so its format is raw, not "
            f"{request.format}"
        )
    inside = path.parent == device_path(vg, lv).parent and path.name != lv
    if not (inside and _NAME.fullmatch(path.name)):
        raise Refused(
            f"{request.vdev}: {request.path} cannot be a snapshot of a volume of {vg}: write "
            f"{device_path(vg, 'NAME')}, or ',,{request.vdev}' to have the name chosen"
        )
    if path.name.endswith(KEPT_SUFFIX):
        raise Refused(
            f"{request.vdev}: {request.path}: volumes with a name that ends in "
            f"{KEPT_SUFFIX!r} are deleted after a revert: choose another name"
        )
    return path.name


def check_volume_name(found: Place, name: str) -> None:
    """:raises Refused: LVM does not allow a volume of this name."""
    if not _NAME.fullmatch(name):
        raise Refused(
            f"{found.vdev}: {name!r} cannot be the name of a volume: choose a name of letters, "
            f"digits and _ + . -"
        )
    if _RESERVED.search(name):
        raise Refused(
            f"{found.vdev}: LVM reserves names like {name!r} for itself: choose another name for "
            f"the snapshot"
        )
    if len(mapped_name(found.vg, name)) > _MAPPED_LIMIT:
        raise Refused(
            f"{found.vdev}: {found.vg}/{name} is too long for LVM: choose a shorter name for the "
            f"snapshot"
        )


def device_path(vg: str, lv: str) -> Path:
    """The path under which a volume is known while it is active."""
    return paths.DEV / vg / lv


def names_of(path: str) -> tuple[str, str] | None:
    """The group and the volume that a path leads to; ``None``: it leads to no volume.

    The kernel is asked. The path's text counts only if the path leads to nothing.
    """
    number = device_number(path)
    if number is None:
        return next(iter(_named_on_the_way(path)), None)
    if not is_volume(number):
        return None
    return _split(_sysfs(number, "name"))


def stays_valid(path: str, vg: str, lv: str) -> bool:
    """Whether a path will still lead to the volume of that name when another volume has the name.

    /dev/dm-3 or a link by uuid will not.
    """
    by_id = f"dm-name-{mapped_name(vg, lv)}"
    return (vg, lv) in _named_on_the_way(path) or Path(path).name == by_id


def _named_on_the_way(path: str) -> list[tuple[str, str]]:
    """The volumes that a path and the links behind it name, by their text alone."""
    found = []
    here = Path(path)
    for _ in range(_LINKS):
        here = Path(os.path.realpath(here.parent)) / here.name
        if names := _by_form(here):
            found.append(names)
        if not is_symlink(here):
            break
        here = here.parent / here.readlink()
    return found


def _by_form(path: Path) -> tuple[str, str] | None:
    """/dev/VG/LV or /dev/mapper/VG-LV."""
    if path.parent == paths.DEV / "mapper":
        return _split(path.name)
    group = path.parent.name
    if path.parent.parent != paths.DEV or group in _NOT_GROUPS:
        return None
    return (group, path.name) if _NAME.fullmatch(group) and _NAME.fullmatch(path.name) else None


def _split(mapped: str) -> tuple[str, str] | None:
    """The reverse of :func:`mapped_name`; ``None`` for a hidden part of a volume, or no volume."""
    match = re.fullmatch(r"((?:[^-]|--)+)-((?:[^-]|--)+)", mapped)
    return (match[1].replace("--", "-"), match[2].replace("--", "-")) if match else None


def mapped_name(vg: str, lv: str) -> str:
    """The device mapper's name for a volume: hyphens are doubled."""
    return f"{vg.replace('-', '--')}-{lv.replace('-', '--')}"


def device_number(path: str) -> tuple[int, int] | None:
    """The number of the block device that a path leads to, if it leads to one."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    if not stat.S_ISBLK(found.st_mode):
        return None
    return os.major(found.st_rdev), os.minor(found.st_rdev)


def is_volume(number: tuple[int, int]) -> bool:
    """Whether a block device belongs to LVM."""
    return _sysfs(number, "uuid").startswith("LVM-")


def is_suspended(vg: str, lv: str) -> bool:
    """Whether the device of a volume is suspended, without a command of LVM."""
    number = device_number(str(device_path(vg, lv)))
    return number is not None and _sysfs(number, "suspended") == "1"


def _sysfs(number: tuple[int, int], key: str) -> str:
    """An attribute of a device-mapper device; "" for another device."""
    return attribute(sys_directory(os.makedev(*number)) / "dm" / key)
