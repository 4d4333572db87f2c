"""Who has a disk's file or block device in use, and waiting until nobody has.

A domain's QEMU or blkback takes a moment to end after the domain is gone, and may write until then.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.failures import os_errors
from pyxlsnap.errors import DiskError
from pyxlsnap.linux.block_devices import (
    attribute,
    is_claimed,
    is_swap,
    kernel_uses,
    server,
    sys_directory,
)
from pyxlsnap.linux.loop import loop_file
from pyxlsnap.linux.processes import holders, identity, process_name, process_text
from pyxlsnap.linux.stalled import exists_within, stat_within
from pyxlsnap.linux.there import exists, is_block_device
from pyxlsnap.linux.waiting import remaining, until
from pyxlsnap.model import Disk

_UNUSED_S, _UNUSED_POLL_S = 60.0, 0.1
_DRAINED_S, _DRAINED_POLL_S = 5.0, 0.005
_QUIET_LOOKS = 3  # the guest may have told blkback of a request just before it was suspended


@dataclass(frozen=True, slots=True)
class Servers:
    """What serves a guest its disks. It uses them only as long as the guest is there."""

    #: the guest, which has its own blkback for each disk; ``None``: the guest is off
    domid: int | None = None
    #: pid of the guest's QEMU; ``None``: the guest has none
    device_model: int | None = None

    def has_blkback(self, backend: str) -> bool:
        """Whether a blkback, as /sys names it, is one of this guest."""
        return self.domid is not None and backend.startswith(f"vbd-{self.domid}-")


_NOBODY = Servers()


def users(target: Path, besides: Servers = _NOBODY) -> list[str]:
    """Who has a file or block device in use: other processes, and the kernel.

    The kernel's users are loop devices, mounts, swap, block devices that are built on it (device
    mapper, md), and blkback. A process that serves the block device itself (qemu-nbd) is no user:
    the device is there only as long as that process is.

    :param besides: what serves a guest that will be destroyed.
    :raises OSError: there is no such file.
    """
    device = target.stat().st_rdev if is_block_device(target) else None
    serving = {besides.device_model, None if device is None else server(device)}
    found = [process_text(pid) for pid in holders(target) if pid not in serving]
    found += ["swap"] * is_swap(target)
    for loop in loops_over(target):
        found += _users_of_loop(loop, besides)
    if device is not None:
        found += _users_of_device(device, besides)
        found = found or ["dom0's kernel"] * is_claimed(target)
    return found


def has_holder(path: Path) -> bool:
    """Whether another process has a file open; false also if there is no such file.

    A qemu-img does not count: one that a killed process has left may still be making the file.
    """
    try:
        return any(process_name(pid) != "qemu-img" for pid in holders(path))
    except OSError:
        return False


def wait_for_qemu_img(
    disks: Sequence[Disk],
    waiting: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Wait until no qemu-img has a disk's file open. One that is ended may leave a damaged image.

    :param waiting: told every few seconds what is waited for, if anything.
    :param check: called often; an exception from it ends the wait.
    """
    targets = [Path(disk.target) for disk in disks if exists_within(disk.target)]
    while any(map(_has_qemu_img, targets)):
        check()
        waiting("qemu-img to finish its work")
        time.sleep(_UNUSED_POLL_S)


def _has_qemu_img(path: Path) -> bool:
    try:
        return "qemu-img" in map(process_name, holders(path))
    except OSError:
        return False  # who needs the disk says so


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
    if found := remaining(users, within_s=_UNUSED_S, poll_s=poll_s):
        raise DiskError(
            f"{what} is still in use by {', '.join(found)}, and writing to it now would damage it: "
            f"make sure that this use ends, then run the command again",
            vdev=vdev,
        )


def wait_until_drained(disk: Disk, target: Path, queues: Sequence[Path]) -> None:
    """Wait until blkback's requests are done, on the disk or on the loop devices over it.

    A suspended guest submits no more requests, but blkback goes on with those it has. A request may
    be missed here: blkback has not passed it on yet, or QEMU has it and tells nobody. The guest has
    no answer to such a request, so its driver sends it again after a restore. The disk's state is
    sound with or without the request; waiting only makes it quieter. So blkback must be seen idle
    several times in a row.

    :param queues: what :func:`request_queues` found.
    :raises DiskError: they are not done within some seconds.
    """
    with os_errors(disk, target):
        looks = 0

        def quiet() -> bool:
            nonlocal looks
            looks = 0 if _busy(queues) else looks + 1
            return looks >= _QUIET_LOOKS

        if not queues or until(quiet, within_s=_DRAINED_S, poll_s=_DRAINED_POLL_S):
            return
        if busy := _busy(queues):
            raise DiskError(
                f"{busy[0].name}, which serves {target}, has had I/O in flight for "
                f"{_DRAINED_S:g} s: see whether the storage under it is well (dmesg)",
                vdev=disk.vdev,
            )


def _busy(queues: Sequence[Path]) -> list[Path]:
    """The block devices among these that have requests in flight."""
    return [q for q in queues if sum(map(int, (q / "inflight").read_text().split()))]


def request_queues(target: Path) -> list[Path]:
    """The block devices, in /sys, that a disk's requests go through.

    :raises OSError: there is no such disk.
    """
    if is_block_device(target):
        return [sys_directory(target.stat().st_rdev).resolve()]
    return [(paths.SYS / "block" / name).resolve() for name in loops_over(target)]


def loops_over(target: Path) -> list[str]:
    """The loop devices over a file, whatever name of the file they were given."""
    names = sorted((paths.SYS / "block").glob("loop*/loop/backing_file"))
    return [n.parent.parent.name for n in names if is_over(n, target)]


def is_over(backing: Path, target: Path) -> bool:
    """Whether a loop device is over a file.

    :param backing: its ``loop/backing_file`` in /sys. Its content, the name of the file, is used
        where the device itself cannot be asked. A device over a file whose server does not answer
        is over no file of ours: that was asked before.
    """
    node = paths.DEV / backing.parent.parent.resolve().name
    try:
        if (found := loop_file(node)) is not None:
            return found == identity(target.stat())
        name = os.fsdecode(backing.read_bytes().removesuffix(b"\n"))
        return identity(stat_within(name)) == identity(target.stat())
    except OSError:
        return False  # detached meanwhile, or over a file that has been deleted


def _users_of_loop(name: str, besides: Servers) -> list[str]:
    """A loop device, with what is on it; or what is on it, if it was made for the guest."""
    number, node = attribute(paths.SYS / "block" / name / "dev"), paths.DEV / name
    backends = _backends(number)
    if any(map(besides.has_blkback, backends)) and exists(node):
        return [f"{user} (on {name})" for user in users(node, besides)]
    on_it = [*backends, *(kernel_uses(node.stat().st_rdev) if exists(node) else ())]
    return [f"{name} ({', '.join(on_it)})" if on_it else name]


def _users_of_device(device: int, besides: Servers) -> list[str]:
    """What in the kernel has a block device: blkback, and what :func:`kernel_uses` finds."""
    backends = _backends(f"{os.major(device)}:{os.minor(device)}")
    return [b for b in backends if not besides.has_blkback(b)] + kernel_uses(device)


def _backends(number: str) -> list[str]:
    """The blkbacks that serve a block device."""
    try:
        wanted = "{:x}:{:x}".format(*map(int, number.split(":")))
    except (ValueError, IndexError):
        return []
    backends = sorted((paths.SYS / "bus/xen-backend/devices").glob("*/physical_device"))
    return [b.parent.name for b in backends if attribute(b) == wanted]
