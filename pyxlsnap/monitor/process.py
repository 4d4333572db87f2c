"""The process that watches one domain: its turn, its log and its signals."""

import logging
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress

from pyxlsnap import paths
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.errors import PyxlsnapError
from pyxlsnap.linux.fork import fork, leave, name_process, own_streams
from pyxlsnap.linux.processes import fresh_signals, python
from pyxlsnap.monitor.actions import monitor
from pyxlsnap.monitor.launch import READY, is_to_begin
from pyxlsnap.monitor.turn import Turn
from pyxlsnap.xen.process import show_command
from pyxlsnap.xen.toolstack import Toolstack

log = logging.getLogger("pyxlsnap.monitor")


def watch_in_a_copy(uuid: str, writer: int, *, waits: bool = False) -> None:
    """Call :func:`watch` in a copy of this process, which does not load Python again.

    The copy is no child of this process, and has none of its descriptors but the streams. Call this
    only in a process with one thread and no libxl context.

    :raises OSError: no process could be made.
    """
    if not (pid := fork()):
        status = 1
        try:
            status = 0 if fork() else _watch_alone(uuid, writer, waits)
        except BaseException:
            traceback.print_exc()
        finally:
            leave(status)
    os.waitpid(pid, 0)


def _watch_alone(uuid: str, writer: int, waits: bool) -> int:
    """Drop what belongs to the process that was copied, and watch."""
    os.setsid()
    own_streams(keep=writer)
    name_process("xlsnap-monitor")
    show_command(python("pyxlsnap.monitor", uuid))
    return watch(uuid, writer, waits=waits)


def watch(uuid: str, writer: int, *, waits: bool = False) -> int:
    """Watch a domain until it no longer exists, or until SIGTERM; return the exit status.

    :param writer: a pipe. :data:`READY` is written to it when the watch has begun, else the error.
    :param waits: the domain is not there yet: the pipe, a socket then, will say when it is.
    """
    fresh_signals()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    cancel = Cancel()
    if not waits:  # else SIGTERM ends the process until it watches
        _listen_to_sigterm(cancel)

    def ready() -> None:
        nonlocal writer
        os.write(writer, READY)
        os.close(writer)
        writer = -1

    try:
        with Toolstack(operation="monitor", domain=uuid) as host:
            if waits:
                if not is_to_begin(writer):
                    return 0
                _listen_to_sigterm(cancel)
            name = host.find(uuid).name
            turn = Turn(uuid)
            _log_to(name)
            log.info("watching %s (%s)", name, uuid)
            monitor(host, uuid, on_ready=ready, cancel=cancel, turn=turn.take)
    except Cancelled:
        log.info("stopped by SIGTERM: no process watches %s now", uuid)
    except Exception as e:
        log.error("%s", e, exc_info=not isinstance(e, PyxlsnapError))
        if writer >= 0:
            with suppress(OSError):  # who has started the watch has ended
                os.write(writer, (str(e) or type(e).__name__).encode())
        return 1
    return 0


def _listen_to_sigterm(cancel: Cancel) -> None:
    signal.signal(
        signal.SIGTERM, lambda *_: threading.Thread(target=cancel.set, daemon=True).start()
    )


def _log_to(name: str) -> None:
    """From now on write all output, also that of C libraries, to a log file, as xl does."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    try:
        fd = os.open(paths.XEN_LOGS / f"pyxlsnap-{name.replace('/', '_')}.log", flags, 0o640)
    except OSError:  # for example a full disk: watch without a log
        fd = os.open(os.devnull, os.O_WRONLY)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("pyxlsnap.libxl").setLevel(logging.WARNING)
