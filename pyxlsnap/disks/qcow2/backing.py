"""The files that a qcow2 image stands on, at any depth, by the names in the headers.

``qemu-img info --backing-chain`` tells nothing of a chain with a missing file.
"""

import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.disks.failures import os_errors
from pyxlsnap.disks.qcow2.qemu import Chain, image_chain
from pyxlsnap.disks.standing import backing_name
from pyxlsnap.errors import Refused
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.processes import holders, identity, open_files, process_text
from pyxlsnap.linux.stalled import stat_within
from pyxlsnap.linux.there import exists
from pyxlsnap.linux.waiting import remaining
from pyxlsnap.model import Disk

# A qemu-img that is just ending.
_LOOKS_S, _POLL_S = 2.0, 0.05
_FLOCK = struct.Struct("hhqqi4x")  # struct flock, 64-bit
#: the byte of a file that QEMU locks if it may write to the file (block/file-posix.c:
#: RAW_LOCK_PERM_BASE, BLK_PERM_WRITE)
_WRITES = 101


def chain_files(image: Path) -> list[Path]:
    """An image and its backing files, down to the first that is not there (which is included).

    A backing file with a name that only QEMU understands (``json:``, ``nbd:``) ends the list.

    :raises OSError: a file cannot be read, or its server does not answer.
    """
    found: list[Path] = []
    while image not in found:
        found.append(image)
        if not _is_file(image):
            break
        name = backing_name(image)
        if not name or ":" in name.partition("/")[0]:
            break
        # QEMU looks beside the file that a link leads to.
        image = Path(os.path.normpath(image.resolve().parent / name))
    return found


def _is_file(path: Path) -> bool:
    """:raises TimeoutError: the server of the file does not answer."""
    try:
        return stat.S_ISREG(stat_within(path).st_mode)
    except TimeoutError:
        raise
    except OSError:
        return False


def refuse_broken(disk: Disk, image: Path) -> Chain:
    """Open an image and all that it stands on, in the formats that QEMU would take them for.

    :returns: qemu-img's information on the image and on each file that it stands on.
    :raises Refused: a file is not there, is not of its format, or another process may write to a
        file that the disk stands on; the message names it.
    """
    files = present_files(disk, image)
    with refusing_os_errors():
        chain = image_chain(disk, str(image))
    refuse_writers(disk, files)
    return chain


def present_files(disk: Disk, image: Path) -> list[Path]:
    """The files that an image stands on, from itself down to the lowest.

    :raises Refused: one of them is not there.
    """
    with os_errors(disk, image, refuse=True):
        files = chain_files(image)
    if not exists(files[0]):
        raise Refused(
            f"{disk.vdev}: there is no image {image}: put it back, or restore it from a backup"
        )
    if not exists(files[-1]):
        raise Refused(
            f"{disk.vdev}: {image} stands on {files[-1]}, and there is no such file: put it back, "
            f"or restore it from a backup"
        )
    return files


def refuse_writers(disk: Disk, files: Sequence[Path]) -> None:
    """:raises Refused: another process may write to a file that a disk stands on.

    Another process may have the disk's own file locked: the guest's QEMU does not look at such
    locks there, but does so at the files below.
    """
    own = Path(os.path.realpath(disk.target))
    for file in files:
        if file != own:
            _refuse_writers_of(disk, file)


def _refuse_writers_of(disk: Disk, file: Path) -> None:
    """:raises Refused: a qemu-nbd, qemu-img or the like may write to a file below a disk.

    A device model does not count. That of the guest may keep the lock of a file that it has frozen,
    and ends with the domain; that of another domain is looked for elsewhere.
    """

    def look() -> list[int]:
        if not _is_locked(file):
            return []
        return [pid for pid in _writers(file) if not _is_device_model(pid)]

    if not (pids := remaining(look, within_s=_LOOKS_S, poll_s=_POLL_S)):
        return
    raise Refused(
        f"{disk.vdev}: {file} is in use by {', '.join(map(process_text, pids))}, which "
        f"may write to it, and {disk.target} stands on it: the restored guest's QEMU would not "
        f"open it: end that first (`qemu-nbd --disconnect`, for example)"
    )


def _is_locked(file: Path) -> bool:
    """Whether a program of QEMU has the lock by which it tells that it may write to a file.

    QEMU asks in the same way, and does not open the file then.
    """
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _WRITES, 1, 0)
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
        finally:
            os.close(fd)
    except OSError:
        return False  # without locks, QEMU goes without, too
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def _writers(file: Path) -> list[int]:
    """The processes that have a file open for writing."""
    try:
        key = identity(file.stat())
        pids = holders(file)
    except OSError:
        return []
    opened = {pid: open_files(pid).get(key) for pid in pids}
    return [pid for pid, how in opened.items() if how and how.mode != os.O_RDONLY]


def _is_device_model(pid: int) -> bool:
    """Whether a process is the QEMU of a domain, as libxl starts it."""
    try:
        return b"-xen-domid" in (paths.PROC / f"{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return True  # it has ended
