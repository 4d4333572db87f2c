"""Raw files, served by blkback over a loop device or by QEMU: the snapshot is a copy of the file.

Where the filesystem can share blocks between files, the copy is a reflink, taken at once. Elsewhere
the guest is suspended while the file is copied: without a request only if that takes less than a
second.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.changeable import refuse_unchangeable
from pyxlsnap.disks.copy.content import (
    BYTES_PER_S,
    Space,
    can_reflink,
    copy_attributes,
    copy_file,
    new_file,
    reflink_seconds,
    refuse_no_room,
)
from pyxlsnap.disks.copy.snapshot_file import CopyStrategy, SnapshotFile
from pyxlsnap.disks.failures import os_errors
from pyxlsnap.disks.in_use import users, wait_until_unused
from pyxlsnap.disks.kept import KeptFiles, refuse_long_kept
from pyxlsnap.disks.side_by_side import side_by_side
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import undo_each
from pyxlsnap.errors import Refused
from pyxlsnap.linux.files import (
    NewFile,
    file_version,
    open_regular,
    refuse_existing,
    sync_directory,
    temporary_name,
)
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.text import mib

_UNASKED_S = 1.0  # a copy that takes longer is made on request only


def default_request(disk: Disk, name: str) -> DiskRequest:
    """The request for a raw file that the user has not named: a copy beside it."""
    return DiskRequest(disk.vdev, f"{disk.target}.{name}", "raw")


class RawFile(CopyStrategy):
    """All raw files of an operation. See :class:`pyxlsnap.disks.protocol.DiskStrategy`."""

    kind = "raw file"

    def __init__(self, disks: Sequence[tuple[Disk, DiskRequest]], task: DiskTask) -> None:
        super().__init__(disks, task)
        self._kept = KeptFiles(task)
        # A name that no file has had before: a run that finishes this one removes what is there.
        new = {f"{f.disk.vdev} copy": str(temporary_name(f.target)) for f in self._files}
        killed = task.prepared or task.finishes or {}
        self._temporaries = {k: killed.get(k, name) for k, name in new.items()}
        #: by vdev: the copies that are made already
        self._copies: dict[str, _Copy] = {}

    def state(self) -> dict[str, str]:
        return super().state() | self._kept.state() | self._temporaries

    # create

    def check_create(self, domid: int) -> None:
        for file in self._files:
            _check_request(file)
            with (
                os_errors(file.disk, file.target, refuse=True),
                open_regular(file.target) as source,
            ):
                self._check_copy(file, source.fileno())
        self._check_unasked()
        wanted = [Space(f.disk, f.target, f.to_copy, f.path.parent) for f in self._files]
        refuse_no_room([space for space in wanted if space.size], self._task.claim)

    def _check_unasked(self) -> None:
        """Copy what nobody asked to be copied only if the guest hardly notices."""
        copied = [file for file in self._files if file.to_copy and not self._task.asked]
        seconds = sum(file.to_copy for file in copied) / BYTES_PER_S
        for file in copied:
            vdev, size = file.disk.vdev, mib(file.to_copy)
            why = f"{vdev}: {file.target} is on a filesystem that cannot share blocks between files"
            if seconds < _UNASKED_S:
                self._task.warn(f"{why}: {size} are copied while the guest is suspended")
                continue
            raise Refused(
                f"{why}, so the guest would be suspended for about {seconds:.1f} s while {size} "
                f"are copied{' (and other disks)' if len(copied) > 1 else ''}: to accept that, "
                f"name the disk with a path in a cfgfile ('{file.path},raw,{vdev}'); else leave "
                f"the disk out, or convert it to qcow2"
            )

    def _check_copy(self, file: SnapshotFile, source: int) -> None:
        vdev = file.disk.vdev
        refuse_existing(file.path)
        refuse_long_kept(file.disk, file.target, self._task.name)
        if not users(file.target):
            raise Refused(
                f"{vdev}: {file.target} is not in use, so it is not the file of the guest: was "
                f"the file replaced? Restart the guest, or leave {vdev} out"
            )
        file.reflink, file.to_copy = _how_to_copy(file.disk, source, source, file.path)
        file.reflink_s = reflink_seconds(source) if file.reflink else 0.0

    def prepare(self) -> None:
        for file in self._files:
            with os_errors(file.disk, file.target), open_regular(file.target) as source:
                file.make(like=source.fileno())
                os.fsync(source.fileno())  # so that little is left to flush in the window

    def copy(self, file: SnapshotFile) -> None:
        file.wait_until_drained()
        with os_errors(file.disk, file.target), open_regular(file.target) as source:
            # Data written to a loop device is in the page cache of its file. A reflink flushes
            # the cache itself; a copy must not take unwritten data for a hole.
            os.fsync(source.fileno())
            copy_file(source.fileno(), file.fd, reflink=file.reflink, check=self._task.check)

    # revert

    def check_revert(self) -> None:
        wanted = []
        for file in self._files:
            _check_request(file)
            with os_errors(file.disk, file.path, refuse=True), open_regular(file.path) as snapshot:
                if not os.fstat(snapshot.fileno()).st_size:
                    raise Refused(
                        f"{file.disk.vdev}: the disk snapshot {file.path} is empty: put a "
                        f"complete copy of it there, or take another snapshot"
                    )
                wanted.append(self._check_put_back(file, snapshot.fileno()))
        refuse_no_room([space for space in wanted if space.size], self._task.claim)

    def _check_put_back(self, file: SnapshotFile, snapshot: int) -> Space:
        with os_errors(file.disk, file.target, refuse=True):
            there = self._kept.present(file.disk, file.target)
        with os_errors(file.disk, there, refuse=True), open_regular(there) as present:
            if os.path.sameopenfile(present.fileno(), snapshot):
                raise Refused(
                    f"{file.disk.vdev}: {file.path} is the disk, not a snapshot of it: name the "
                    f"snapshot in the cfgfile"
                )
            refuse_unchangeable(file.disk, there, write=False)
            refuse_unchangeable(file.disk, file.target.parent)
            _, size = _how_to_copy(
                file.disk, snapshot, present.fileno(), self._temporary(file), whole=True
            )
            self._kept.check(file.disk, file.target)
        # A run that was killed may have left half a copy, which goes before the new one is made.
        size = max(0, size - _blocks(self._temporary(file)))
        return Space(file.disk, file.path, size, file.target.parent)

    def revert(self) -> None:
        """Put a copy of the snapshot in the place of the disk, which is kept under another name.

        :raises DiskError: a disk is still in use; nothing was written then.
        """
        for file in self._files:
            with os_errors(file.disk, file.target):
                wait_until_unused(file.disk, self._kept.present(file.disk, file.target))
        side_by_side([partial(self._put_back, file) for file in self._files])

    def _put_back(self, file: SnapshotFile) -> None:
        with os_errors(file.disk, file.target):
            self._kept.keep(file.disk, file.target)
            kept = self._kept.path(file.target)
            try:
                if not self._is_prepared(file, like=kept):
                    tell = partial(self._task.waiting, f"the copy back to {file.disk.vdev}")
                    self._make_copy(file, like=kept, check=tell)
                os.rename(self._temporary(file), file.target)
                sync_directory(file.target.parent)
            finally:
                self._temporary(file).unlink(missing_ok=True)

    def _make_copy(self, file: SnapshotFile, *, like: Path, check: Callable[[], None]) -> None:
        temporary = self._temporary(file)
        temporary.unlink(missing_ok=True)  # a run that was killed leaves a big file
        _copy(file.path, temporary, like=like, check=check)

    def prepare_revert(self, check: Callable[[], None]) -> None:
        for file in self._files:
            with os_errors(file.disk, file.target):
                before = file_version(file.path)
                self._make_copy(file, like=file.target, check=check)
                copy = _Copy(before, file_version(self._temporary(file)), _owner(file.target))
            self._copies[file.disk.vdev] = copy

    def _is_prepared(self, file: SnapshotFile, *, like: Path) -> bool:
        """Whether the copy is there, and what it was made of is as it was.

        :param like: the file with the owner and mode that the disk's file is to have.
        """
        try:
            now = _Copy(file_version(file.path), file_version(self._temporary(file)), _owner(like))
        except OSError:
            return False
        return now == self._copies.get(file.disk.vdev)

    def undo_prepared(self) -> None:
        undo_each(partial(self._undo_prepared, file) for file in self._files)

    def _undo_prepared(self, file: SnapshotFile) -> list[str]:
        self._copies.pop(file.disk.vdev, None)
        with os_errors(file.disk, self._temporary(file)):
            self._temporary(file).unlink(missing_ok=True)
        return []

    def finish_revert(self, domid: int) -> list[str]:
        return self._kept.remove((file.disk, file.target) for file in self._files)

    def _temporary(self, file: SnapshotFile) -> Path:
        return Path(self._temporaries[f"{file.disk.vdev} copy"])


def _check_request(file: SnapshotFile) -> None:
    if not file.request.path:
        vdev = file.disk.vdev
        raise Refused(
            f"{vdev}: a raw file cannot hold a snapshot inside: give a path: '/path,raw,{vdev}'"
        )
    file.check_request()


def _how_to_copy(
    disk: Disk, source: int, like: int, path: Path, *, whole: bool = False
) -> tuple[bool, int]:
    """Try with a file beside ``path`` whether a reflink works; if not, how many bytes to copy.

    :param whole: try it with the whole file: with a part there may be room, and then no more.
    :raises Refused: a file cannot be made there.
    """
    with NewFile(path) as probe, os_errors(disk, probe.temporary, refuse=True):
        copy_attributes(like, probe.fileno())
        if can_reflink(source, probe.fileno()):
            if whole:
                copy_file(source, probe.fileno(), reflink=True)
            return True, 0
    return False, os.fstat(source).st_blocks * 512


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy that was made beforehand, and what it was made of."""

    snapshot: tuple[int, ...]
    copy: tuple[int, ...]
    #: mode and owner of the disk's file
    owner: tuple[int, ...]


def _owner(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return (found.st_mode, found.st_uid, found.st_gid)


def _blocks(path: Path) -> int:
    """The space that a file takes, bytes; 0 if there is none."""
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0


def _copy(path: Path, new: Path, *, like: Path, check: Callable[[], None]) -> None:
    """Copy a file, durably, and give it the owner, mode and attributes of another."""
    with (
        open_regular(path) as source,
        open_regular(like) as attributes,
        new_file(new) as copy,
    ):
        copy_attributes(attributes.fileno(), copy)
        shared = can_reflink(source.fileno(), copy)
        copy_file(source.fileno(), copy, reflink=shared, check=check)
        os.fsync(copy)
