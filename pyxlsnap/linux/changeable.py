"""Whether a file or directory can be changed: what root is not allowed, either.

``chattr +i`` and ``+a``, and a filesystem or a mount that is read-only.
"""

import errno
import fcntl
import os
import sys
from pathlib import Path

from pyxlsnap.linux.there import is_dir

_GETFLAGS = 0x80086601  # linux/fs.h
_IMMUTABLE, _APPEND = 0x10, 0x20
_FLAGS = {_IMMUTABLE: ("immutable", "i"), _APPEND: ("append-only", "a")}


def file_flags(fd: int) -> int:
    """The flags of ``chattr`` that an open file has.

    :raises OSError: the filesystem has no such flags.
    """
    return int.from_bytes(fcntl.ioctl(fd, _GETFLAGS, bytes(8))[:4], sys.byteorder)


def unchangeable(path: Path, *, write: bool = True) -> str | None:
    """Why a file cannot be written, or a directory have its names changed, and the way out.

    :param write: false: a file is to be renamed, linked or deleted, and not to be written.
    :returns: ``None`` if it can.
    :raises OSError: it cannot be opened, for another reason.
    """
    writing = write and not is_dir(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if found := _flag(fd):
                return found
        finally:
            os.close(fd)
        if writing:
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as e:
        if e.errno not in (errno.EROFS, errno.EPERM, errno.EACCES):
            raise
        return f"cannot be written ({e.strerror}): make it writable first"
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return "is on a filesystem that is mounted read-only: mount it read-write first"
    return None


def _flag(fd: int) -> str | None:
    try:
        flags = file_flags(fd)
    except OSError:
        return None  # no such flags here
    for bit, (word, letter) in _FLAGS.items():
        if flags & bit:
            return f"is {word}: `chattr -{letter}` it first"
    return None
