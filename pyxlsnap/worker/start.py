"""Starts a worker process: a new Python, or a copy of this process if this process is ours."""

import logging
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

from pyxlsnap import paths
from pyxlsnap.linux.fork import fork, leave, name_process, own_streams
from pyxlsnap.linux.processes import Process, environment, python

#: starts a worker process with its standard input and its standard error: returns the pid of a
#: child, or another process
Start = Callable[[socket.socket, IO[bytes]], int | Process]

_may_fork = False


@contextmanager
def fork_allowed(allowed: bool = True) -> Iterator[None]:
    """Start workers as copies of this process meanwhile, as long as it has one thread.

    For the command line only: its process has no state that a worker must not have, and a copy does
    not load Python again.
    """
    global _may_fork
    _may_fork = allowed
    try:
        yield
    finally:
        _may_fork = False


def start_worker(connection: socket.socket, stderr: IO[bytes]) -> int:
    """Start a worker process in a session of its own; return its pid.

    :param connection: becomes its standard input.
    :raises OSError: the process could not be started.
    """
    if _may_fork and len(list((paths.PROC / "self/task").iterdir())) == 1:
        return fork_worker(connection.fileno(), stderr.fileno())
    return start_python("pyxlsnap.worker", connection, stderr)


def start_python(module: str, connection: socket.socket, stderr: IO[bytes]) -> int:
    """Run a module of ours in a new Python, in a session of its own; return its pid.

    :param connection: becomes its standard input.
    :raises OSError: the process could not be started.
    """
    started = subprocess.Popen(
        python(module),
        stdin=connection.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
        cwd="/",
        env=environment(),
    )
    started.returncode = 0  # the caller of this function waits, not subprocess
    return started.pid


def fork_worker(connection: int, stderr: int) -> int:
    """Make a copy of this process a worker process, in a session of its own; return its pid.

    The process must have one thread, and no libxl context.

    :param connection, stderr: descriptors: its standard input and its standard error.
    :raises OSError: no process could be made.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it, or its disk is full
            stream.flush()  # the copy would write the same text again
    if pid := fork():
        return pid
    status: object = 1
    try:
        _become_worker(connection, stderr)
        from pyxlsnap.worker.server import main  # not in the caller: it loads libxl
        from pyxlsnap.xen.process import show_command

        show_command(python("pyxlsnap.worker"))
        main()
        status = 0
    except SystemExit as e:  # the end of the worker below the supervisor
        status = e.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        leave(status if isinstance(status, int) else 1)


def _become_worker(connection: int, stderr: int) -> None:
    """Drop what the worker must not have from the caller."""
    os.setsid()
    os.dup2(connection, 0)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(stderr, 2)
    own_streams(keep=-1)
    name_process("xlsnap-worker")  # not that of its caller: "killall" must not take both
    os.environ.update(environment())
    sys.path = [entry for entry in sys.path if entry]
    os.chdir("/")
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("pyxlsnap.libxl").setLevel(logging.NOTSET)
