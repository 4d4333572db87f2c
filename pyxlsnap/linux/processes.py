"""Processes: start a Python process, wait for the end of a process, find the holders of a file."""

import math
import os
import re
import select
import signal
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pyxlsnap import paths
from pyxlsnap.dataclass import dataclass
from pyxlsnap.linux.stalled import Mounts, local_mounts, mount_of, served_mounts, stat_within
from pyxlsnap.text import readable

#: SIGKILL in a set of signals
_KILL = 1 << signal.SIGKILL - 1
_FLAGS = re.compile(r"^flags:\s*([0-7]+)$", re.MULTILINE)
_MOUNT = re.compile(r"^mnt_id:\s*([0-9]+)$", re.MULTILINE)


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of pyxlsnap. It imports nothing from the current directory."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> Mapping[str, str]:
    """The environment for :func:`python`: the same import path as this process."""
    imported_from = [str(Path(p).absolute()) for p in sys.path if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(imported_from)}


def fresh_signals() -> None:
    """Reset the signals of this process: none is blocked, and none ignored except by Python.

    A daemon that starts this process may block or ignore signals. The children of libxl inherit
    this from us: a QEMU that ignores SIGHUP does not end when its domain is destroyed.
    """
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python ignores these
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def how_ended(status: int | None) -> str:
    """How a process ended, as text.

    :param status: the status in the form of :mod:`subprocess`; ``None`` if it is unknown.
    """
    if status is None:
        return "ended with an unknown status"
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def reap(pid: int) -> None:
    """Wait for the end of a child; the host program may have reaped the child already."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass


class Process:
    """A process, identified by its pidfd: a pid can be used again, a pidfd cannot.

    :param pid: the pid. With ``None``, or a pid that no process has, the object stands for a
        process that has ended.
    :param pidfd: a pidfd, in the place of a pid; the object closes it.
    """

    def __init__(self, pid: int | None, *, pidfd: int = -1) -> None:
        try:
            self._fd = os.pidfd_open(pid) if pid else pidfd
        except ProcessLookupError:
            self._fd = -1

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """A descriptor that becomes readable when the process ends; -1 if there is no process."""
        return self._fd

    def ended(self, *, within_s: float | None = None) -> bool:
        """Wait for the end of the process.

        :param within_s: seconds to wait at most; ``None``: without limit.
        :returns: whether the process has ended.
        """
        if self._fd < 0:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(None if within_s is None else within_s * 1000))

    def status(self) -> int | None:
        """Reap a child that has ended, and return its status in the form of :mod:`subprocess`.

        ``None`` if the child was reaped already: the host program may reap all its children, or
        ignore SIGCHLD, and then the kernel reaps them.
        """
        try:
            found = os.waitid(os.P_PIDFD, self._fd, os.WEXITED) if self._fd >= 0 else None
        except ChildProcessError:
            found = None
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def kill(self) -> None:
        """Kill the process, unless it has ended."""
        if self._fd >= 0:
            try:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def close(self) -> None:
        """Close the pidfd. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_killed(pid: int) -> bool:
    """Whether a process was killed, and is only kept by threads that the kernel cannot end yet.

    Such a thread waits for storage that does not answer. It does nothing else any more.
    """
    tasks = paths.PROC / f"{pid}/task"
    threads = _listed(str(tasks))
    return bool(threads) and all(_is_killed(tasks / thread / "status") for thread in threads)


def _is_killed(status: Path) -> bool:
    try:
        said = dict(line.split(":", 1) for line in status.read_text(errors="replace").splitlines())
    except OSError:
        return True  # it has ended
    return said["State"].split()[0] in "ZX" or bool(int(said["SigPnd"], 16) & _KILL)


def holders(path: Path) -> list[int]:
    """The pids of the other processes that have a file open, under any name.

    Processes that this process may not inspect are missing; root sees all. Takes about 10 ms. What
    they have open on another server, which may not answer, is not looked at.

    :raises OSError: the file does not exist, or its server does not answer.
    """
    wanted, proc = stat_within(path), str(paths.PROC)
    pids = [int(name) for name in _listed(proc) if name.isdigit()]
    look = _Look(identity(wanted), wanted.st_dev)
    return [pid for pid in pids if pid != os.getpid() and look.has_open(f"{proc}/{pid}")]


def identity(found: os.stat_result) -> tuple[int, int]:
    """A value that is equal for two names of one file, and for two nodes of one block device."""
    if stat.S_ISBLK(found.st_mode):
        return (found.st_rdev, 0)  # no file has inode 0
    return (found.st_dev, found.st_ino)


class Opened(NamedTuple):
    """How a process has a file open."""

    #: ``os.O_RDONLY`` or ``os.O_RDWR``
    mode: int
    #: one of its descriptors for the file
    number: int


def open_files(pid: int) -> dict[tuple[int, int], Opened]:
    """The files that a process has open, by :func:`identity`.

    Empty if the process has ended.
    """
    found: dict[tuple[int, int], Opened] = {}
    for file in _opened_by(pid):
        opened = Opened(os.O_RDWR if file.writable else os.O_RDONLY, file.number)
        found[file.key] = max(opened, found.get(file.key, opened))
    return found


def leads_to(pid: int, number: int, wanted: tuple[int, int]) -> bool:
    """Whether a descriptor of a process leads to a file.

    :param wanted: see :func:`identity`.
    """
    return _leads_to(f"{paths.PROC}/{pid}/fd/{number}", wanted)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that a process has open."""

    #: the descriptor
    number: int
    #: the name under which it was opened, as far as that is still its name; ends in " (deleted)"
    #: if it is not
    name: str
    #: it has some name
    has_name: bool
    writable: bool
    #: see :func:`identity`
    key: tuple[int, int]
    #: a regular file
    is_file: bool


def links_of(pid: int) -> list[OpenFile]:
    """What a process has open that has, or had, a path.

    Empty if the process has ended.
    """
    return [file for file in _opened_by(pid) if file.name.startswith("/")]


def _opened_by(pid: int) -> Iterator[OpenFile]:
    """All that a process has open."""
    process = f"{paths.PROC}/{pid}"
    local = local_mounts(process)
    for number in _listed(f"{process}/fd"):
        link = f"{process}/fd/{number}"
        try:
            name = os.readlink(link)  # noqa: PTH115
            with open(f"{process}/fdinfo/{number}", errors="replace") as file:
                info = file.read()
            # Only a file on a server can keep us waiting. (A thread for each takes long.)
            on = _MOUNT.search(info)
            near = not name.startswith("/") or (on and int(on[1]) in local)
            there = os.stat(link) if near else stat_within(link)  # noqa: PTH116
        except OSError:
            continue  # closed meanwhile
        writable = _flags(info) & os.O_ACCMODE != os.O_RDONLY
        is_file, has_name = stat.S_ISREG(there.st_mode), there.st_nlink > 0
        yield OpenFile(int(number), name, has_name, writable, identity(there), is_file)


def _flags(info: str) -> int:
    """The flags with which a file is open, from its ``fdinfo``; 0 if it does not tell."""
    found = _FLAGS.search(info)  # (that of an io_uring has lines of other forms)
    return int(found[1], 8) if found else 0


def started(pid: int) -> float:
    """When a process was started, seconds since the epoch; infinite if that is not known."""
    try:
        fields = (paths.PROC / f"{pid}/stat").read_bytes().rpartition(b")")[2].split()
        clock = (paths.PROC / "stat").read_bytes().partition(b"\nbtime ")[2].split()
        return int(clock[0]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return math.inf


def process_name(pid: int) -> str:
    """The name of a process, as ``ps`` shows it; "?" if the process has ended."""
    try:
        return " ".join(readable((paths.PROC / f"{pid}/comm").read_bytes()).split())
    except OSError:
        return "?"


def running(program: str, word: str) -> list[int]:
    """The pids of the processes that run a program and have this word in their command line.

    :param program: its name, as the command line has it.
    """
    pids = [int(name) for name in _listed(str(paths.PROC)) if name.isdigit()]
    return [pid for pid in pids if _runs(pid, os.fsencode(program), os.fsencode(word))]


def _runs(pid: int, program: bytes, word: bytes) -> bool:
    try:
        first, *words = (paths.PROC / f"{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False  # it has ended
    return first.rpartition(b"/")[2] == program and word in words


def process_text(pid: int) -> str:
    """A process's name and pid, for a message."""
    return f"{process_name(pid)} (pid {pid})"


# (Strings and not paths: there are thousands of descriptors, and paths take twice as long.)


class _Look:
    """A look at what processes have open, for one file."""

    def __init__(self, wanted: tuple[int, int], device: int) -> None:
        self._wanted = wanted
        self._device = device
        #: by mount namespace
        self._mounts: dict[str, Mounts] = {}

    def has_open(self, process: str) -> bool:
        """Whether any thread has the file open. The main one may have ended before the others."""
        for thread in _listed(f"{process}/task"):
            here = f"{process}/task/{thread}"
            if links := _listed(f"{here}/fd"):
                served = self._served(here)
                near = (n for n in links if not served or self._is_near(served, here, n))
                return any(_leads_to(f"{here}/fd/{link}", self._wanted) for link in near)
        return False

    def _is_near(self, served: Mounts, process: str, link: str) -> bool:
        """Whether a file is local, or on the server of the file that is looked for."""
        return served.get(mount_of(process, link), self._device) == self._device

    def _served(self, process: str) -> Mounts:
        try:
            namespace = os.readlink(f"{process}/ns/mnt")  # noqa: PTH115
        except OSError:
            return {}
        if namespace not in self._mounts:
            self._mounts[namespace] = served_mounts(process)
        return self._mounts[namespace]


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []  # the process has ended, or we may not inspect it


def _leads_to(link: str, wanted: tuple[int, int]) -> bool:
    try:
        return identity(os.stat(link)) == wanted  # noqa: PTH116
    except OSError:
        return False  # closed meanwhile, or on an unreachable server: not the wanted file
