"""Who has a disk's file or block device in use, and waiting until nobody has.

A domain's QEMU or blkback takes a moment to end after the domain is gone, and may write until then.
"""

import os
from collections.abc import Callable
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.disks.failures import os_errors
from pyxlsnap.errors import DiskError
from pyxlsnap.linux.loop import loop_file
from pyxlsnap.linux.processes import holders, identity, process_name, process_text
from pyxlsnap.linux.waiting import until
from pyxlsnap.model import Disk

_UNUSED_S, _UNUSED_POLL_S = 60.0, 0.1
_DRAINED_S, _DRAINED_POLL_S = 5.0, 0.005


def users(target: Path) -> list[str]:
    """Who has a file or block device in use: other processes, and the kernel.

    The kernel's users are loop devices, block devices that are built on it (device mapper), and
    blkback.

    :raises OSError: there is no such file.
    """
    return [process_text(pid) for pid in holders(target)] + kernel_users(target)


def kernel_users(target: Path) -> list[str]:
    """The kernel's users alone.

    :raises OSError: there is no such file.
    """
    found = _loops(target)
    return found + _users_of_device(target.stat().st_rdev) if target.is_block_device() else found


def has_holder(path: Path) -> bool:
    """Whether another process has a file open; false also if there is no such file.

    A qemu-img does not count: one that a killed process has left may still be making the file.
    """
    try:
        return any(process_name(pid) != "qemu-img" for pid in holders(path))
    except OSError:
        return False


def wait_until_unused(disk: Disk, target: Path) -> None:
    """Wait until nobody has a disk's file or block device in use.

    :raises DiskError: it is still in use after a minute; the message says by whom.
    """
    with os_errors(disk, target):
        wait_until_no_users(str(target), lambda: users(target), vdev=disk.vdev)


def wait_until_no_users(
    what: str, users: Callable[[], list[str]], *, vdev: str, poll_s: float = _UNUSED_POLL_S
) -> None:
    """Wait until a disk has no users.

    :param what: the disk, as the message names it.
    :param users: asked again and again who they are.
    :raises DiskError: it still has users after a minute; the message says who they are.
    """
    found: list[str] = []

    def unused() -> bool:
        found[:] = users()
        return not found

    if not until(unused, within_s=_UNUSED_S, poll_s=poll_s):
        raise DiskError(
            f"{what} is still in use by {', '.join(found)}, and writing to it now would damage it: "
            f"make sure that this use ends, then run the command again",
            vdev=vdev,
        )


def wait_until_drained(disk: Disk, target: Path) -> None:
    """Wait until blkback's requests are done, on the disk or on the loop devices over it.

    A suspended guest submits no more requests, but blkback goes on with those it has. A request may
    be missed here: blkback has not passed it on yet, or QEMU has it and tells nobody. The guest has
    no answer to such a request, so its driver sends it again after a restore. The disk's state is
    sound with or without the request; waiting only makes it quieter.

    :raises DiskError: they are not done within some seconds.
    """
    with os_errors(disk, target):
        queues = [queue.resolve() for queue in _queues(target)]
        drained = until(lambda: not _busy(queues), within_s=_DRAINED_S, poll_s=_DRAINED_POLL_S)
        if not drained and (busy := _busy(queues)):
            raise DiskError(
                f"{busy[0].name}, which serves {target}, has had I/O in flight for "
                f"{_DRAINED_S:g} s: see whether the storage under it is well (dmesg)",
                vdev=disk.vdev,
            )


def _busy(queues: list[Path]) -> list[Path]:
    """The block devices among these that have requests in flight."""
    return [q for q in queues if sum(map(int, (q / "inflight").read_text().split()))]


def _queues(target: Path) -> list[Path]:
    """The block devices, in /sys, that a disk's requests go through."""
    if target.is_block_device():
        return [_device(target.stat().st_rdev)]
    return [paths.SYS / "block" / name for name in _loops(target)]


def _loops(target: Path) -> list[str]:
    """The loop devices over a file, whatever name of the file they were given."""
    names = sorted((paths.SYS / "block").glob("loop*/loop/backing_file"))
    return [n.parent.parent.name for n in names if is_over(n, target)]


def is_over(backing: Path, target: Path) -> bool:
    """Whether a loop device is over a file.

    :param backing: its ``loop/backing_file`` in /sys. Its content, the name of the file, is used
        where the device itself cannot be asked.
    """
    node = paths.DEV / backing.parent.parent.resolve().name
    try:
        if (found := loop_file(node)) is not None:
            return found == identity(target.stat())
        return Path(os.fsdecode(backing.read_bytes().removesuffix(b"\n"))).samefile(target)
    except OSError:
        return False  # detached meanwhile, or over a file that has been deleted


def _users_of_device(device: int) -> list[str]:
    """What in the kernel has a block device: blkback, and block devices that are built on it."""
    number = f"{os.major(device):x}:{os.minor(device):x}"
    backends = (paths.SYS / "bus/xen-backend/devices").glob("*/physical_device")
    found = [b.parent.name for b in backends if _text(b) == number]
    return found + sorted(p.name for p in (_device(device) / "holders").iterdir())


def _device(device: int) -> Path:
    return paths.SYS / "dev/block" / f"{os.major(device)}:{os.minor(device)}"


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""  # detached meanwhile
