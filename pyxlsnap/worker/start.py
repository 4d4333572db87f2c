"""Starts a worker process: a new Python, or a copy of this process if this process is ours."""

import logging
import os
import socket
import subprocess
import sys
import traceback
from typing import IO

from pyxlsnap import paths
from pyxlsnap.linux.processes import environment, forget_handlers, python

_may_fork = False


def allow_fork() -> None:
    """Start workers as copies of this process from now on, as long as it has one thread.

    For the command line only: its process has no state and no descriptors that a worker must not
    have, and a copy does not load Python again.
    """
    global _may_fork
    _may_fork = True


def start_worker(connection: socket.socket, stderr: IO[bytes]) -> int:
    """Start a worker process in a session of its own; return its pid.

    :param connection: becomes its standard input.
    :raises OSError: the process could not be started.
    """
    if _may_fork and len(list((paths.PROC / "self/task").iterdir())) == 1:
        return _fork(connection, stderr)
    started = subprocess.Popen(
        python("pyxlsnap.worker"),
        stdin=connection.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
        cwd="/",
        env=environment(),
    )
    started.returncode = 0  # the caller of this function waits, not subprocess
    return started.pid


def _fork(connection: socket.socket, stderr: IO[bytes]) -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # the copy would write the same text again
    if pid := os.fork():
        return pid
    status = 1
    try:
        _become_worker(connection.fileno(), stderr.fileno())
        from pyxlsnap.worker.server import main  # not in the caller: it loads libxl

        main()
        status = 0
    except SystemExit:  # the end of the worker below the supervisor
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Nothing of the caller's may run here: no exit handlers, no "finally" of its functions.
        sys.stderr.flush()
        os._exit(status)


def _become_worker(connection: int, stderr: int) -> None:
    """Drop what the worker must not have from the caller."""
    os.setsid()
    forget_handlers()
    os.dup2(connection, 0)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(stderr, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.update(environment())
    sys.path = [entry for entry in sys.path if entry]
    os.chdir("/")
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("pyxlsnap.libxl").setLevel(logging.NOTSET)
