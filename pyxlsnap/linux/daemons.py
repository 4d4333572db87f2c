"""Whether a daemon runs, from the names of the processes."""

import os

from pyxlsnap import paths

#: the namespace of the machine's own pids: the kernel has given it this number since it has any
_ALL_PIDS = "pid:[4026531836]"
#: the pid that a daemon was found to have
_found: dict[str, int] = {}


def may_run(name: str) -> bool:
    """Whether a process may run with this name, or with the name in its command line.

    True, too, if this process cannot see all processes.
    """
    proc = str(paths.PROC)
    if name in _found and name in _read(f"{proc}/{_found[name]}/comm"):
        return True
    try:
        if os.readlink(f"{proc}/self/ns/pid") != _ALL_PIDS:  # noqa: PTH115
            return True
        pids = [pid for pid in os.listdir(proc) if pid.isdigit()]  # noqa: PTH208
        for file in ("comm", "cmdline"):  # (another program may start it, valgrind for example)
            for pid in pids:
                if name in _read(f"{proc}/{pid}/{file}"):
                    _found[name] = int(pid)
                    return True
    except PermissionError:
        return True
    return False


def _read(file: str) -> str:
    """The text; "" if the process has ended."""
    try:
        with open(file, "rb") as opened:  # (a path takes longer)
            return opened.read().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
