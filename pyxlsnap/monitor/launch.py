"""Starting the process that acts on the reboot, power-off and crash of a guest."""

import logging
import os
import select
import subprocess
import time
from typing import IO

from pyxlsnap.errors import OperationFailed, PyxlsnapError
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.linux.processes import environment, python
from pyxlsnap.monitor.xl import about_foreground, xl_monitor
from pyxlsnap.request import StartMonitor
from pyxlsnap.text import command, readable

log = logging.getLogger(__name__)

#: written by the process when the watch has begun
READY = b"ready"

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


def begins(uuid: str, pipe: IO[bytes]) -> bool:
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


def _last_line(said: bytes) -> str:
    lines = readable(said).strip().splitlines()
    return lines[-1] if lines else "its process ended"


def not_started(uuid: str, why: str) -> OperationFailed:
    """Make (not raise) the error for a watch that was not started."""
    return OperationFailed(f"the watch of {uuid} did not start: {why}", step="monitor")


def loses_monitor(host: Host, guest: Guest) -> bool:
    """Whether xl's process for this domain ends at a suspend: before Xen 4.20 it does."""
    return host.xen_version() < (4, 20) and xl_monitor(guest.name) is not None


def notice_foreground(host: Host, guest: Guest) -> list[str]:
    """A warning, if xl runs in the foreground for this domain, and ends at a suspend."""
    if not loses_monitor(host, guest):
        return []
    return about_foreground(guest.name, when="when the guest is suspended")


def keep_watched(start: StartMonitor | None, name: str, uuid: str) -> list[str]:
    """Start a watch of a domain.

    :param start: starts the watch; ``None``: start no watch.
    :returns: warnings for the user, empty if the watch was started.
    """
    why = ""
    if start:
        try:
            start(uuid)
            return []
        except PyxlsnapError as e:
            log.warning("%s", e)
            why = f" ({e})"
    return [
        f"no process watches {name} now{why}: after a reboot, power-off or crash the guest stays "
        f"down; to start a watch, run: {command(python('pyxlsnap.monitor', uuid))}"
    ]
