"""Who else uses the disks that are put back, given to a restored guest, or deleted with a clone.

A revert or a delete waits for such users after the domain is destroyed, and libxl's hotplug script
refuses some of them. So all of them are looked for while the guest still runs.
"""

import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.disks.failures import os_errors
from pyxlsnap.disks.in_use import Servers, loops_over, users
from pyxlsnap.disks.served import is_local
from pyxlsnap.errors import Refused
from pyxlsnap.linux.block_devices import mounts
from pyxlsnap.linux.stalled import exists_within
from pyxlsnap.linux.there import exists, is_block_device
from pyxlsnap.linux.waiting import remaining
from pyxlsnap.model import Disk

# A program that looks at each block device has it open for a moment: udev, blkid, a command of LVM,
# also that of another operation. On a host with many devices, or a busy one, it takes longer.
_LOOKS_S, _POLL_S = 2.0, 0.05
_LOOKERS_S = 20.0
_LOOKER = re.compile(
    r"(?:(?:lv|vg|pv)[a-z]+|lvm|blkid|udevadm|(?:systemd-)?udevd|\(?udev-worker\)?|\?) \(pid \d+\)"
)  # ("?" has just ended)

_PUT_BACK = "put back or given to the guest"
_QEMU_IMG = r"^qemu-img \(pid \d+\)"
_WAYS = (
    (_QEMU_IMG, "wait until qemu-img has finished: one that is killed may leave a damaged image"),
    (r"^(?!qemu-img ).*\(pid \d+\)", "wait for this process, or end it"),
    (r"(^|[( ])a mount on ", "umount"),
    (r"^swap( |$)", "swapoff"),
    (r"^loop\d", "losetup -d"),
    (r"(^|[( ])dm-\d", "dmsetup remove"),
    (r"(^|[( ])md\d", "mdadm --stop"),
    (r"(^|[( ])vbd-\d", "xl block-detach"),
)


def refuse_rivals(
    disks: Sequence[Disk],
    reverted: Sequence[Disk],
    guest: Servers,
    waiting: Callable[[str], None],
) -> None:
    """Refuse disks that somebody uses besides the guest and what serves its disks.

    :param disks: all disks that the restored guest will have.
    :param reverted: those of them that are put back: nobody else may have them open.
    :param guest: the guest that will be destroyed.
    :param waiting: called again and again with what is waited for; an exception from it ends the
        wait.
    :raises Refused: a disk is in use; the message says by whom.
    """
    vdevs = {disk.vdev for disk in reverted}
    end = time.monotonic() + _LOOKERS_S
    for disk, target in _present(disks):
        with os_errors(disk, target, refuse=True):
            if disk.vdev in vdevs:
                _refuse(disk, partial(users, target, guest), end, waiting, _PUT_BACK)
            if not disk.for_qemu and not disk.script:
                find = partial(_mounts, target, writable=not disk.readwrite)
                _refuse(disk, find, end, waiting, _PUT_BACK)
                _refuse_write_protected(disk, target)


def _present(disks: Sequence[Disk]) -> Iterator[tuple[Disk, Path]]:
    """The disks that are files or devices of this host; about missing ones strategies decide."""
    for disk in disks:
        target = Path(disk.target)
        with os_errors(disk, target, refuse=True):
            there = is_local(disk) and disk.target.startswith("/") and exists_within(target)
        if there:
            yield disk, target


def refuse_users(disks: Sequence[Disk], guest: Servers, waiting: Callable[[str], None]) -> None:
    """Refuse to delete disks that somebody uses besides their guest: see :func:`refuse_rivals`.

    The QEMU of a guest that was destroyed just now may be ending yet: that one is waited for.

    :param guest: the guest that will be destroyed.
    """
    end = time.monotonic() + _LOOKERS_S
    looks_s = _LOOKERS_S if guest.domid is None else None
    for disk, target in _present(disks):
        with os_errors(disk, target, refuse=True):
            find = partial(users, target, guest)
            _refuse(disk, find, end, waiting, "deleted with its clone", looks_s)


def _refuse(
    disk: Disk,
    find: Callable[[], list[str]],
    end: float,
    waiting: Callable[[str], None],
    what: str,
    looks_s: float | None = None,
) -> None:
    """:param end: until when programs are waited for that only look, a ``time.monotonic()``.

    :param what: what the disk could not be, because of its users.
    :param looks_s: for how long any user is waited for; ``None``: as long as a look takes.
    """

    def look() -> list[str]:
        if found := find():
            waiting(f"{', '.join(found)} to leave {disk.vdev} alone")
        return found

    if looks_s is None:
        found = remaining(find, within_s=_LOOKS_S, poll_s=_POLL_S)
    else:
        found = remaining(look, within_s=looks_s, poll_s=_POLL_S)
    if found and all(map(_LOOKER.match, found)):
        found = remaining(look, within_s=end - time.monotonic(), poll_s=_POLL_S)
    if found:
        ends = "end that first" if any(not re.match(_QEMU_IMG, u) for u in found) else "wait first"
        ways = [way for mark, way in _WAYS if any(re.search(mark, user) for user in found)]
        raise Refused(
            f"{disk.vdev}: {disk.target} is in use by {', '.join(found)}, and could not be "
            f"{what}: {ends} ({'; '.join(ways) or 'see lsblk'})"
        )


def _mounts(target: Path, *, writable: bool) -> list[str]:
    """The mounts of a disk for which libxl's hotplug script does not give it to a guest."""
    nodes = [target] if is_block_device(target) else [paths.DEV / n for n in loops_over(target)]
    devices = [node.stat().st_rdev for node in nodes if exists(node)]
    return [f"a mount on {m}" for d in devices for m in mounts(d, writable=writable)]


def _refuse_write_protected(disk: Disk, target: Path) -> None:
    """The hotplug script gives no file that nobody may write to a guest, though root could."""
    found = target.stat().st_mode
    if disk.readwrite and stat.S_ISREG(found) and not found & 0o222:
        raise Refused(
            f"{disk.vdev}: {disk.target} is write-protected, so Xen would not give it to the "
            f"restored guest: `chmod u+w` it"
        )
