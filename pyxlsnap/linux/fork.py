"""Copies of this process: what a copy must drop before it does work of its own."""

import os
import signal
import sys
from typing import NoReturn


def fork() -> int:
    """Fork like :func:`os.fork`. The copy handles no signal as this process does.

    Every signal is blocked in the copy: it calls
    :func:`pyxlsnap.linux.processes.fresh_signals` when it is ready for them.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = -1
    try:
        if not (pid := os.fork()):
            for number in signal.valid_signals():
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.SIG_DFL)
    finally:
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return pid


def leave(status: int) -> NoReturn:
    """End a copy of a process. Nothing of the original's runs: no exit handlers, no ``finally``."""
    try:
        sys.stderr.flush()
    finally:
        os._exit(status)


def own_streams(keep: int) -> None:
    """Close all descriptors of a copy but the standard streams and ``keep``; write errors to 2."""
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:  # noqa: PTH208
        if fd > 2 and fd != keep:
            try:
                os.close(fd)
            except OSError:
                pass  # that of the listing
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)


def name_process(name: str) -> None:
    """Give this process a name of its own, as ``ps`` and ``killall`` know it."""
    try:
        comm = os.open("/proc/self/comm", os.O_WRONLY)
    except OSError:
        return  # only people look at the name
    os.write(comm, name.encode())
    os.close(comm)
