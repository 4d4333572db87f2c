"""Where a file has blocks of its own, so that writing there takes no more space."""

import fcntl
import struct
import sys

_FIEMAP = 0xC020660B  # linux/fs.h
_HEAD = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQ16xI12x")
_LAST, _SHARED = 0x1, 0x2000
_AT_ONCE = 256
# statfs(2): filesystems that write over blocks, where these are not shared (ext2 to 4, xfs)
_IN_PLACE = (0xEF53, 0x58465342)
_STATFS_SIZE = 512  # more than enough


def space_to_write(fd: int, ranges: list[tuple[int, int]]) -> int:
    """How much space it takes to write to parts of a file, bytes.

    On a filesystem that may write elsewhere (btrfs, zfs), or that does not tell, that is all.

    :param ranges: start and length of each part; a part may be behind the end of the file.
    """
    total = sum(length for _, length in ranges)
    if not _writes_in_place(fd):
        return total
    try:
        return total - sum(_own(fd, start, length) for start, length in ranges)
    except OSError:
        return total


def _writes_in_place(fd: int) -> bool:
    import ctypes  # only here: this takes long to load

    found = ctypes.create_string_buffer(_STATFS_SIZE)
    if ctypes.CDLL(None).fstatfs(fd, found):
        return False
    word = ctypes.sizeof(ctypes.c_long)
    return int.from_bytes(found.raw[:word], sys.byteorder) in _IN_PLACE


def _own(fd: int, start: int, length: int) -> int:
    """The bytes of a part that have blocks which no other file shares."""
    found, at, end = 0, start, start + length
    while at < end:
        answer = bytearray(_HEAD.size + _AT_ONCE * _EXTENT.size)
        _HEAD.pack_into(answer, 0, at, end - at, 0, 0, _AT_ONCE, 0)
        fcntl.ioctl(fd, _FIEMAP, answer)
        count = _HEAD.unpack_from(answer)[3]
        if not count:
            break
        for number in range(count):
            logical, _, size, flags = _EXTENT.unpack_from(
                answer, _HEAD.size + number * _EXTENT.size
            )
            if not flags & _SHARED:
                found += max(0, min(logical + size, end) - max(logical, at))
        at = max(at, logical + size)
        if flags & _LAST:
            break
    return found
