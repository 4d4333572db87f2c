"""Cancelling a long operation from any thread."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_RETRY_S = 0.05


class Cancelled(BaseException):
    """Raised inside a sequence where it stops because its :class:`Cancel` was set.

    A BaseException, so that no ``except Exception`` of a strategy swallows it. The sequences turn
    it into :class:`~pyxlsnap.errors.Interrupted`.
    """


class Cancel:
    """A token: :meth:`set` it from any thread and every operation that holds it rolls back."""

    def __init__(self) -> None:
        self._set = threading.Event()
        self._lock = threading.Lock()
        #: of the calls under way, those that have not taken it yet
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
        """Cancel. Returns at the latest when the calls under way have been told to stop.

        A call that is just being made may not be there yet for libxl to abort: try until it has
        taken the abort, or has ended.
        """
        self._set.set()
        while not self._told():
            time.sleep(_RETRY_S)

    def _told(self) -> bool:
        # Under the lock: the abort must not reach the call after this one, which may be the resume.
        with self._lock:
            self._aborts = [abort for abort in self._aborts if not abort()]
            return not self._aborts

    @contextmanager
    def armed(self, abort: Callable[[], bool]) -> Iterator[None]:
        """While the body runs, :meth:`set` calls ``abort`` until it answers true.

        :raises Cancelled: the token is set already.
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
