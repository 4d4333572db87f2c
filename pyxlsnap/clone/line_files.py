"""Files that QEMU writes for the serial lines of a clone: made beforehand, deleted with the clone.

QEMU empties a file that is there and writes to it, so the file keeps the mark with which it is made
here. Another file that has its name (of a program that rotates logs, for one) is never deleted. On
a filesystem without attributes a file is known by its inode.
"""

import errno
import os
import stat
from collections.abc import Mapping
from functools import partial

from pyxlsnap.clone.lines import files_of, sockets_of
from pyxlsnap.disks.copy.content import MARK, set_attribute
from pyxlsnap.disks.undo import undo_each
from pyxlsnap.errors import DiskError, Refused, XenError
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.journal import CloneEntry
from pyxlsnap.linux.there import lexists
from pyxlsnap.model import DomainConfig

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o666  # less the umask: as QEMU makes the file


class LineFiles:
    """The files of one clone.

    :param old: the clone that is replaced, whose files the new clone takes over.
    """

    def __init__(self, config: DomainConfig, old: CloneEntry | None) -> None:
        self._paths = files_of(config)
        self._old = old.line_files if old else {}
        fresh = {path: os.urandom(16).hex() for path in self._paths}
        #: what tells each file from others, by path: a token, and the inode of a file that was made
        self.marks: dict[str, str] = {**fresh, **self._old}

    def make(self) -> None:
        """Make the files, empty. A file of the clone that is replaced stays.

        :raises OSError: a file cannot be made, or its name has been taken meanwhile.
        """
        for path in self._paths:
            if _is_there(path, self._old.get(path, "")):
                continue
            token = self.marks[path].partition(" ")[0]
            fd = os.open(path, _NEW, _MODE)
            try:
                self.marks[path] = f"{token} {os.fstat(fd).st_ino}"
                set_attribute(fd, MARK, token.encode())
            finally:
                os.close(fd)


def own_lines(config: DomainConfig, marks: Mapping[str, str], replaced: Guest | None) -> list[str]:
    """The files and sockets that are there for the lines of a clone.

    :param marks: :attr:`LineFiles.marks`.
    :param replaced: the domain of the clone that is replaced, which listens on its sockets.
    """
    found = [path for path, mark in marks.items() if _is_there(path, mark)]
    if replaced and any(map(lexists, sockets_of(config))):
        try:
            found += sockets_of(replaced.config())
        except (XenError, Refused):  # its QEMU has crashed, for example: nobody listens then
            pass
    return found


def made_files(entry: CloneEntry) -> list[str]:
    """The files of a clone that were made here: QEMU may write to another one, too."""
    return [path for path, mark in entry.line_files.items() if mark.partition(" ")[2]]


def delete_line_files(entry: CloneEntry, besides: CloneEntry | None = None) -> list[str]:
    """Delete the files of a clone, whose domain is destroyed; returns what was deleted or left.

    :param besides: a clone that stays, and its files with it.
    :raises PyxlsnapError: a file could not be deleted.
    """
    kept = besides.line_files if besides else {}
    marks = {path: mark for path, mark in entry.line_files.items() if path not in kept}
    return undo_each(partial(_delete, path, mark) for path, mark in marks.items())


def _delete(path: str, mark: str) -> list[str]:
    token, _, inode = mark.partition(" ")
    try:
        if _is_ours(path, token, inode):
            os.unlink(path)
            return [f"removed {path}"]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as e:
        raise DiskError(f"{path}: {e.strerror}", vdev="serial line") from e
    if not inode:  # it was not made
        return []
    return [f"left {path}: it is not the file that was made for the clone's serial line"]


def _is_there(path: str, mark: str) -> bool:
    """Whether the file of a mark is at its place."""
    token, _, inode = mark.partition(" ")
    try:
        return bool(inode) and _is_ours(path, token, inode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_ours(path: str, token: str, inode: str) -> bool:
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        return False
    try:
        return os.getxattr(path, MARK, follow_symlinks=False) == token.encode()
    except OSError as e:
        if e.errno == errno.ENODATA:
            return False
        if e.errno == errno.ENOTSUP:
            return str(found.st_ino) == inode
        raise
