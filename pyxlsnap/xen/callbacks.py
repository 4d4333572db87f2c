"""The Python end of ``include/bridge.h``: log lines and children of one libxl context.

The C callbacks write to pipes. A thread of this module drains the log pipe into ``logging`` (logger
``pyxlsnap.libxl``), watches the pidfds of libxl's children, and informs libxl when a child has
ended. So libxl needs no SIGCHLD handler in the process (libxl.md, section 5; xen-lab.md, E9).
"""

import errno
import logging
import os
import re
import select
import struct
import threading
from collections import deque
from collections.abc import Callable

from pyxlsnap.errors import XenUnavailable
from pyxlsnap.linux import locks
from pyxlsnap.results import Progress
from pyxlsnap.text import readable
from pyxlsnap.xen.ffi import C, CData, ffi

log = logging.getLogger("pyxlsnap.libxl")

_HEAD = struct.Struct("=IiiiIxxxxQQ")  # struct pyxlsnap_record
_PIDFD = struct.Struct("=i")
# logging's level for each level of xentoollog, NONE to CRITICAL
_LEVELS = (10, 10, 10, 10, 10, 10, 20, 30, 40, 50)
_XTL_DEBUG = 1
_XTL_WARN = 7
_KEPT_LINES = 50  # for the error of a call
_ITERATION = re.compile(r"Frames iteration (\d+)")
_PAGE = 4096  # bytes
_POLL_MS = 50  # used only if the kernel gave no pidfd
_private_lock = threading.Lock()


def _least() -> int:
    """The level below which nobody reads what libxl logs: it logs much, and reading takes long."""
    below = range(_XTL_DEBUG, _XTL_WARN)  # an error of ours tells the warnings
    return next((level for level in below if log.isEnabledFor(_LEVELS[level])), _XTL_WARN)


def close_in_children(fd: int) -> None:
    """Close a descriptor in every child that libxl forks, also in a child that never calls exec.

    :raises OSError: there are too many such descriptors, or this one is not open.
    """
    with _private_lock:
        done = C.pyxlsnap_close_in_children(fd)
    if not done:
        raise OSError(errno.EMFILE, "too many private descriptors")


def _close_lock_in_children(fd: int) -> None:
    try:
        close_in_children(fd)
    except OSError as e:
        log.warning("a lock may stay longer than this process: %s", e)


locks.when_opened(_close_lock_in_children)


class Bridge:
    """Logger, child watcher and disaster hook of one ``libxl_ctx``.

    :param operation: added to every log record as ``operation``, as is ``domain``.
    :raises XenUnavailable: no memory or no descriptors for the pipes.
    """

    def __init__(self, *, operation: str = "", domain: str = "") -> None:
        self._c = C.pyxlsnap_bridge_new(_least())
        if self._c == ffi.NULL:
            raise XenUnavailable(
                "cannot make pipes for libxl's messages: check the limit of open files (ulimit -n)"
            )
        self._extra = {"operation": operation, "domain": domain}
        self._ctx: CData = ffi.NULL
        self._ctx_lock = threading.Lock()
        self._reading = threading.Lock()
        self._partial = b""
        self._said: deque[str] = deque(maxlen=_KEPT_LINES)
        self._iteration = 0
        self.on_progress: Callable[[Progress], None] | None = None
        #: the message of libxl's disaster callback, if it was called
        self.disaster: str | None = None
        self._pidfds: set[int] = set()
        self._stop_r, self._stop_w = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._watch, name="pyxlsnap-libxl", daemon=True)

    @property
    def logger(self) -> CData:
        """The ``xentoollog_logger`` to open a context with."""
        return C.pyxlsnap_bridge_logger(self._c)

    def attach(self, ctx: CData) -> None:
        """Register the hooks with a context just opened, and start the thread."""
        C.pyxlsnap_bridge_attach(self._c, ctx)
        self._ctx = ctx
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and free everything. Only after ``libxl_ctx_free``. Idempotent."""
        if self._c == ffi.NULL:
            return
        os.close(self._stop_w)
        if self._thread.is_alive():
            self._thread.join()
        self.drain()
        if self._c.lost:
            log.warning("%d of libxl's messages were lost", self._c.lost, extra=self._extra)
        for fd in (*self._pidfds, self._stop_r):
            os.close(fd)
        C.pyxlsnap_bridge_free(self._c)
        self._c = ffi.NULL

    def detach(self) -> None:
        """Call libxl no more, because its context is about to be freed."""
        with self._ctx_lock:
            self._ctx = ffi.NULL

    def begin(self) -> None:
        """Forget the log lines of earlier calls: a new call begins."""
        self.drain()
        self._c.min_level = _least()
        self._said.clear()
        self._iteration = 0

    def said(self) -> tuple[str, ...]:
        """The warnings and errors that libxl has logged since :meth:`begin`."""
        self.drain()
        return tuple(self._said)

    def drain(self) -> None:
        """Read the records that are in the log pipe now. Any thread may; their order is kept."""
        with self._reading:
            while True:
                try:
                    block = os.read(self._c.log_fd, 65536)
                except BlockingIOError:
                    return
                self._partial += block
                self._split()

    def _split(self) -> None:
        while len(self._partial) >= _HEAD.size:
            size = _HEAD.unpack_from(self._partial)[0]
            if len(self._partial) < size:
                return
            record, self._partial = self._partial[:size], self._partial[size:]
            self._record(record)

    def _record(self, record: bytes) -> None:
        _, kind, level, errnoval, context, done, total = _HEAD.unpack_from(record)
        body = record[_HEAD.size :]
        where = readable(body[:context])
        what = readable(body[context:]).rstrip()
        if kind == C.PYXLSNAP_PROGRESS:
            self._progress(what, done, total)
            return
        line = f"{where}: {what}" if where else what
        if errnoval > 0:
            line += f": {os.strerror(errnoval)}"
        if kind == C.PYXLSNAP_DISASTER:
            self.disaster = line
        if level >= _XTL_WARN:
            self._said.append(line)
        log.log(_LEVELS[min(level, len(_LEVELS) - 1)], "%s", line, extra=self._extra)

    def _progress(self, what: str, done: int, total: int) -> None:
        """Report libxc's progress texts ("Frames iteration 2", "Domain now suspended")."""
        if iteration := _ITERATION.match(what):
            self._iteration = int(iteration[1])
        if self.on_progress is None:
            return
        phase = "memory" if what.startswith("Frames") else what.lower()
        done, total = done * _PAGE, total * _PAGE
        try:
            self.on_progress(Progress(phase, done, total, self._iteration))
        except Exception:  # libxl waits for this thread, so it must not end
            log.exception("the progress callback failed", extra=self._extra)

    def _watch(self) -> None:
        poll = select.poll()
        for fd in (self._stop_r, self._c.log_fd, self._c.child_fd):
            poll.register(fd, select.POLLIN)
        timeout: int | None = None
        while True:
            ready = {fd for fd, _ in poll.poll(timeout)}
            if self._stop_r in ready:
                return
            if self._c.log_fd in ready:
                self.drain()
            if self._c.child_fd in ready:
                for pidfd in _PIDFD.iter_unpack(os.read(self._c.child_fd, 4096)):
                    if pidfd[0] < 0:
                        timeout = _POLL_MS
                        continue
                    self._pidfds.add(pidfd[0])
                    poll.register(pidfd[0], select.POLLIN)
            ended = self._pidfds & ready
            for fd in ended:
                poll.unregister(fd)
                self._pidfds.discard(fd)
                os.close(fd)
            if ended or timeout is not None:
                self._child_ended()

    def _child_ended(self) -> None:
        # libxl reaps only its own children, by pid, and wakes the call that waits for them.
        with self._ctx_lock:
            if self._ctx != ffi.NULL:
                C.libxl_childproc_sigchld_occurred(self._ctx)
