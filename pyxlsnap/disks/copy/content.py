"""Copying files, their attributes, and the space that copies take."""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.failures import os_errors
from pyxlsnap.errors import Refused
from pyxlsnap.linux.changeable import file_flags
from pyxlsnap.linux.files import temporary_name
from pyxlsnap.linux.room import Claim
from pyxlsnap.model import Disk
from pyxlsnap.text import mib

# linux/fs.h; the same on every architecture that Xen runs on
_FICLONE = 0x40049409
_FICLONERANGE = 0x4020940D
_FIEMAP = 0xC020660B
_SETFLAGS = 0x40086602
_NOCOW = 0x00800000

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ACL = "system.posix_acl_access"
#: what open(2) says where the filesystem, or the kernel, has no files without a name
_NO_NAMELESS = (errno.EOPNOTSUPP, errno.EISDIR)
_NO_COPY_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
_PROBED = 1 << 16  # a multiple of every filesystem's block size
_RANGE = 64 << 20
_CHUNK = 4 << 20
#: the slowest copying that was measured, on a busy machine
BYTES_PER_S = 100e6
#: what a reflink takes for each extent of the file, as measured on xfs: 150,000 took 4.8 s
_EXTENT_S = 32e-6
#: attribute of a snapshot's file: the token of the object that made it
MARK = "user.pyxlsnap"


def open_new(path: Path) -> int:
    """Make a file and open it for writing.

    :raises FileExistsError: something has this name, even a dangling link.
    :raises OSError: it cannot be made.
    """
    return os.open(path, _NEW, 0o600)


@contextmanager
def new_file(path: Path) -> Iterator[int]:
    """Make a file, open for writing while the body runs; see :func:`open_new`."""
    fd = open_new(path)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def trial_file(path: Path) -> Iterator[int]:
    """An empty file without a name, in the directory of ``path``, open for writing: for a try.

    If the process is killed, nothing is left: a plan has no journal yet.

    :raises OSError: no file can be made there.
    """
    try:
        fd = os.open(path.parent, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as e:
        if e.errno not in _NO_NAMELESS:
            raise
        name = temporary_name(path)
        fd = open_new(name)
        name.unlink()
    try:
        yield fd
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Space:
    """The space that a copy takes, and where."""

    disk: Disk
    source: Path
    size: int
    directory: Path


def refuse_no_room(wanted: Sequence[Space], claim: Claim) -> None:
    """:raises Refused: a filesystem has no room for all that goes there."""
    for space in wanted:
        with os_errors(space.disk, space.directory, refuse=True):
            free = claim(f"copy of {space.disk.vdev}", space.directory, space.size)
        if free < space.size:
            raise Refused(
                f"{space.disk.vdev}: {space.directory} has {free >> 20} MiB left for a "
                f"copy of {space.source}, which takes up to {mib(space.size)}: make room "
                f"there, or name a path on another filesystem"
            )


# copies


def can_reflink(source: int, new: int) -> bool:
    """Whether ``new``, an empty file, can share blocks with ``source``; shares the first blocks.

    Only a try with these two files tells. btrfs clones only between files that agree on
    copy-on-write, no filesystem clones a swap file, and older kernels clone nothing across mounts.
    """
    length = 0 if os.fstat(source).st_size <= _PROBED else _PROBED  # 0: to the end
    try:
        fcntl.ioctl(new, _FICLONERANGE, struct.pack("=qQQQ", source, 0, length, 0))
    except OSError:
        return False
    return True


def reflink_seconds(source: int) -> float:
    """How long a reflink of a file takes: that grows with the number of its extents."""
    whole = struct.pack("=QQIIII", 0, 2**64 - 1, 0, 0, 0, 0)  # no room for extents: only count
    try:
        found = fcntl.ioctl(source, _FIEMAP, whole)
    except OSError:
        return 0.0  # this filesystem does not tell
    return float(struct.unpack_from("=I", found, 20)[0] * _EXTENT_S)


def copy_file(
    source: int, new: int, *, reflink: bool, check: Callable[[], None] = lambda: None
) -> None:
    """Copy a file: at once by sharing its blocks, or byte by byte; holes stay holes.

    :param check: called often; an exception from it ends the copying.
    :raises OSError: such as a full disk.
    """
    if reflink:
        fcntl.ioctl(new, _FICLONE, source)
        return
    size = os.fstat(source).st_size
    os.ftruncate(new, size)
    for start, end in _data(source, size):
        while start < end:
            check()
            start += _copy_some(source, new, start, min(end - start, _RANGE))


def _data(source: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are not holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        yield start, end


def _copy_some(source: int, new: int, start: int, count: int) -> int:
    """Copy at least one byte; in the kernel, if it can."""
    try:
        if copied := os.copy_file_range(source, new, count, offset_src=start, offset_dst=start):
            return copied
    except OSError as e:
        if e.errno not in _NO_COPY_RANGE:
            raise
    data = os.pread(source, min(count, _CHUNK), start)
    if not data:
        raise OSError(errno.EIO, "it became shorter while it was copied")
    return os.pwrite(new, data, start)


def copy_attributes(source: int, new: int) -> None:
    """Give an empty file the owner, the mode, the ACL and the other attributes of ``source``.

    :raises OSError: an attribute could not be set, though the filesystem supports such attributes.
    """
    attributes = _attributes(source)
    if _ACL in _attributes(new) and _ACL not in attributes:
        os.removexattr(new, _ACL)  # the directory's default
    found = os.fstat(source)
    os.fchown(new, found.st_uid, found.st_gid)
    os.fchmod(new, stat.S_IMODE(found.st_mode))
    for name in attributes:
        if name != MARK:
            set_attribute(new, name, os.getxattr(source, name))
    _copy_nocow(source, new)


def _attributes(fd: int) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError as e:
        if e.errno != errno.ENOTSUP:
            raise
        return []


def set_attribute(fd: int, name: str, value: bytes) -> None:
    """Set an extended attribute, if the filesystem supports such attributes."""
    try:
        os.setxattr(fd, name, value)
    except OSError as e:
        if e.errno != errno.ENOTSUP:
            raise


def _copy_nocow(source: int, new: int) -> None:
    """Copy the flag of `chattr +C`, which disk images on btrfs have; the file must be empty.

    It is no error if the flag cannot be set: only reflinks need it, and they are tried out.
    """
    try:
        if file_flags(source) & _NOCOW:
            fcntl.ioctl(new, _SETFLAGS, struct.pack("=I4x", file_flags(new) | _NOCOW))
    except OSError:
        pass
