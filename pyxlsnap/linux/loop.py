"""Loop devices: the file that one has open."""

import fcntl
import os
import struct
from pathlib import Path

# linux/loop.h: struct loop_info64 begins with lo_device, lo_inode and lo_rdevice.
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO64_SIZE = 232


def loop_file(device: Path) -> tuple[int, int] | None:
    """The file or block device that a loop device has open: its :func:`.processes.identity`.

    The name in ``loop/backing_file`` in /sys is no proof: the kernel shows " (deleted)" there once
    another file has been renamed over the file, and keeps that when the file has its name again.

    :returns: ``None``: there is no such device node, or it is no loop device with a file.
    """
    info = bytearray(_LOOP_INFO64_SIZE)
    try:
        fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _LOOP_GET_STATUS64, info)
        finally:
            os.close(fd)
    except OSError:
        return None
    number, inode, block_device = struct.unpack_from("QQQ", info)
    return (_decoded(block_device), 0) if block_device else (_decoded(number), inode)


def _decoded(number: int) -> int:
    """A device number. (huge_encode_dev: 12 bits of the major, and the minor around them.)"""
    major, minor = (number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)
    return os.makedev(major, minor)
