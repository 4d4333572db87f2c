"""Block devices without snapshots of their own: copied into a file, and back."""

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pyxlsnap.disks.copy.content import Space, refuse_no_room
from pyxlsnap.disks.copy.snapshot_file import CopyStrategy, SnapshotFile
from pyxlsnap.disks.failures import os_errors
from pyxlsnap.disks.in_use import wait_until_unused
from pyxlsnap.disks.side_by_side import side_by_side
from pyxlsnap.errors import Refused
from pyxlsnap.linux.files import NewFile, open_regular, refuse_existing

_BLKROGET = 0x125E  # linux/fs.h
_CHUNK = 4 << 20
_BLOCK = 64 << 10
_ZEROS = bytes(_BLOCK)


class BlockCopy(CopyStrategy):
    """Block devices that cannot take snapshots: partitions, multipath maps and the like.

    The guest is suspended while a device is copied, so this is done only on request. A revert
    writes into the device what differs. It does not keep the previous content, and does not use up
    the snapshot's file: a revert that was cut off is repeated.

    Devices are read and written past the page cache (O_DIRECT), as blkback does. What the cache has
    of a device (udev reads each) may be older than what is on the device.
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
        wanted = [Space(f.disk, f.target, f.to_copy, f.path.parent) for f in self._files]
        refuse_no_room(wanted, self._task.claim)

    def _check_wanted(self, file: SnapshotFile) -> None:
        if not self._task.asked or not file.request.path:
            raise Refused(
                f"{file.disk.vdev}: {file.target} is a block device that cannot take snapshots: "
                f"name a file in a cfgfile to copy it into while the guest is suspended "
                f"('/path,raw,{file.disk.vdev}'), leave the disk out, or move it to an LVM volume"
            )
        file.check_request()

    def prepare(self) -> None:
        for file in self._files:
            file.make()

    def copy(self, file: SnapshotFile) -> None:
        file.wait_until_drained()
        with os_errors(file.disk, file.target), _device(file.target, os.O_RDONLY) as device:
            copy_device(device, file.fd, check=self._task.check)

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
                    raise Refused(
                        f"{file.disk.vdev}: {file.target} is read-only: `blockdev --setrw` it first"
                    )
            if size != found:
                raise Refused(
                    f"{file.disk.vdev}: {file.path} has {size} bytes and {file.target} {found}: "
                    f"the file is not a copy of that device, or one of them was resized since: "
                    f"give both the same size again"
                )

    def revert(self) -> None:
        for file in self._files:
            wait_until_unused(file.disk, file.target)
        side_by_side([partial(self._put_back, file) for file in self._files])

    def _put_back(self, file: SnapshotFile) -> None:
        # O_EXCL: fails while the device is mounted, or a part of another device.
        with (
            os_errors(file.disk, file.target),
            open_regular(file.path) as snapshot,
            _device(file.target, os.O_RDWR | os.O_EXCL) as device,
        ):
            tell = partial(self._task.waiting, f"the copy back to {file.disk.vdev}")
            copy_back(snapshot.fileno(), device, check=tell)
            os.fsync(device)

    def finish_revert(self, domid: int) -> list[str]:
        """Nothing was kept."""
        return []


def copy_device(device: int, new: int, *, check: Callable[[], None] = lambda: None) -> None:
    """Copy a block device into an empty file; zeros become holes.

    :param check: called often; an exception from it ends the copying.
    :raises OSError: such as a full disk.
    """
    size, buffer = _size(device), _buffer()
    os.ftruncate(new, size)
    for offset in range(0, size, _CHUNK):
        check()
        count = _read(device, offset, buffer, size)
        for start in range(0, count, _BLOCK):
            block = buffer[start : min(start + _BLOCK, count)]
            if block != _ZEROS[: len(block)]:
                _write(new, offset + start, block)


def copy_back(snapshot: int, device: int, *, check: Callable[[], None] = lambda: None) -> None:
    """Write into a block device what differs from its copy.

    :param check: called often.
    :raises OSError: the copy has another size, one of them cannot be read, or the device cannot be
        written.
    """
    size, wanted, found = _size(device), _buffer(), _buffer()
    if _size(snapshot) != size:
        raise OSError(errno.EINVAL, "its copy has another size: one of them was resized since")
    for offset in range(0, size, _CHUNK):
        check()
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
    """Memory that is aligned to a page, as O_DIRECT requires."""
    return mmap.mmap(-1, _CHUNK)


def _size(fd: int) -> int:
    return os.lseek(fd, 0, os.SEEK_END)


def _read(fd: int, offset: int, buffer: mmap.mmap, size: int) -> int:
    """Fill the buffer from a device or file of this size; return how many bytes were read."""
    count = min(_CHUNK, size - offset)
    if os.preadv(fd, [memoryview(buffer)[:count]], offset) != count:
        raise OSError(errno.EIO, f"it ended before byte {offset + count}")
    return count


def _write(fd: int, offset: int, data: bytes | memoryview) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
