"""Block devices that do not answer: a guest on one cannot be destroyed, and could not run on.

libxl waits until blkback has the answers to all requests of the guest. So a device that is
suspended, or whose storage does not answer, is refused before the destroy.
"""

import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from pyxlsnap.disks.served import is_local
from pyxlsnap.errors import Refused
from pyxlsnap.linux.block_devices import attribute, sys_directory
from pyxlsnap.linux.stalled import answer_within, stat_within
from pyxlsnap.linux.waiting import remaining
from pyxlsnap.model import Disk

# LVM suspends a volume for a moment while it makes a snapshot. A disk may have to spin up, or be
# busy.
_RESUMED_S, _POLL_S = 5.0, 0.1
_ANSWERS_S = 20.0
_LAYERS = 10  # of block devices, one on the other
_BLOCK = 4096


def refuse_unanswering(disks: Sequence[Disk]) -> None:
    """Read the first block of each disk that is a block device of this host.

    What such a read finds besides, as an error of the device, is the guest's matter.

    :raises Refused: a device is suspended, or does not answer.
    """
    for disk in disks:
        if (device := _device_of(disk)) is None:
            continue
        _refuse_suspended(disk, sys_directory(device))
        # The thread of a read that is not answered stays as long as the device does not answer.
        if answer_within(partial(_read, disk.target), within_s=_ANSWERS_S) is None:
            raise Refused(
                f"{disk.vdev}: {disk.target} has not answered a read within {_ANSWERS_S:g} s, so "
                f"the guest could not be destroyed, nor run on: see whether the storage under it "
                f"is well (dmesg, `multipath -ll`)"
            )


def _refuse_suspended(disk: Disk, here: Path) -> None:
    if names := remaining(partial(_suspended, here), within_s=_RESUMED_S, poll_s=_POLL_S):
        raise Refused(
            f"{disk.vdev}: {disk.target} is suspended in the device mapper, so the guest could not "
            f"be destroyed, nor run on: `dmsetup resume {names[0]}` it first"
        )


def _device_of(disk: Disk) -> int | None:
    """The number of the block device that dom0 serves a disk from; ``None``: there is none."""
    if disk.cdrom or disk.script or not (is_local(disk) and disk.target.startswith("/")):
        return None
    try:
        found = stat_within(disk.target)
    except OSError:
        return None  # who needs the disk says so
    return found.st_rdev if stat.S_ISBLK(found.st_mode) else None


def _suspended(here: Path, layers: int = _LAYERS) -> Iterator[str]:
    """The names of the suspended devices of the device mapper among a device and what is below.

    :param here: the device's directory in /sys.
    """
    if attribute(here / "dm/suspended") == "1":
        yield attribute(here / "dm/name")
    for below in sorted(here.glob("slaves/*")) if layers else ():
        yield from _suspended(below, layers - 1)


def _read(device: str) -> bool:
    """Read a block past the page cache; returns true, whatever comes of it."""
    try:
        fd = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        with mmap.mmap(-1, _BLOCK) as buffer:  # aligned, as O_DIRECT requires
            os.preadv(fd, [buffer], 0)
    except OSError:
        pass
    finally:
        os.close(fd)
    return True
