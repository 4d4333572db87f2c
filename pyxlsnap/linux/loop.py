"""Loop devices: the file that one has open."""

import errno
import fcntl
import os
import struct
import threading
from functools import partial
from pathlib import Path

from pyxlsnap.linux.stalled import answer_within

# linux/loop.h: struct loop_info64 begins with lo_device, lo_inode and lo_rdevice.
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO64_SIZE = 232

#: the devices that were asked and have not answered, each with what is set once it has
_unanswered: dict[Path, threading.Event] = {}


def loop_file(device: Path) -> tuple[int, int] | None:
    """The file or block device that a loop device has open: its :func:`.processes.identity`.

    The name in ``loop/backing_file`` in /sys is no proof: the kernel shows " (deleted)" there once
    another file has been renamed over the file, and keeps that when the file has its name again.

    The kernel asks the file's server. One that has not answered is not waited for again.

    :returns: ``None``: there is no such device node, or it is no loop device with a file.
    :raises TimeoutError: the file's server does not answer.
    """
    if (asked := _unanswered.get(device)) is None or asked.is_set():
        asked = threading.Event()
        if found := answer_within(partial(_ask, device, asked)):
            _unanswered.pop(device, None)
            return found[0]
        _unanswered[device] = asked  # only now: another thread may ask at the same time
    raise TimeoutError(errno.ETIMEDOUT, "no answer from the file's server", str(device))


def _ask(device: Path, answered: threading.Event) -> tuple[tuple[int, int] | None]:
    info = bytearray(_LOOP_INFO64_SIZE)
    try:
        fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _LOOP_GET_STATUS64, info)
        finally:
            os.close(fd)
    except OSError:
        return (None,)
    finally:
        answered.set()
    number, inode, block_device = struct.unpack_from("QQQ", info)
    return ((_decoded(block_device), 0) if block_device else (_decoded(number), inode),)


def _decoded(number: int) -> int:
    """A device number. (huge_encode_dev: 12 bits of the major, and the minor around them.)"""
    major, minor = (number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)
    return os.makedev(major, minor)
