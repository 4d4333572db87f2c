"""xenstore: what libxl does not report, a watch for domains that shut down, a request withdrawn."""

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


def empty_node(path: str, value: str) -> bool:
    """Make a node empty if it has this value, in a transaction of a connection of its own.

    :returns: whether it had the value.
    :raises XenError: xenstore cannot be reached or written to; the node is unchanged.
    """
    xs = _open(0)
    try:
        while True:
            transaction = C.xs_transaction_start(xs)
            if not transaction:
                raise _cannot_write("xs_transaction_start")
            found = C.xs_read(xs, transaction, c_string(path), ffi.new("unsigned int *"))
            if found == ffi.NULL or take_string(ffi.cast("char *", found)) != value:
                C.xs_transaction_end(xs, transaction, True)
                return False
            if not C.xs_write(xs, transaction, c_string(path), b"", 0):
                error = _cannot_write("xs_write")
                C.xs_transaction_end(xs, transaction, True)
                raise error
            if C.xs_transaction_end(xs, transaction, False):
                return True
            if ffi.errno != errno.EAGAIN:  # another writer came first
                raise _cannot_write("xs_transaction_end")
    finally:
        C.xs_close(xs)


def _cannot_write(operation: str) -> XenError:
    return XenError(f"cannot write to xenstore: {os.strerror(ffi.errno)}", operation=operation)


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
