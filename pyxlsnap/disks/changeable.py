"""What a revert must be able to change: a disk's file, and the names in its directory."""

from pathlib import Path

from pyxlsnap.disks.failures import os_errors
from pyxlsnap.errors import Refused
from pyxlsnap.linux.changeable import unchangeable
from pyxlsnap.linux.room import Claim
from pyxlsnap.model import Disk
from pyxlsnap.text import mib


def refuse_unchangeable(disk: Disk, path: Path, *, write: bool = True) -> None:
    """:raises Refused: a file cannot be written or renamed; or a directory's names not changed."""
    with os_errors(disk, path, refuse=True):
        if why := unchangeable(path, write=write):
            raise Refused(f"{disk.vdev}: {path} {why}")


def refuse_full(disk: Disk, directory: Path, need: int, claim: Claim, *, spare: int) -> None:
    """Claim what the revert of a disk writes to a filesystem.

    :param need: what the revert writes for this disk, bytes.
    :param spare: what must be left besides, once for all disks, bytes.
    :raises Refused: the rest of the revert leaves less space than both.
    """
    with os_errors(disk, directory, refuse=True):
        free = claim(f"revert of {disk.vdev}", directory, need)
    if free < need + spare:
        raise Refused(
            f"{disk.vdev}: {directory} has {free >> 10} KiB left, and the revert takes up to "
            f"{mib(need + spare)} there: make room first"
        )
