"""Processes: starting Python ones, waiting for others to end, and finding xl's monitor."""

import os
import select
import sys
from collections.abc import Mapping
from pathlib import Path

from pyxlsnap.files import holders, process_name

XEN_LOGS = Path("/var/log/xen")


def python(module: str, *arguments: str) -> list[str]:
    """The command for a module of ours: the same Python, nothing imported from its directory."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> Mapping[str, str]:
    """Its environment: it imports what we import, from where we import it."""
    paths = [str(Path(p).absolute()) for p in sys.path if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def how_ended(status: int) -> str:
    """The end of a process, from its status as subprocess has it."""
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
        if self._fd >= 0:
            os.close(self._fd)

    def fileno(self) -> int:
        """What becomes readable at its end; -1 if it has ended."""
        return self._fd

    def ended(self, *, within_s: float) -> bool:
        """Wait for its end; false if it has not come after so many seconds."""
        if self._fd < 0:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(within_s * 1000))


def xl_monitor(name: str) -> int | None:
    """The process with which xl watches a domain: the one that writes ``xl-<name>.log``.

    ``None`` if there is none, or if the domain was renamed since it was started or migrated here.
    """
    for log in (f"xl-{name}.log", f"xl-{name}--incoming.log"):
        try:
            writers = holders(XEN_LOGS / log)
        except OSError:
            continue
        if found := [pid for pid in writers if process_name(pid) == "xl"]:
            return found[0]
    return None
