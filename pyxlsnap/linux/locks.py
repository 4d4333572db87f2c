"""The lock of a domain (``/run/pyxlsnap/<uuid>.lock``).

It is an OFD lock: it belongs to the open file, not to the process, so that caller and worker hold
it together and it falls when both are gone.
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.errors import Busy, Refused
from pyxlsnap.linux.files import make_directory
from pyxlsnap.linux.waiting import until

#: A lock that goes from one process of ours to another falls in between, where somebody may take
#: it for a look. So long is waited for that.
RIVAL_S = 10.0


_POLL_S = 0.01


_FLOCK = struct.Struct("hhqqi4x")  # struct flock, 64-bit


# For the whole file.
_WRITE_LOCK = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_UNLOCK = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)


class DomainLock:
    """The right to work on a domain, held while :attr:`fd` (or a copy of it) is open.

    :param wait_s: for so long, wait for somebody else who has it.
    :param kind: another right than that, such as to watch it.
    :raises Busy: somebody else has it.
    """

    def __init__(
        self,
        uuid: str,
        *,
        domain: str,
        wait_s: float = 0.0,
        directory: Path | None = None,
        kind: str = "lock",
    ) -> None:
        directory = directory or paths.LOCKS
        make_directory(directory)
        path = directory / f"{uuid}.{kind}"
        try:
            self.fd = _open(path)
        except OSError as e:
            raise Refused(
                f"cannot open the lock {path}: {e.strerror}: see what is there, and move it away"
            ) from e
        if not until(self._take, within_s=wait_s, poll_s=_POLL_S):
            os.close(self.fd)
            raise Busy(
                f"another snapshot operation on {domain} is under way (lock {path}): wait for it",
                domain=domain,
            )

    def _take(self) -> bool:
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _WRITE_LOCK)
        except (BlockingIOError, PermissionError):  # fcntl(2): either, for a lock that is held
            return False
        return True

    def release(self) -> None:
        """The operation is over: give the lock back. Idempotent."""
        if self.fd >= 0:
            unlock(self.fd)
            os.close(self.fd)
            self.fd = -1


def unlock(fd: int) -> None:
    """Let a lock fall, whoever else has a copy of the descriptor (a child forked meanwhile)."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _UNLOCK)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on a file that other programs lock, too; wait until it is free.

    An OFD lock and a lock of fcntl(2)'s older kind, such as xl's, exclude each other.
    """
    fd = _open(path)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _WRITE_LOCK)
        yield
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
