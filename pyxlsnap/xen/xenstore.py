"""xenstore: what libxl does not report, watches, and a request withdrawn."""

import errno
import os
import select
import threading
from collections.abc import Iterable

from pyxlsnap.errors import XenError
from pyxlsnap.xen.ffi import C, CData, c_string, ffi, take_string, text

_LOOK_MS = 60_000
#: a node that nobody changes
_STAYS = "domid"


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


def _watch(xs: CData, path: str, token: str = "") -> None:
    """:raises XenError: the path cannot be watched."""
    if not C.xs_watch(xs, c_string(path), c_string(token)):
        error = os.strerror(ffi.errno)
        raise XenError(f"cannot watch xenstore: {error}", operation="xs_watch")


def _take_reports(xs: CData) -> bool:
    """Take the reports of watches that have come; whether there were any.

    :raises XenError: the connection to xenstored is lost.
    """
    some = False
    while (found := C.xs_check_watch(xs)) != ffi.NULL:
        C.free(found)
        some = True
    if ffi.errno != errno.EAGAIN:
        raise _lost("xs_check_watch")
    return some


def _lost(operation: str) -> XenError:
    error = os.strerror(ffi.errno)
    what = f"the connection to xenstore is lost: {error}: check that xenstored runs"
    return XenError(what, operation=operation)


def _cannot_write(operation: str) -> XenError:
    return XenError(f"cannot write to xenstore: {os.strerror(ffi.errno)}", operation=operation)


class NodeWatch:
    """Notices changes of nodes, and of what is below them, from now on. For one thread at a time.

    For use as a context manager. libxenstore runs a thread for the watch until :meth:`close`, and
    keeps the reports that are not taken.

    :raises XenError: xenstore cannot be reached or watched.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._asked = 0
        self._xs = _open(0)
        try:
            for path in paths:
                _watch(self._xs, path)
            self.changed()  # (xenstored reports each watch once when it is set)
        except BaseException:
            self.close()
            raise

    def changed(self) -> bool:
        """Whether one has changed since the last call. This is a single request to xenstored.

        The request sets one more watch, and waits for the report of that: it comes after those of
        earlier changes. (Answers may overtake reports, where xenstore is in a domain of its own.)

        :raises XenError: the connection to xenstored is lost.
        """
        self._asked += 1
        _watch(self._xs, _STAYS, str(self._asked))
        changed = False
        while self._next_report() != str(self._asked):
            changed = True
        return changed

    def reported(self) -> bool:
        """Whether a change has been reported since the last call. This asks nobody.

        :raises XenError: the connection to xenstored is lost.
        """
        return _take_reports(self._xs)

    def _next_report(self) -> str:
        """Wait for a report; the token of its watch."""
        found = C.xs_read_watch(self._xs, ffi.new("unsigned int *"))
        if found == ffi.NULL:
            raise _lost("xs_read_watch")
        token = text(found[1])
        C.free(found)
        return token

    def close(self) -> None:
        """Idempotent."""
        if self._xs != ffi.NULL:
            C.xs_close(self._xs)
            self._xs = ffi.NULL

    def __enter__(self) -> "NodeWatch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
        try:
            _watch(self._xs, "@releaseDomain")
        except XenError:
            self.close()
            raise

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
        _take_reports(self._xs)

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
