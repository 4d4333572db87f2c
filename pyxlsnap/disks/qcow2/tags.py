"""The snapshots inside a qcow2 image, as QEMU lists them and as the file's snapshot table has them.

A revert reads the table while the domain is off, and the start of a ``qemu-img info`` would take
longer than everything else that it needs to know then. The format: QEMU's docs/interop/qcow2.txt.
"""

import errno
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.failures import os_errors
from pyxlsnap.errors import DiskError
from pyxlsnap.model import Disk
from pyxlsnap.text import text_of

MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sI52xIQ")
_ENTRY = struct.Struct(">QIHHII12xI")
_ALIGNED = 8
# QEMU's own limits: snapshots, bytes of the table, bytes of an entry that are not in the format
_MOST, _MOST_BYTES, _MOST_EXTRA = 1 << 16, 64 << 20, 1024
_DAMAGED = "has a damaged snapshot table"
_PER_SECOND = 1e9


@dataclass(frozen=True, slots=True)
class Tag:
    """A snapshot in an image."""

    name: str
    #: host time when it was made, seconds since the epoch
    date: float


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the snapshot table."""

    tag: Tag
    #: where the L1 table of the snapshot is in the file
    l1_at: int
    l1_entries: int


def tags_of(image: Mapping[str, Any]) -> list[Tag]:
    """The snapshots in an image, from QEMU's ImageInfo."""
    return [
        Tag(s["name"], s["date-sec"] + s["date-nsec"] / _PER_SECOND)
        for s in image.get("snapshots", [])
    ]


def image_tags(disk: Disk) -> list[Tag]:
    """The snapshots in a disk's image, as the file has them.

    Only the table is looked at: that QEMU can open the image must be known. A QEMU that has the
    image open may have other snapshots in its memory.

    :raises DiskError: the file cannot be read, is not a qcow2 image, or its table is damaged.
    """
    with os_errors(disk, Path(disk.target)):
        fd = os.open(disk.target, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return [entry.tag for entry in entries(fd)]
        except ValueError as e:
            raise DiskError(f"{disk.target} {e}", vdev=disk.vdev) from e
        finally:
            os.close(fd)


def entries(fd: int) -> Iterator[Entry]:
    """The entries of the snapshot table of an image.

    :raises ValueError: the file is not a qcow2 image, or the table is damaged.
    :raises OSError: the file cannot be read.
    """
    header = os.pread(fd, _HEADER.size, 0)
    if len(header) < _HEADER.size or not header.startswith(MAGIC):
        raise ValueError("is not a qcow2 image")
    *_, count, at = _HEADER.unpack(header)
    if count > _MOST:
        raise ValueError(_DAMAGED)
    end = at + _MOST_BYTES
    for _ in range(count):
        entry, at = _entry(fd, at)
        if at > end:
            raise ValueError(_DAMAGED)
        yield entry


def _entry(fd: int, at: int) -> tuple[Entry, int]:
    """The entry at an offset, and the offset of the next one."""
    l1_at, l1_entries, id_size, name_size, sec, nsec, extra = _ENTRY.unpack(
        _read(fd, _ENTRY.size, at)
    )
    if extra > _MOST_EXTRA:
        raise ValueError(_DAMAGED)
    name_at = at + _ENTRY.size + extra + id_size
    name = text_of(_read(fd, name_size, name_at))
    end = name_at + name_size
    tag = Tag(name, sec + nsec / _PER_SECOND)
    return Entry(tag, l1_at, l1_entries), end + -end % _ALIGNED


def _read(fd: int, size: int, at: int) -> bytes:
    try:
        data = os.pread(fd, size, at)
    except OverflowError:
        data = b""
    except OSError as e:
        if e.errno != errno.EINVAL:  # an offset that no file has
            raise
        data = b""
    if len(data) < size:
        raise ValueError(_DAMAGED)
    return data
