"""xenstore: reading what libxl does not report, and watching for domains that shut down."""

import errno
import os
import select
import threading

from pyxlsnap.errors import XenError
from pyxlsnap.xen.ffi import C, CData, c_string, ffi, take_string, text

_LOOK_MS = 60_000


def _open(flags: int) -> CData:
    xs = C.xs_open(flags)
    if xs == ffi.NULL:
        raise XenError(
            f"cannot connect to xenstore: {os.strerror(ffi.errno)}: check that xenstored runs",
            operation="xs_open",
        )
    return xs


class Xenstore:
    """A read-only connection, opened at the first use. For one thread at a time."""

    def __init__(self) -> None:
        self._xs: CData = ffi.NULL

    def close(self) -> None:
        """Idempotent."""
        if self._xs != ffi.NULL:
            C.xs_close(self._xs)
            self._xs = ffi.NULL

    def read(self, path: str) -> str | None:
        """A node's value; ``None`` when there is no such node."""
        value = C.xs_read(self._connected(), 0, c_string(path), ffi.new("unsigned int *"))
        return None if value == ffi.NULL else take_string(ffi.cast("char *", value))

    def list(self, path: str) -> list[str]:
        """The names below a node; empty when there is no such node."""
        count = ffi.new("unsigned int *")
        names = C.xs_directory(self._connected(), 0, c_string(path), count)
        if names == ffi.NULL:
            return []
        try:
            return [text(names[i]) for i in range(count[0])]
        finally:
            C.free(names)

    def _connected(self) -> CData:
        if self._xs == ffi.NULL:
            self._xs = _open(C.XS_OPEN_READONLY)
        return self._xs


class DomainWatch:
    """Watches for domains that shut down or end (xenstore's ``@releaseDomain``).

    libxenstore runs a thread for the watch until :meth:`close`.

    :raises XenError: xenstore cannot be reached or watched.
    """

    def __init__(self) -> None:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        try:
            self._xs = _open(0)
        except XenError:
            os.close(self._wake)
            raise
        if not C.xs_watch(self._xs, c_string("@releaseDomain"), c_string("")):
            error = os.strerror(ffi.errno)
            self.close()
            raise XenError(f"cannot watch xenstore: {error}", operation="xs_watch")

    def wait(self) -> None:
        """Wait until a domain may have changed since the last call, or until :meth:`wake`.

        It also returns after a minute, because a broken connection is not always noticed.

        :raises XenError: the connection to xenstored is lost.
        """
        poll = select.poll()
        poll.register(C.xs_fileno(self._xs), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        poll.poll(_LOOK_MS)
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass
        while (found := C.xs_check_watch(self._xs)) != ffi.NULL:
            C.free(found)
        if ffi.errno != errno.EAGAIN:
            error = os.strerror(ffi.errno)
            raise XenError(
                f"the connection to xenstore is lost: {error}: check that xenstored runs",
                operation="xs_check_watch",
            )

    def wake(self) -> bool:
        """End the :meth:`wait` under way, or the next one. Any thread may call it. Always true."""
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
        return True

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            if self._wake < 0:
                return
            C.xs_close(self._xs)
            os.close(self._wake)
            self._wake = -1
