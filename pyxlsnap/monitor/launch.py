"""Starting the process that acts on the reboot, power-off and crash of a guest."""

import logging
import os
import select
import socket
import subprocess
import time
from contextlib import suppress
from typing import Protocol

from pyxlsnap.errors import OperationFailed, PyxlsnapError
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.linux.processes import environment, python
from pyxlsnap.monitor.xl import Xl, xl_process
from pyxlsnap.request import Callbacks, ComingWatch, StartMonitor
from pyxlsnap.text import command, readable

log = logging.getLogger(__name__)

#: written by the process when the watch has begun
READY = b"ready"
#: written to a process that waits, when its domain is there
BEGIN = b"begin"

#: seconds that the process may take to start
_START_S = 60.0
_MAX_TEXT = 4096


def start_monitor(uuid: str) -> None:
    """Start ``python -m pyxlsnap.monitor`` for a domain; return when the watch has begun.

    :raises OperationFailed: the watch could not be started; no process watches the domain.
    """
    try:
        run = subprocess.run(
            python("pyxlsnap.monitor", uuid),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment(),
            cwd="/",
            start_new_session=True,
            timeout=_START_S,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise not_started(uuid, str(e)) from e
    if run.stdout != READY:  # the status is not used: the host may have reaped the child
        raise not_started(uuid, _last_line(run.stderr))


class _FromHere(Protocol):
    """What can be read and polled."""

    def fileno(self) -> int: ...


def begins(uuid: str, pipe: _FromHere) -> bool:
    """Wait until a process that was started otherwise says on a pipe that its watch has begun.

    :returns: false if the process ended, or was not started, without a word.
    :raises OperationFailed: the watch has not begun in time, or never will.
    """
    said, end = b"", time.monotonic() + _START_S
    while (left := end - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
        if not (more := os.read(pipe.fileno(), _MAX_TEXT)):
            break
        said += more
    else:
        raise not_started(uuid, f"it has not begun within {_START_S:g} seconds")
    if said not in (READY, b""):
        raise not_started(uuid, _last_line(said))
    return said == READY


class WaitingProcess:
    """A process that waits to watch a domain; see :class:`pyxlsnap.request.ComingWatch`.

    :param connection: a socket. The process has the other end.
    """

    def __init__(self, uuid: str, connection: socket.socket) -> None:
        self._uuid = uuid
        self._connection = connection

    def begin(self) -> None:
        """Tell the process that its domain is there."""
        with suppress(OSError):  # it was killed: has_begun() finds out
            self._connection.sendall(BEGIN)

    def has_begun(self) -> bool:
        """Wait until the process watches the domain."""
        try:
            return begins(self._uuid, self._connection)
        except ConnectionError:
            return False

    def close(self) -> None:
        """Forget the process."""
        self._connection.close()


def is_to_begin(connection: int) -> bool:
    """In the process: wait until its domain is there; false if there will be none."""
    said = b""
    while not said.endswith(BEGIN):
        try:
            more = os.read(connection, _MAX_TEXT)
        except ConnectionError:
            return False
        if not more:
            return False
        said += more
    return True


def _last_line(said: bytes) -> str:
    lines = readable(said).strip().splitlines()
    return lines[-1] if lines else "its process ended"


def not_started(uuid: str, why: str) -> OperationFailed:
    """Make (not raise) the error for a watch that was not started."""
    return OperationFailed(f"the watch of {uuid} did not start: {why}", step="monitor")


def ending_monitor(host: Host, guest: Guest) -> Xl | None:
    """xl's process for this domain, if it ends at a suspend: before Xen 4.20 it does."""
    return xl_process(guest.name, guest.domid) if host.xen_version() < (4, 20) else None


def keep_watched(
    start: StartMonitor | None, name: str, uuid: str, coming: ComingWatch | None = None
) -> list[str]:
    """Start a watch of a domain.

    :param start: starts the watch; ``None``: start no watch.
    :param coming: a watch that was told to begin; ``None``: none.
    :returns: warnings for the user, empty if the watch was started.
    """
    why = ""
    if start:
        try:
            if not (coming and _has_begun(coming)):
                start(uuid)
            return []
        except PyxlsnapError as e:
            log.warning("%s", e)
            why = f" ({e})"
    return [
        f"no process watches {name} now{why}: after a reboot, power-off or crash the guest stays "
        f"down; to start a watch, run: {command(python('pyxlsnap.monitor', uuid))}"
    ]


def _has_begun(coming: ComingWatch) -> bool:
    """False if the process cannot watch the domain: another may be able to."""
    try:
        return coming.has_begun()
    except OperationFailed as e:
        log.info("%s", e)
        return False


class PreparedWatch:
    """The watch of a domain that is to be restored: its process waits for the domain. To be closed.

    :param callbacks: start the process, if one is to watch the domain.
    """

    def __init__(self, callbacks: Callbacks) -> None:
        self._callbacks = callbacks
        self._coming: ComingWatch | None = None

    def prepare(self, name: str, uuid: str) -> None:
        """Start the process. If it does not come to watch, :meth:`keep_watched` starts another."""
        prepare = self._callbacks.prepare_monitor
        if prepare is None or self._coming:
            return
        try:
            self._coming = prepare(uuid)
        except OSError as e:
            log.info("no process waits to watch %s: %s", name, e.strerror)

    def begin(self) -> None:
        """Have the process watch the domain, which is restored."""
        if self._coming:
            self._coming.begin()

    def keep_watched(self, name: str, uuid: str) -> list[str]:
        """Make sure that a process watches the domain, if that was asked for; returns warnings."""
        return keep_watched(self._callbacks.start_monitor, name, uuid, self._coming)

    def close(self) -> None:
        """Let the process end, if its watch has not begun. Idempotent."""
        if self._coming:
            self._coming.close()
            self._coming = None
