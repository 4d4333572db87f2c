"""Receives libxl's stream through a pipe, on a thread, while libxl writes it.

The pipe must be read until libxl has returned, also after a failure: libxl and its helper would
wait for ever on a pipe that is full, and the signal SIGPIPE would kill the helper before it has
switched off what Xen and QEMU record for it. So a failure makes libxl abort, and the thread reads
on. The abort needs a thread of its own, because libxl may hold its lock while it writes.

A write to the memory file may never return: its server may be dead, its filesystem frozen. After a
failure nobody waits for the thread, because the guest may be suspended meanwhile. And such a thread
outlives even SIGKILL. So it has descriptors of its own: it would keep those of the process, such as
the connection to the guest's QEMU, which a recovery needs to resume the guest.
"""

import errno
import logging
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from pyxlsnap.errors import PyxlsnapError
from pyxlsnap.memory.writer import StreamWriter, Truncated

log = logging.getLogger(__name__)

_RETRY_S = 0.05
_CHECK_S = 0.2


class Receiver:
    """Put around the call of libxl that writes the stream to :meth:`fileno`.

    Leaving waits until the file is complete; after a failure it does not wait: see :meth:`ended`.

    :param abort: aborts this call; returns whether there was one to abort. It is tried again until
        it returns true or the call has returned.
    :param check: called again and again while the file is waited for, after libxl's success; an
        exception from it ends the wait.
    :raises OSError: on leaving: the file cannot be written. On entering: no pipe can be made.
    :raises BadMemoryFile: on leaving: libxl reported success, but its stream is damaged or not
        complete.
    """

    def __init__(
        self,
        writer: StreamWriter,
        abort: Callable[[], bool],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._writer = writer
        self._abort_call = abort
        self._check = check
        #: the call of libxl has returned
        self._over = threading.Event()
        self._error: BaseException | None = None
        #: the stream cannot be taken, and the call is to be aborted
        self._failed = threading.Event()
        #: the thread has descriptors of its own, or cannot have them
        self._begun = threading.Event()
        self._cannot_begin: BaseException | None = None
        self._thread = threading.Thread(target=self._receive, name="pyxlsnap-stream", daemon=True)
        self._aborter = threading.Thread(target=self._abort, name="pyxlsnap-abort", daemon=True)

    def __enter__(self) -> "Receiver":
        with ExitStack() as undo:
            try:
                self._read, self._write = os.pipe2(os.O_CLOEXEC)
                undo.callback(os.close, self._read)
                undo.callback(os.close, self._write)
                self._stop = os.eventfd(0, os.EFD_CLOEXEC)
                undo.callback(os.close, self._stop)
            except OSError as e:  # (else it would seem to be about the memory file)
                code = e.errno or errno.EMFILE
                raise OSError(code, os.strerror(code), "the pipe for libxl's stream") from e
            os.set_blocking(self._read, False)
            # Not by the other thread: it would get the descriptors of that.
            self._aborter.start()
            undo.callback(self._aborter.join)
            undo.callback(self._failed.set)
            undo.callback(self._over.set)
            self._thread.start()
            self._begun.wait()
            if self._cannot_begin:
                raise self._cannot_begin
            undo.pop_all()
        return self

    def fileno(self) -> int:
        """The descriptor for libxl to write to. It is closed on leaving."""
        return self._write

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._over.set()  # from now on no abort begins: it would reach the next call of libxl
        try:
            if self._failed.is_set():
                self._aborter.join()
            os.close(self._write)
            os.eventfd_write(self._stop, 1)
            os.close(self._stop)
            os.close(self._read)
            while kind is None and not self._error and not self.ended(within_s=_CHECK_S):
                self._check()
        finally:
            self._failed.set()  # let the thread for the abort end; nobody waits for that
        if self._error and _reported(kind, self._error):
            raise self._error

    def ended(self, *, within_s: float | None = None) -> bool:
        """Wait until nothing more is written to the file.

        :param within_s: seconds to wait at most; ``None``: without limit.
        :returns: whether the thread has ended, or has never begun.
        """
        if self._thread.ident:
            self._thread.join(within_s)
        return not self._thread.is_alive()

    def _receive(self) -> None:
        pipe, stop = self._read, self._stop
        try:
            self._writer.own_descriptors(pipe, stop)
        except BaseException as e:
            self._cannot_begin = e
            return
        finally:
            self._begun.set()
        try:
            self._writer.run(pipe, stop)
        except BaseException as e:
            self._error = e
            if not isinstance(e, Truncated):
                self._failed.set()
            self._writer.discard(pipe, stop)

    def _abort(self) -> None:
        self._failed.wait()
        if not self._over.is_set():
            log.info("the memory file cannot be written (%s): aborting", self._error)
        while not self._over.is_set() and not self._abort_call():
            self._over.wait(_RETRY_S)


def _reported(kind: type[BaseException] | None, error: BaseException) -> bool:
    """Whether the error is reported in the place of what libxl reports."""
    if kind is None:
        return True
    return issubclass(kind, PyxlsnapError) and not isinstance(error, Truncated)
