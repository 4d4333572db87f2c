"""Processes: starting Python ones, waiting for others to end, and finding xl's monitor."""

import os
import select
import signal
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.text import readable


def python(module: str, *arguments: str) -> list[str]:
    """The command for a module of ours: the same Python, nothing imported from its directory."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> Mapping[str, str]:
    """Its environment: it imports what we import, from where we import it."""
    paths = [str(Path(p).absolute()) for p in sys.path if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def fresh_signals() -> None:
    """Signals as a program expects to find them, in a process that somebody else has started.

    A daemon blocks or ignores some, and what libxl starts has that from us: a QEMU that does not
    hear of SIGHUP does not end when its domain is destroyed.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python's own
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def how_ended(status: int | None) -> str:
    """The end of a process, from its status as subprocess has it; ``None``: nobody knows."""
    if status is None:
        return "ended, how is not known"
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


class Process:
    """A process by its pidfd, which stays with it whatever becomes of its number.

    ``None`` or the number of a process that has ended stands for one that has ended.
    """

    def __init__(self, pid: int | None) -> None:
        try:
            self._fd = os.pidfd_open(pid) if pid else -1
        except ProcessLookupError:
            self._fd = -1

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """What becomes readable at its end; -1 if it has ended."""
        return self._fd

    def ended(self, *, within_s: float | None = None) -> bool:
        """Wait for its end; false if it has not come after so many seconds."""
        if self._fd < 0:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(None if within_s is None else within_s * 1000))

    def status(self) -> int | None:
        """The status, as subprocess has it, of a child of ours that has ended; it is reaped.

        ``None`` if that has been done already, be it by the kernel: whose process this is may reap
        every child that it has, or ignore SIGCHLD.
        """
        try:
            found = os.waitid(os.P_PIDFD, self._fd, os.WEXITED) if self._fd >= 0 else None
        except ChildProcessError:
            found = None
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        if self._fd >= 0:
            try:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def close(self) -> None:
        """Let go of it. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def holders(path: Path) -> list[int]:
    """The processes that have a file open, by whatever name; this one does not count.

    Those that this process may not look into are not found: root sees all. Takes some 10 ms.

    :raises OSError: there is no such file.
    """
    wanted = _identity(path.stat())
    processes = [p for p in _listed(paths.PROC) if p.name.isdigit()]
    return [int(p.name) for p in processes if int(p.name) != os.getpid() and _has_open(p, wanted)]


def process_name(pid: int) -> str:
    """A process's name, as ``ps`` has it; "?" if it has gone."""
    try:
        return " ".join(readable((paths.PROC / f"{pid}/comm").read_bytes()).split())
    except OSError:
        return "?"


def process_text(pid: int) -> str:
    """A process as messages name it."""
    return f"{process_name(pid)} (pid {pid})"


def _has_open(process: Path, wanted: tuple[int, int]) -> bool:
    """Threads share what is open, but the first one may have ended before the others."""
    for thread in _listed(process / "task"):
        if links := _listed(thread / "fd"):
            return any(_leads_to(link, wanted) for link in links)
    return False


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []  # the process has gone, or is not ours to see


def _leads_to(link: Path, wanted: tuple[int, int]) -> bool:
    try:
        return _identity(link.stat()) == wanted
    except OSError:
        return False  # closed meanwhile, or on a server that has gone: not what we look for


def _identity(found: os.stat_result) -> tuple[int, int]:
    """What two names of the same file, or two nodes of the same block device, have in common."""
    if stat.S_ISBLK(found.st_mode):
        return (found.st_rdev, 0)  # no file has inode 0
    return (found.st_dev, found.st_ino)
