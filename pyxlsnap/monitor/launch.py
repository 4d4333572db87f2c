"""Whether somebody acts on a domain's own reboot, power-off and crash."""

import logging
import subprocess

from pyxlsnap.errors import OperationFailed, PyxlsnapError
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.linux.processes import environment, python
from pyxlsnap.monitor.xl import xl_monitor
from pyxlsnap.request import StartMonitor
from pyxlsnap.text import command, readable

log = logging.getLogger(__name__)

#: what the process says when it watches
READY = b"ready"

_START_S = 60.0


def start_monitor(uuid: str) -> None:
    """Start a process of its own for that (``python -m pyxlsnap.monitor``); return when it watches.

    :raises OperationFailed: it could not; nobody watches the domain.
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
        raise OperationFailed(f"the watch of {uuid} did not begin: {e}", step="monitor") from e
    if run.stdout != READY:  # not by its status, which somebody else may have taken
        said = readable(run.stderr).strip().splitlines()
        raise OperationFailed(
            f"the watch of {uuid} did not begin: {said[-1] if said else 'its process ended'}",
            step="monitor",
        )


def loses_monitor(host: Host, guest: Guest) -> bool:
    """Before Xen 4.20 xl's process for a domain leaves when it sees a suspend (xen-lab.md, E7)."""
    return host.xen_version() < (4, 20) and xl_monitor(guest.name) is not None


def keep_watched(start: StartMonitor | None, name: str, uuid: str) -> list[str]:
    """Make somebody watch a domain; what the user must know if that fails."""
    why = ""
    if start:
        try:
            start(uuid)
            return []
        except PyxlsnapError as e:
            log.warning("%s", e)
            why = f" ({e})"
    return [
        f"nobody watches {name} now{why}: a reboot, power-off or crash of the guest is not acted "
        f"on; this does that: {command(python('pyxlsnap.monitor', uuid))}"
    ]
