"""Files that are disks of a clone: made once, known again by a token, and deleted with the clone.

A file is the clone's if it has the token, in an attribute, and the inode that it was made with. A
filesystem without attributes has only the inode; if the clone was killed before its journal had the
inode, nothing tells its file from another program's. When a snapshot or a revert of the clone has
put another file in its place, this is not the file that was made. Such files are left to a person.
"""

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyxlsnap.disks.changeable import refuse_unchangeable
from pyxlsnap.disks.copy.content import MARK, copy_attributes, open_new, set_attribute
from pyxlsnap.disks.failures import os_errors, refuse_missing
from pyxlsnap.disks.in_use import wait_until_unused
from pyxlsnap.disks.standing import standing_on
from pyxlsnap.disks.undo import LeftOver
from pyxlsnap.errors import AlreadyExists, DiskError, Refused
from pyxlsnap.linux.files import NAME_LIMIT, refuse_existing, sync_directory
from pyxlsnap.linux.there import is_dir, lexists
from pyxlsnap.model import KEPT_SUFFIX, Disk
from pyxlsnap.results import CloneDisk
from pyxlsnap.text import command

_OWNER_WRITES = 0o200
#: the token where none is known: no file has it
_UNKNOWN = "unknown"


class ChildFile:
    """One file that is a disk of a clone."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self.disk, self.path = disk, path
        #: "": the name was taken, so no file was made
        self._token = os.urandom(16).hex()
        self._inode = ""
        self._fd = -1

    @property
    def fd(self) -> int:
        """The file, open for writing between :meth:`make` and :meth:`finish`."""
        if self._fd < 0:
            raise DiskError(f"{self.path} was not made", vdev=self.disk.vdev)
        return self._fd

    def check(self) -> None:
        """:raises Refused: no file can be made there."""
        vdev, path = self.disk.vdev, self.path
        if not path.is_absolute():
            raise Refused(f"{vdev}: the path {path} must be absolute")
        if path.name.endswith(KEPT_SUFFIX):
            raise Refused(
                f"{vdev}: {path} ends in {KEPT_SUFFIX!r}, and reverts delete such files: choose "
                f"another name"
            )
        if len(os.fsencode(path.name)) > NAME_LIMIT:
            raise Refused(f"{vdev}: {path} is too long for a file's name: name another path")
        refuse_existing(path)
        if not is_dir(path.parent):
            raise Refused(f"{vdev}: there is no directory {path.parent}: make it first")
        refuse_unchangeable(self.disk, path.parent)

    def state(self) -> dict[str, str]:
        """What tells the file from others."""
        vdev = self.disk.vdev
        known = {f"{vdev} child": self._token}
        return known | ({f"{vdev} inode": self._inode} if self._inode else {})

    def adopt(self, state: Mapping[str, str]) -> None:
        """Use what another object knows."""
        self._token = state.get(f"{self.disk.vdev} child", _UNKNOWN)
        self._inode = state.get(f"{self.disk.vdev} inode", "")

    def make(self, like: int | None = None) -> None:
        """Make the file, empty, with owner, mode and attributes of ``like``; its owner may write.

        :raises AlreadyExists: its name has been taken meanwhile.
        """
        with os_errors(self.disk, self.path):
            try:
                self._fd = open_new(self.path)
            except FileExistsError as e:
                self._token = ""  # an undo must not take the other program's file for ours
                raise AlreadyExists(
                    f"{self.path} exists: choose another name", where=str(self.path)
                ) from e
            self._inode = str(os.fstat(self._fd).st_ino)
            set_attribute(self._fd, MARK, self._token.encode())
            if like is not None:
                copy_attributes(like, self._fd)
            mode = stat.S_IMODE(os.fstat(self._fd).st_mode)
            os.fchmod(self._fd, mode | _OWNER_WRITES)

    def finish(self) -> None:
        """Make the file durable, and close it."""
        with os_errors(self.disk, self.path):
            os.fsync(self.fd)
            sync_directory(self.path.parent)
        self.close()

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def delete(self) -> list[str]:
        """Delete the file, if it is there; returns what was deleted.

        :raises DiskError: it is in use, or an image stands on it.
        :raises LeftOver: another file has its name.
        """
        self.close()
        if not self._token:
            return []
        with os_errors(self.disk, self.path):
            if not lexists(self.path):
                refuse_missing(self.disk, self.path.parent, self.path.name)
                return []
            self._refuse_other()
            wait_until_unused(self.disk, self.path)
            self._refuse_other()  # its user may have been the program that makes another file
            if images := standing_on(self.path, [self.path.parent]):
                raise DiskError(f"{images[0]} stands on {self.path}", vdev=self.disk.vdev)
            os.unlink(self.path)
            sync_directory(self.path.parent)
        return [f"removed {self.path}"]

    def _refuse_other(self) -> None:
        """:raises LeftOver: another file has the name."""
        if not self._is_ours():
            raise LeftOver(
                f"{self.path} is not known as the file that was made for the clone (has a snapshot "
                f"or a revert of the clone replaced it?), and was left as it is",
                vdev=self.disk.vdev,
                finish=command(["rm", str(self.path)]),
            )

    def _is_ours(self) -> bool:
        found = os.lstat(self.path)
        if not stat.S_ISREG(found.st_mode):
            return False
        if self._inode and str(found.st_ino) != self._inode:
            return False
        try:
            return os.getxattr(self.path, MARK, follow_symlinks=False) == self._token.encode()
        except OSError as e:
            if e.errno == errno.ENODATA:  # its process was killed just after it was made
                return not found.st_size
            return e.errno == errno.ENOTSUP and bool(self._inode)


def children(disks: Sequence[Disk], found: Sequence[CloneDisk]) -> list[ChildFile]:
    """The files of those of a clone's disks that were made from these disks."""
    by_vdev = {disk.vdev: disk for disk in disks}
    return [ChildFile(by_vdev[c.vdev], Path(c.target)) for c in found if c.vdev in by_vdev]
