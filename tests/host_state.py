"""What a process has that a library in it might change, or leave behind."""

import os
import resource
import signal
from pathlib import Path


def host_state() -> dict[str, object]:
    """This process as it is now; equal to what it was, nothing has changed."""
    return {
        "handlers": {int(n): str(signal.getsignal(n)) for n in sorted(signal.valid_signals())},
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        "descriptors": descriptors(),
        "threads": len(os.listdir("/proc/self/task")),  # noqa: PTH208
        "children": children(),
        "directory": os.getcwd(),  # noqa: PTH109
        "umask": Path("/proc/self/status").read_text().split("Umask:")[1].split()[0],
        "environment": dict(os.environ),
        "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
    }


def changed(before: dict[str, object], after: dict[str, object]) -> list[str]:
    return sorted(key for key in before if before[key] != after[key])


def descriptors() -> dict[int, str]:
    """What is open, by number."""
    found = {}
    for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
        except OSError:
            pass  # what the listing itself needed
    return found


def children() -> list[int]:
    """The children, and those that wait to be reaped."""
    return [pid for pid in children_of(os.getpid()) if not _reaped(pid)]


def children_of(pid: int) -> list[int]:
    """The children of a process. A thread that ends meanwhile gives its own to another thread."""
    while True:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        try:
            return [
                int(child) for task in tasks for child in (task / "children").read_text().split()
            ]
        except (FileNotFoundError, ProcessLookupError):
            if not Path(f"/proc/{pid}").exists():
                raise


def _reaped(pid: int) -> bool:
    """Whether the kernel has reaped a child by itself, which it lists for a moment longer (X)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "X"


def inherited_since(before: dict[str, object]) -> list[str]:
    """Descriptors opened since that the host's programs would get."""
    old = before["descriptors"]
    assert isinstance(old, dict)
    new = {fd: what for fd, what in descriptors().items() if fd not in old}
    return [what for fd, what in new.items() if os.get_inheritable(fd)]
