"""Disks whose snapshot is a copy in a file: what raw files and block devices have in common.

The file of a snapshot has its final name from the beginning. The undo, which may run in another
process, knows the file by a token: it is in the journal, and in an attribute of the file. The name
was free when the journal was written.
"""

import errno
import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from pyxlsnap.disks.copy.clones import CopyClones
from pyxlsnap.disks.copy.content import (
    BYTES_PER_S,
    MARK,
    copy_attributes,
    open_new,
    set_attribute,
)
from pyxlsnap.disks.failures import os_errors, refuse_missing
from pyxlsnap.disks.in_use import request_queues, users, wait_until_drained
from pyxlsnap.disks.side_by_side import grouped
from pyxlsnap.disks.standing import standing_on
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import undo_each
from pyxlsnap.errors import AlreadyExists, DiskError, Refused
from pyxlsnap.linux.files import sync_directory
from pyxlsnap.linux.there import exists, lexists
from pyxlsnap.model import KEPT_SUFFIX, Disk, DiskRequest
from pyxlsnap.results import Artefact, CloneDisk
from pyxlsnap.text import command


class SnapshotFile:
    """One disk, and the file that its content is copied into."""

    def __init__(self, disk: Disk, request: DiskRequest) -> None:
        self.disk, self.request = disk, request
        #: where the disk's path really leads to
        self.target = Path(os.path.realpath(disk.target))
        self.path = Path(request.path)
        #: whether the copy will be a reflink; if not, how many bytes will be copied
        self.reflink, self.to_copy = False, 0
        #: how long a reflink takes, seconds
        self.reflink_s = 0.0
        self.token = os.urandom(16).hex()
        #: the block devices that the disk's requests go through; found by :meth:`make`
        self._queues: list[Path] = []
        self._fd = -1
        self._made: tuple[int, int] | None = None
        self._began: float | None = None

    @property
    def fd(self) -> int:
        """The file, open for writing between :meth:`make` and :meth:`finish`."""
        if self._fd < 0:
            raise DiskError(f"{self.path} was not prepared", vdev=self.disk.vdev)
        return self._fd

    def check_request(self) -> None:
        """:raises Refused: the request makes no sense, whatever is on the host."""
        vdev, path = self.disk.vdev, self.request.path
        if self.request.format not in ("", "raw"):
            raise Refused(
                f"{vdev}: the copy of a raw disk is raw, not {self.request.format}: write "
                f"'{path},raw,{vdev}'"
            )
        for name in (path, self.disk.target):
            if not Path(name).is_absolute():
                raise Refused(f"{vdev}: the path {name} must be absolute")
        if path.endswith(KEPT_SUFFIX):
            raise Refused(
                f"{vdev}: {path} ends in {KEPT_SUFFIX!r}; a revert keeps a disk under such a name, "
                f"and deletes it at the end: choose another name"
            )

    def make(self, like: int | None = None) -> None:
        """Make the file, empty; with owner, mode and attributes of ``like``, if given.

        :raises AlreadyExists: its name has been taken meanwhile.
        """
        with os_errors(self.disk, self.path):
            try:
                self._fd = open_new(self.path)
            except FileExistsError as e:
                raise AlreadyExists(
                    f"{self.path} exists: choose another name", where=str(self.path)
                ) from e
            self._made = _identity(os.fstat(self._fd))
            set_attribute(self._fd, MARK, self.token.encode())
            if like is not None:
                copy_attributes(like, self._fd)
        with os_errors(self.disk, self.target):
            self._queues = request_queues(self.target)

    def filesystem(self) -> int:
        """The number of the filesystem that the file is on.

        :raises DiskError: :meth:`make` was not called.
        """
        return os.fstat(self.fd).st_dev

    def wait_until_drained(self) -> None:
        """See :func:`pyxlsnap.disks.in_use.wait_until_drained`."""
        wait_until_drained(self.disk, self.target, self._queues)

    def finish(self) -> None:
        """Make the file read-only, and durable. Slow if the file is big."""
        with os_errors(self.disk, self.path):
            if self._fd < 0 and self._began is not None:
                self._reopen()
            os.fchmod(self.fd, stat.S_IMODE(os.fstat(self.fd).st_mode) & ~0o222)
            os.fsync(self.fd)
            sync_directory(self.path.parent)
        self.close()

    def _reopen(self) -> None:
        """:raises DiskError: what is there is not the file that a dead process has made."""
        if not self._is_ours():
            raise DiskError(f"{self.path} is not the copy that was made", vdev=self.disk.vdev)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def adopt(self, token: str, began: float) -> None:
        """Take over the file of a dead process's object."""
        self.token, self._began = token, began

    def undo(self) -> list[str]:
        """Remove the file, unless the name is somebody else's; returns what was removed."""
        self.close()
        with os_errors(self.disk, self.path):
            if not self._is_ours():
                return []
            os.unlink(self.path)
        return [f"removed {self.path}"]

    def check_delete(self, directories: Iterable[Path]) -> bool:
        """Check that the file can be deleted.

        :param directories: where images may be that stand on it.
        :returns: whether it is there.
        :raises Refused: it was not made by pyxlsnap, or is in use.
        """
        with os_errors(self.disk, self.path, refuse=True):
            if not lexists(self.path):
                return False
            if not self._is_marked():
                raise Refused(
                    f"{self.disk.vdev}: {self.path} is not marked as a copy that pyxlsnap made, "
                    f"and was left as it is: `rm` it if it is one"
                )
            if found := users(self.path):
                raise Refused(
                    f"{self.disk.vdev}: {self.path} is in use by {', '.join(found)}: end that first"
                )
            if images := standing_on(self.path, [self.path.parent, *directories]):
                raise Refused(
                    f"{self.disk.vdev}: the image {images[0]} stands on {self.path}: rebase it "
                    f"first (qemu-img rebase), or delete it"
                )
        return True

    def delete(self) -> None:
        """Delete the file."""
        with os_errors(self.disk, self.path):
            os.unlink(self.path)
            sync_directory(self.path.parent)

    def _is_marked(self) -> bool:
        found = os.lstat(self.path)
        if not stat.S_ISREG(found.st_mode):
            return False
        if exists(self.target) and os.path.samestat(found, self.target.stat()):
            return False
        try:
            return bool(os.getxattr(self.path, MARK, follow_symlinks=False))
        except OSError as e:
            return e.errno == errno.ENOTSUP  # the filesystem has no attributes

    def _check_storage(self) -> None:
        """:raises DiskError: the file may be on storage that is not there after a crash."""
        if self._began is not None:
            refuse_missing(self.disk, self.path.parent, self.path.name)
            refuse_missing(self.disk, self.target, self.path.name)

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _is_ours(self) -> bool:
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            self._check_storage()
            return False
        if self._made:
            return _identity(found) == self._made
        if self._began is None or not stat.S_ISREG(found.st_mode):
            return False
        try:
            return os.getxattr(self.path, MARK, follow_symlinks=False) == self.token.encode()
        except OSError as e:
            # Without attributes the time decides. With attributes only an empty file can lack the
            # token: its process was killed just after making it.
            unmarked = e.errno == errno.ENOTSUP or (e.errno == errno.ENODATA and not found.st_size)
            # A filesystem's clock may be some milliseconds behind.
            return unmarked and found.st_ctime >= self._began - 1


class CopyStrategy:
    """Disks whose snapshot is a copy in a file: making, keeping and removing the file.

    See :class:`pyxlsnap.disks.protocol.DiskStrategy`.
    """

    kind = "copy"

    def __init__(self, disks: Sequence[tuple[Disk, DiskRequest]], task: DiskTask) -> None:
        self._task = task
        self._files = tuple(SnapshotFile(disk, request) for disk, request in disks)
        self._clones = CopyClones(disks, task)
        self.vdevs = tuple(f.disk.vdev for f in self._files)
        self._copied = False

    def beside(self) -> Collection[str]:
        """See :class:`pyxlsnap.disks.abilities.BesideStrategy`."""
        return self.vdevs

    def create_beside(self) -> None:
        """Copy the disks; those to different filesystems at the same time."""
        if not self._copied:
            grouped(self._files, SnapshotFile.filesystem, self.copy)
            self._copied = True

    def create(self) -> None:
        self.create_beside()

    def copy(self, file: SnapshotFile) -> None:
        """Copy one disk into its file. The guest is suspended."""
        raise NotImplementedError

    def expected_seconds(self) -> float:
        reflinks_s = sum(f.reflink_s for f in self._files)
        return reflinks_s + sum(f.to_copy for f in self._files) / BYTES_PER_S

    def state(self) -> dict[str, str]:
        return {f"{f.disk.vdev} token": f.token for f in self._files} | self._clones.state()

    def finish_create(self) -> None:
        for file in self._files:
            file.finish()

    def settle(self) -> None:
        """Nothing to do: the guest's disks were only read, so it may run at any time."""

    def undo_create(self) -> list[str]:
        return undo_each(file.undo for file in self._files)

    def adopt_create(self, domid: int | None, *, began: float, state: Mapping[str, str]) -> None:
        for file in self._files:
            file.adopt(state.get(f"{file.disk.vdev} token", ""), began)

    def artefacts(self, domain: str) -> list[Artefact]:
        return [
            Artefact(
                kind="disk snapshot",
                where=f"{f.path} ({f.disk.vdev}; {'reflink copy' if f.reflink else 'copy'})",
                delete=command(["rm", str(f.path)]),
                vdev=f.disk.vdev,
            )
            for f in self._files
        ]

    # delete

    def check_delete(self, domid: int | None) -> None:
        for file in self._files:
            file.check_request()
            file.check_delete(self._task.looks_in)

    def prepare_delete(self) -> list[str]:
        """Nothing to do: the disk does not depend on its copy."""
        return []

    def delete(self) -> list[str]:
        return undo_each(partial(self._delete, file) for file in self._files)

    def _delete(self, file: SnapshotFile) -> list[str]:
        if not file.check_delete(self._task.looks_in):
            return []
        file.delete()
        return [f"removed {file.path}"]

    # clones

    def check_clone(self, name: str, wanted: Mapping[str, DiskRequest]) -> list[CloneDisk]:
        for file in self._files:
            file.check_request()
        return self._clones.check(name, wanted)

    def clone(self) -> None:
        self._clones.make()

    def delete_clone(self, disks: Sequence[CloneDisk], state: Mapping[str, str]) -> list[str]:
        return self._clones.delete(disks, state)

    def close(self) -> None:
        self._clones.close()
        for file in self._files:
            file.close()


def _identity(found: os.stat_result) -> tuple[int, int]:
    return (found.st_dev, found.st_ino)
