"""Reading a file ahead, so that a later reader finds it in memory."""

import errno
import os
import re
from collections.abc import Callable, Iterator

from pyxlsnap import paths

_PIECE = 4 << 20
#: the part of the free memory that may be used for it
_SHARE = 4
_AVAILABLE = re.compile(rb"^MemAvailable:\s*(\d+) kB", re.MULTILINE)


def read_ahead(fd: int, check: Callable[[], None]) -> int:
    """Read a file into the page cache, from its beginning, as far as there is memory for it.

    That is at most a quarter of the memory that the kernel calls available. Holes are not read.

    :param check: called often; an exception from it ends the reading.
    :returns: how many bytes were read.
    :raises OSError: the file cannot be read.
    """
    left, read = _available() // _SHARE, 0
    # Nothing is copied on this way: for a file that is in the page cache it takes next to no time.
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for start, end in _data(fd):
            while start < end and left > 0:
                check()
                count = os.sendfile(nowhere, fd, start, min(_PIECE, end - start, left))
                if not count:
                    return read
                start, left, read = start + count, left - count, read + count
    finally:
        os.close(nowhere)
    return read


def _data(fd: int) -> Iterator[tuple[int, int]]:
    """Start and end of each part of a file that is no hole."""
    at = 0
    while True:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:  # there is no more
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at


def _available() -> int:
    """The memory that is available without swapping, bytes; 0 if the kernel does not tell."""
    try:
        found = _AVAILABLE.search((paths.PROC / "meminfo").read_bytes())
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0
