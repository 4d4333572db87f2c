"""The lock of a domain (``/run/pyxlsnap/<uuid>.lock``).

The lock is an OFD lock: it belongs to the open file, not to a process. Caller and worker share the
open file, so the kernel releases the lock when both processes have ended.
"""

import fcntl
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.errors import Busy, Refused
from pyxlsnap.linux.files import make_directory
from pyxlsnap.linux.waiting import until

#: Seconds to wait for a process that takes the lock only for a look. Such a process may take the
#: lock while it passes from one process of pyxlsnap to another.
RIVAL_S = 10.0

_POLL_S = 0.01
_FILE_POLL_S = 0.1

_FLOCK = struct.Struct("hhqqi4x")  # struct flock, 64-bit
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


def _flock(kind: int, start: int = 0, length: int = 0) -> bytes:
    """A lock on a part of a file; by default on the whole file."""
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


_WRITE_LOCK, _UNLOCK = _flock(fcntl.F_WRLCK), _flock(fcntl.F_UNLCK)
_WHOLE = (0, 0)
#: the part of an operation's lock that is the right to act on a guest that has shut down by itself:
#: an operation can leave it to the domain's monitor (:meth:`DomainLock.open_to_monitor`)
MONITOR = (1, 1)
#: a part of each operation's lock that a monitor never takes: who has this part can wait until the
#: monitor has acted (:meth:`DomainLock.close_to_monitor`), and no operation begins meanwhile
OPERATION = (0, 1)


class DomainLock:
    """A lock on a domain, held while :attr:`fd` or a copy of this descriptor is open.

    :param wait_s: seconds to wait for another process that holds the lock.
    :param kind: which lock of the domain: ``lock`` is the right to run an operation, ``watch`` the
        right to watch the domain. It is the suffix of the file's name.
    :param part: the first byte to lock, and how many; by default all of the file.
    :raises Busy: another process holds the lock.
    :raises Refused: the lock's file or directory cannot be created or opened.
    """

    #: the descriptor that holds the lock; -1 after :meth:`release`
    fd: int
    _kind = fcntl.F_WRLCK

    def __init__(
        self,
        uuid: str,
        *,
        domain: str,
        wait_s: float = 0.0,
        directory: Path | None = None,
        kind: str = "lock",
        part: tuple[int, int] = _WHOLE,
    ) -> None:
        self._lock = _flock(self._kind, *part)
        directory = directory or paths.LOCKS
        make_directory(directory)
        path = directory / f"{uuid}.{kind}"
        self.fd = _open(path)
        if not until(self._take, within_s=wait_s, poll_s=_POLL_S):
            os.close(self.fd)
            raise Busy(
                f"another snapshot operation on {domain} is under way (lock {path}): wait until "
                f"that operation has ended",
                domain=domain,
            )

    def _take(self) -> bool:
        return _take(self.fd, self._lock)

    def open_to_monitor(self) -> None:
        """Let the domain's monitor act while this operation goes on. Idempotent."""
        if self.fd >= 0:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, *MONITOR))

    def close_to_monitor(self) -> bool:
        """Keep the domain's monitor from acting; false if the monitor is acting now."""
        return _take(self.fd, _flock(fcntl.F_WRLCK, *MONITOR))

    def release(self) -> None:
        """Release the lock. Idempotent."""
        if self.fd >= 0:
            unlock(self.fd)
            os.close(self.fd)
            self.fd = -1


class SharedLock(DomainLock):
    """A lock that many can hold at a time, while nobody holds it alone (:class:`DomainLock`)."""

    _kind = fcntl.F_RDLCK


def _take(fd: int, lock: bytes) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except (BlockingIOError, PermissionError):  # fcntl(2): the lock is held
        return False
    return True


def unlock(fd: int) -> None:
    """Release a lock, also if another process (a child forked meanwhile) has the descriptor."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _UNLOCK)


def under_way() -> list[str]:
    """The uuids of the domains on which an operation is under way. Takes no lock.

    An operation that only begins may have no domain yet: then the names of the locks that it has.

    :raises OSError: a lock's file cannot be opened: this process is not root.
    """
    held = sorted(path.stem for path in paths.LOCKS.glob("*.lock") if _is_held(path))
    return [name for name in held if "." not in name] or held


def _is_held(path: Path) -> bool:
    try:
        fd = os.open(path, _FLAGS)
    except FileNotFoundError:
        return False
    try:
        asked = _flock(fcntl.F_WRLCK, *OPERATION)
        kind = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    finally:
        os.close(fd)
    return bool(kind != fcntl.F_UNLCK)


class FileLock:
    """A lock on a file that other programs lock, too; not taken yet.

    An OFD lock and a lock of fcntl(2)'s older kind, such as xl's, exclude each other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd >= 0

    def take(self, *, within_s: float, check: Callable[[], None] = lambda: None) -> bool:
        """Take the lock, unless it is held already.

        :param within_s: seconds to wait at most for another program that holds the lock.
        :param check: called before each attempt; an exception from it ends the wait.
        :returns: whether the lock is held now.
        :raises Refused: the file cannot be created or opened, or is somebody else's.
        """
        if self.held:
            return True
        fd = _open(self.path)

        def taken() -> bool:
            check()
            return _take(fd, _WRITE_LOCK)

        try:
            if until(taken, within_s=within_s, poll_s=_FILE_POLL_S):
                self._fd, fd = fd, -1
        finally:
            if fd >= 0:
                os.close(fd)
        return self.held

    def holder(self) -> int | None:
        """The pid of the process that holds the lock; ``None`` if none or if it is not known."""
        fd = _open(self.path)
        try:
            answer = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _WRITE_LOCK))
        finally:
            os.close(fd)
        kind, pid = answer[0], answer[4]
        return pid if kind != fcntl.F_UNLCK and pid > 0 else None  # (an OFD lock has no pid)

    def release(self) -> None:
        """Release the lock. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            unlock(fd)
            os.close(fd)


_when_opened: list[Callable[[int], None]] = []


def when_opened(do: Callable[[int], None]) -> None:
    """Call ``do`` with the descriptor of every lock that this process opens from now on.

    For a library that makes children which never call exec: such a child must close the descriptor,
    or the lock stays as long as the child lives.
    """
    _when_opened.append(do)


def _open(path: Path) -> int:
    """Open the file of a lock, and make it if necessary.

    Everybody may write in /run/lock. There another user may have made the file, and could hold the
    lock for ever. (The kernel does not open such a file with O_CREAT: fs.protected_regular.)

    :raises Refused: this cannot be done, or the file is somebody else's.
    """
    try:
        try:
            fd = os.open(path, _FLAGS)
        except FileNotFoundError:
            fd = _make(path)
    except OSError as e:
        raise _useless(path, e.strerror or str(e)) from e
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and found.st_uid in (0, os.geteuid()):
        for do in _when_opened:
            do(fd)
        return fd
    os.close(fd)
    regular = stat.S_ISREG(found.st_mode)
    why = f"the file belongs to the user {found.st_uid}" if regular else "this is no regular file"
    raise _useless(path, why)


def _make(path: Path) -> int:
    try:
        return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:  # another operation has just made it
        return os.open(path, _FLAGS)


def _useless(path: Path, why: str) -> Refused:
    return Refused(f"cannot open the lock {path}: {why}: see what is there, and move it away")
