"""The process that watches one domain, like xl's: ``python -m pyxlsnap.monitor UUID``.

The process continues after its parent has ended. It writes to
``/var/log/xen/pyxlsnap-<name>.log``, and ends when the domain no longer exists, or at SIGTERM.
"""

import logging
import os
import signal
import sys
import threading

from pyxlsnap import paths
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.errors import Busy, PyxlsnapError
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.linux.processes import fresh_signals
from pyxlsnap.monitor.actions import monitor
from pyxlsnap.monitor.launch import READY
from pyxlsnap.xen.toolstack import Toolstack

log = logging.getLogger("pyxlsnap.monitor")  # __name__ is "__main__" here

#: seconds to wait for the watch of another process to end
_TURN_S = 10.0


def main() -> int:
    """Start the watch in a child in the background; exit with 0 when the watch has begun."""
    (uuid,) = sys.argv[1:]
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read()
        if said == READY:
            os.write(1, READY)  # the parent may not get the status
            return 0
        os.write(2, said + b"\n")
        return 1
    os.close(reader)
    return _watch(uuid, writer)


def _watch(uuid: str, writer: int) -> int:
    fresh_signals()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    cancel = Cancel()
    signal.signal(
        signal.SIGTERM, lambda *_: threading.Thread(target=cancel.set, daemon=True).start()
    )

    def ready() -> None:
        nonlocal writer
        os.write(writer, READY)
        os.close(writer)
        writer = -1

    try:
        with Toolstack(operation="monitor", domain=uuid) as host:
            name = host.find(uuid).name
            if not _take_turn(uuid):
                ready()  # another process of pyxlsnap watches the domain
                return 0
            _log_to(name)
            log.info("watching %s (%s)", name, uuid)
            monitor(host, uuid, on_ready=ready, cancel=cancel)
    except Cancelled:
        log.info("stopped by SIGTERM: no process watches %s now", uuid)
    except Exception as e:
        log.error("%s", e, exc_info=not isinstance(e, PyxlsnapError))
        if writer >= 0:
            os.write(writer, (str(e) or type(e).__name__).encode())
        return 1
    return 0


def _take_turn(uuid: str) -> bool:
    """Take the watch of a domain; false if another process of pyxlsnap keeps it.

    A process whose domain was destroyed ends soon, so wait for a short time.
    """
    try:
        DomainLock(uuid, domain=uuid, kind="watch", wait_s=_TURN_S)
    except Busy:
        return False
    return True  # the lock is released when the process ends


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


if __name__ == "__main__":
    sys.exit(main())
