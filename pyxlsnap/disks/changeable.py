"""What a revert must be able to change: a disk's file, and the names in its directory."""

import os
from pathlib import Path

from pyxlsnap.disks.failures import os_errors
from pyxlsnap.errors import Refused
from pyxlsnap.linux.changeable import unchangeable
from pyxlsnap.model import Disk
from pyxlsnap.text import mib


def refuse_unchangeable(disk: Disk, path: Path, *, write: bool = True) -> None:
    """:raises Refused: a file cannot be written or renamed; or a directory's names not changed."""
    with os_errors(disk, path, refuse=True):
        if why := unchangeable(path, write=write):
            raise Refused(f"{disk.vdev}: {path} {why}")


def refuse_full(disk: Disk, directory: Path, need: int) -> None:
    """:raises Refused: the filesystem has less space than that, in bytes."""
    with os_errors(disk, directory, refuse=True):
        fs = os.statvfs(directory)
    free = fs.f_bavail * fs.f_frsize
    if free < need:
        raise Refused(
            f"{disk.vdev}: {directory} has {free >> 10} KiB left, and the revert takes up to "
            f"{mib(need)} there: make room first"
        )
