"""Disks whose snapshot is a copy in a file, and the plainest of them: block devices.

The file of a snapshot has its final name from the beginning: the name was free when the journal was
written, and the file bears a token that is in the journal, so that whoever undoes the snapshot, be
it in another process, knows it.
"""

import errno
import fcntl
import mmap
import os
import secrets
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyxlsnap.disks.copying import (
    BYTES_PER_S,
    MARK,
    Space,
    copy_attributes,
    drained,
    open_new,
    os_errors,
    refuse_full,
    released,
    set_attribute,
)
from pyxlsnap.errors import AlreadyExists, DiskError, PyxlsnapError, Refused
from pyxlsnap.files import NewFile, open_regular, refuse_existing, sync_directory
from pyxlsnap.model import KEPT_SUFFIX, Artefact, Disk, DiskRequest
from pyxlsnap.ports import DiskTask

_BLKROGET = 0x125E  # linux/fs.h
_CHUNK = 4 << 20
_BLOCK = 64 << 10
_ZEROS = bytes(_BLOCK)


class SnapshotFile:
    """One disk, and the file that its content is copied into."""

    def __init__(self, disk: Disk, request: DiskRequest) -> None:
        self.disk, self.request = disk, request
        #: where the disk's path really leads to
        self.target = Path(os.path.realpath(disk.target))
        self.path = Path(request.path)
        #: the copy will be a reflink; else so many bytes will be copied
        self.reflink, self.to_copy = False, 0
        self.token = secrets.token_hex(16)
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
        """:raises Refused: the file cannot be what it has to be, whatever is on the host."""
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
                f"{vdev}: under a name that ends in {KEPT_SUFFIX!r} a revert keeps a disk, and "
                f"deletes it in the end: choose another than {path}"
            )

    def make(self, like: int | None = None) -> None:
        """Make the file, empty; with owner, mode and attributes of ``like``, if given.

        :raises AlreadyExists: its name has been taken meanwhile.
        """
        with os_errors(self.disk, self.path):
            try:
                self._fd = open_new(self.path)
            except FileExistsError as e:
                raise AlreadyExists(f"{self.path} exists", where=str(self.path)) from e
            self._made = _identity(os.fstat(self._fd))
            set_attribute(self._fd, MARK, self.token.encode())
            if like is not None:
                copy_attributes(like, self._fd)

    def finish(self) -> None:
        """Make the file read-only, and durable: slow, if it is big."""
        with os_errors(self.disk, self.path):
            os.fchmod(self.fd, stat.S_IMODE(os.fstat(self.fd).st_mode) & ~0o222)
            os.fsync(self.fd)
            sync_directory(self.path.parent)
        self.close()

    def adopt(self, token: str, began: float) -> None:
        """Stand for the object of a process that is dead."""
        self.token, self._began = token, began

    def undo(self) -> list[str]:
        """Remove the file if it is the one that was made."""
        self.close()
        with os_errors(self.disk, self.path):
            if not self._is_ours():
                return []
            os.unlink(self.path)
        return [f"removed {self.path}"]

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _is_ours(self) -> bool:
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return False
        if self._made:
            return _identity(found) == self._made
        if self._began is None or not stat.S_ISREG(found.st_mode):
            return False
        try:
            return os.getxattr(self.path, MARK, follow_symlinks=False) == self.token.encode()
        except OSError as e:
            # Without attributes the time must do; with them only an empty file can lack the token.
            unmarked = e.errno == errno.ENOTSUP or (e.errno == errno.ENODATA and not found.st_size)
            # A filesystem's clock is some milliseconds behind.
            return unmarked and found.st_ctime >= self._began - 1


class CopyStrategy:
    """Disks whose snapshot is a copy in a file: how such a file comes, stays and goes.

    See :class:`pyxlsnap.ports.DiskStrategy`.
    """

    kind = "copy"

    def __init__(self, disks: Sequence[tuple[Disk, DiskRequest]], task: DiskTask) -> None:
        self._task = task
        self._files = tuple(SnapshotFile(disk, request) for disk, request in disks)
        self.vdevs = tuple(f.disk.vdev for f in self._files)

    def expected_seconds(self) -> float:
        return sum(f.to_copy for f in self._files) / BYTES_PER_S

    def state(self) -> dict[str, str]:
        return {f"{f.disk.vdev} token": f.token for f in self._files}

    def finish_create(self) -> None:
        for file in self._files:
            file.finish()

    def settle(self) -> None:
        """Nothing of the guest's own was touched: it may run at any time."""

    def undo_create(self) -> list[str]:
        undone: list[str] = []
        left: list[DiskError] = []
        for file in self._files:
            try:
                undone += file.undo()
            except DiskError as e:
                left.append(e)
        if len(left) > 1:
            raise PyxlsnapError("; ".join(map(str, left)))
        if left:
            raise left[0]
        return undone

    def adopt_create(self, domid: int, *, began: float, state: Mapping[str, str]) -> None:
        for file in self._files:
            file.adopt(state.get(f"{file.disk.vdev} token", ""), began)

    def artefacts(self, domain: str) -> list[Artefact]:
        return [
            Artefact(
                kind="disk snapshot",
                where=f"{f.path} ({f.disk.vdev}; {'reflink copy' if f.reflink else 'copy'})",
                delete=f"rm {shlex.quote(str(f.path))}",
            )
            for f in self._files
        ]

    def close(self) -> None:
        for file in self._files:
            file.close()


class BlockCopy(CopyStrategy):
    """Block devices that know no snapshots: partitions, multipath maps and the like.

    The guest stands still while a device is copied, so only on request. A revert writes into the
    device what differs. Nothing is kept of what was there before: the snapshot's file is not used
    up, so that a revert that was cut off is repeated.

    Devices are read and written past the page cache (O_DIRECT), for blkback goes past it, too: what
    the cache has of a device (udev looks into each) may be older than what is on it.
    """

    kind = "block device"

    # create

    def check_create(self, domid: int) -> None:
        for file in self._files:
            self._check_wanted(file)
            with os_errors(file.disk, file.target, refuse=True):
                refuse_existing(file.path)
                with _device(file.target, os.O_RDONLY) as device:
                    file.to_copy = _size(device)
                    _read(device, 0, _buffer(), file.to_copy)  # it can be read
                NewFile(file.path).discard()  # a file can be made there
        refuse_full([Space(f.disk, f.target, f.to_copy, f.path.parent) for f in self._files])

    def _check_wanted(self, file: SnapshotFile) -> None:
        if not self._task.asked or not file.request.path:
            raise Refused(
                f"{file.disk.vdev}: {file.target} is a block device that knows no snapshots: name "
                f"a file in a cfgfile that it is copied into while the guest stands still "
                f"('/path,raw,{file.disk.vdev}'), leave it out, or move it to an LVM volume"
            )
        file.check_request()

    def prepare(self) -> None:
        for file in self._files:
            file.make()

    def create(self) -> None:
        for file in self._files:
            drained(file.disk, file.target)
            with os_errors(file.disk, file.target), _device(file.target, os.O_RDONLY) as device:
                copy_device(device, file.fd)

    # revert

    def check_revert(self) -> None:
        for file in self._files:
            self._check_wanted(file)
            with os_errors(file.disk, file.path, refuse=True), open_regular(file.path) as snapshot:
                size = _size(snapshot.fileno())
            with (
                os_errors(file.disk, file.target, refuse=True),
                _device(file.target, os.O_RDONLY) as device,
            ):
                found = _size(device)
                if any(fcntl.ioctl(device, _BLKROGET, bytes(4))):
                    raise Refused(f"{file.disk.vdev}: {file.target} is read-only")
            if size != found:
                raise Refused(
                    f"{file.disk.vdev}: {file.path} has {size} bytes and {file.target} {found}: it "
                    f"is no copy of that device, or one of them has been resized since"
                )

    def revert(self) -> None:
        for file in self._files:
            released(file.disk, file.target)
        for file in self._files:
            # O_EXCL: not while it is mounted, or part of something else.
            with (
                os_errors(file.disk, file.target),
                open_regular(file.path) as snapshot,
                _device(file.target, os.O_RDWR | os.O_EXCL) as device,
            ):
                copy_back(snapshot.fileno(), device)
                os.fsync(device)

    def finish_revert(self, domid: int) -> list[str]:
        """Nothing was kept."""
        return []


def copy_device(device: int, new: int) -> None:
    """Copy a block device into an empty file; what is zero becomes a hole.

    :raises OSError: such as a full disk.
    """
    size, buffer = _size(device), _buffer()
    os.ftruncate(new, size)
    for offset in range(0, size, _CHUNK):
        count = _read(device, offset, buffer, size)
        for start in range(0, count, _BLOCK):
            block = buffer[start : min(start + _BLOCK, count)]
            if block != _ZEROS[: len(block)]:
                _write(new, offset + start, block)


def copy_back(snapshot: int, device: int) -> None:
    """Write into a block device what differs from its copy, which is as long.

    :raises OSError: one of them cannot be read, or the device not be written.
    """
    size, wanted, found = _size(device), _buffer(), _buffer()
    if _size(snapshot) != size:
        raise OSError(errno.EINVAL, "its copy has another size: one of them has been resized since")
    for offset in range(0, size, _CHUNK):
        count = _read(device, offset, found, size)
        _read(snapshot, offset, wanted, size)
        for start in range(0, count, _BLOCK):
            end = min(start + _BLOCK, count)
            if wanted[start:end] != found[start:end]:
                _write(device, offset + start, memoryview(wanted)[start:end])


@contextmanager
def _device(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISBLK(os.fstat(fd).st_mode):
            raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK), str(path))
        yield fd
    finally:
        os.close(fd)


def _buffer() -> mmap.mmap:
    """Memory that begins where a page does, as O_DIRECT wants it."""
    return mmap.mmap(-1, _CHUNK)


def _size(fd: int) -> int:
    return os.lseek(fd, 0, os.SEEK_END)


def _read(fd: int, offset: int, buffer: mmap.mmap, size: int) -> int:
    """Fill the buffer, up to the end that is at ``size``; return how much that is."""
    count = min(_CHUNK, size - offset)
    if os.preadv(fd, [memoryview(buffer)[:count]], offset) != count:
        raise OSError(errno.EIO, f"it ended before byte {offset + count}")
    return count


def _write(fd: int, offset: int, data: bytes | memoryview) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return (found.st_dev, found.st_ino)
