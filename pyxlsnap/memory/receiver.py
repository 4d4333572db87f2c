"""Receives libxl's stream through a pipe, on a thread, while libxl writes it.

The pipe must be read until libxl has returned, also after a failure: libxl and its helper would
wait for ever on a pipe that is full, and the signal SIGPIPE would kill the helper before it has
switched off what Xen and QEMU record for it. So a failure makes libxl abort, and the thread reads
on. The abort needs a thread of its own, because libxl may hold its lock while it writes.
"""

import fcntl
import logging
import os
import threading
from collections.abc import Callable
from types import TracebackType

from pyxlsnap.errors import PyxlsnapError
from pyxlsnap.memory.writer import StreamWriter, Truncated

log = logging.getLogger(__name__)

_RETRY_S = 0.05
#: bytes that the pipe can hold: the more, the less often libxl and the thread wait for each other
_PIPE_SIZE = 1 << 20


class Receiver:
    """Put around the call of libxl that writes the stream to :meth:`fileno`.

    :param abort: aborts this call; returns whether there was one to abort. It is tried again until
        it returns true or the call has returned.
    :raises OSError: on leaving: the file cannot be written. (On entering: no pipe can be made.)
    :raises BadMemoryFile: on leaving: libxl reported success, but its stream is damaged or not
        complete.
    """

    def __init__(self, writer: StreamWriter, abort: Callable[[], bool]) -> None:
        self._writer = writer
        self._abort_call = abort
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._receive, name="pyxlsnap-stream", daemon=True)
        self._aborter = threading.Thread(target=self._abort, name="pyxlsnap-abort", daemon=True)

    def __enter__(self) -> "Receiver":
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        os.set_blocking(self._read, False)
        # (What is in the pipe when libxl suspends the guest must be taken at the rate.)
        if not self._writer.max_rate:
            self._enlarge_pipe()
        self._thread.start()
        return self

    def fileno(self) -> int:
        """The descriptor for libxl to write to. It is closed on leaving."""
        return self._write

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        os.close(self._write)
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._over.set()
        if self._aborter.ident:
            self._aborter.join()
        os.close(self._read)
        os.close(self._stop)
        if self._error and _reported(kind, self._error):
            raise self._error

    def _enlarge_pipe(self) -> None:
        try:
            fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        except OSError as e:  # the user has many pipes: a small one is only slower
            log.debug("the pipe stays small: %s", e)

    def _receive(self) -> None:
        try:
            self._writer.run(self._read, self._stop)
        except BaseException as e:
            self._error = e
            self._fail()

    def _fail(self) -> None:
        try:
            if not isinstance(self._error, Truncated):
                log.info("the memory file cannot be written (%s): aborting", self._error)
                self._aborter.start()
        finally:
            self._writer.discard(self._read, self._stop)

    def _abort(self) -> None:
        while not self._abort_call() and not self._over.wait(_RETRY_S):
            pass


def _reported(kind: type[BaseException] | None, error: BaseException) -> bool:
    """Whether the error is reported in the place of what libxl reports."""
    if kind is None:
        return True
    return issubclass(kind, PyxlsnapError) and not isinstance(error, Truncated)
