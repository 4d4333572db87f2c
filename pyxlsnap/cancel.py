"""Cancels a long operation from any thread."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_RETRY_S = 0.05


class Cancelled(BaseException):
    """Raised inside an operation when its :class:`Cancel` was set.

    This is a BaseException, so that an ``except Exception`` in a disk strategy does not catch it.
    The operations turn it into :class:`~pyxlsnap.errors.Interrupted`.
    """


class Halt:
    """Ends the slow work of a part of an operation. Any thread may set it."""

    def __init__(self) -> None:
        self._set = threading.Event()

    def is_set(self) -> bool:
        """Whether the work is to end."""
        return self._set.is_set()

    def set(self) -> None:
        """End the work. Idempotent; it does not wait."""
        self._set.set()

    def clear(self) -> None:
        """The work has ended: its undo may be slow again."""
        self._set.clear()

    def check(self) -> None:
        """:raises Cancelled: the work is to end."""
        if self._set.is_set():
            raise Cancelled


class Cancel:
    """A token to cancel operations. Any thread may call :meth:`set`.

    All operations that were given the token are then rolled back.
    """

    def __init__(self) -> None:
        self._set = threading.Event()
        self._lock = threading.Lock()
        #: abort functions of the running calls that have not accepted the abort yet
        self._aborts: list[Callable[[], bool]] = []

    def is_set(self) -> bool:
        """Whether :meth:`set` was called."""
        return self._set.is_set()

    def check(self) -> None:
        """:raises Cancelled: the token is set.

        :meta private:
        """
        if self._set.is_set():
            raise Cancelled

    def set(self) -> None:
        """Cancel all operations that have this token. Idempotent.

        Returns when every running libxl call has accepted the abort or has ended, and does not wait
        for the rollback. The abort is tried repeatedly, because libxl cannot abort a call that is
        only starting.
        """
        self._set.set()
        while not self._all_aborted():
            time.sleep(_RETRY_S)

    def _all_aborted(self) -> bool:
        # Under the lock, so that the abort cannot reach the next call, which may be the resume.
        with self._lock:
            self._aborts = [abort for abort in self._aborts if not abort()]
            return not self._aborts

    @contextmanager
    def armed(self, abort: Callable[[], bool]) -> Iterator[None]:
        """While the body runs, :meth:`set` calls ``abort`` until this returns true.

        :raises Cancelled: the token is already set.
        :meta private:
        """
        with self._lock:
            self.check()
            self._aborts.append(abort)
        try:
            yield
        finally:
            with self._lock:
                if abort in self._aborts:
                    self._aborts.remove(abort)
