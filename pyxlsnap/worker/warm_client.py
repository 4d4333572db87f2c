"""The caller's side of a warm process: has it make a worker process for each call."""

import errno
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO

from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import ClosedError
from pyxlsnap.linux.processes import Process, reap
from pyxlsnap.request import Repeatable, request_to_plain
from pyxlsnap.serialize import Message
from pyxlsnap.worker.channel import Channel
from pyxlsnap.worker.start import start_python, start_worker

_EXIT_S = 10.0
#: the process may have to load all modules first, on a busy host
_ANSWER_S = 60.0
#: how often a call that waits looks whether it is cancelled
_LOOK_S = 0.1


class _Gone(OSError):
    """The warm process has ended, or does not answer."""


class _WarmProcess:
    """A warm process (:mod:`pyxlsnap.worker.warm`).

    :raises OSError: it could not be started.
    """

    def __init__(self, request: Repeatable) -> None:
        self.owner = os.getpid()
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        with theirs, ExitStack() as undo:
            undo.callback(ours.close)
            # What the process itself says is of no use: a worker says why it cannot begin.
            nothing = undo.enter_context(open(os.devnull, "wb"))
            pid = start_python("pyxlsnap.worker.warm", theirs, nothing)
            undo.callback(reap, pid)
            undo.callback(ours.close)  # so that the process ends
            self._process = Process(pid)
            undo.pop_all()
            nothing.close()
        with suppress(_Gone):  # start_copy() finds out
            self._send({"request": request_to_plain(request)})

    def start_copy(self, connection: socket.socket, stderr: IO[bytes], cancel: Cancel) -> Process:
        """Have the process make a worker process.

        :raises _Gone: the process has ended, or does not answer.
        :raises OSError: the copy could not be made.
        :raises Cancelled: ``cancel`` was set before the process has answered.
        """
        self._send({"stderr": True}, stderr.fileno())
        self._send({"connection": True}, connection.fileno())
        answer = self._answer(cancel)
        if "error" in answer:
            raise OSError(answer["error"], os.strerror(answer["error"]))
        if not self._channel.fds:  # the kernel drops a descriptor for which there is no room
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return Process(None, pidfd=self._channel.fds.pop())

    def _answer(self, cancel: Cancel) -> Message:
        try:
            self._await_answer(cancel)
        except BaseException:
            self._process.kill()  # it must not make the worker later
            raise
        if (answer := self._channel.receive()) is None:
            raise _Gone(errno.ECHILD, "its process has ended")
        return answer

    def _await_answer(self, cancel: Cancel) -> None:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        end = time.monotonic() + _ANSWER_S
        while not (self._channel.pending or poll.poll(_LOOK_S * 1000)):
            cancel.check()
            if time.monotonic() > end:
                raise _Gone(errno.ETIMEDOUT, "its process does not answer")

    def _send(self, message: Message, fd: int | None = None) -> None:
        try:
            self._channel.send(message, fd)
        except ConnectionError as e:
            raise _Gone(errno.ECHILD, "its process has ended") from e

    def close(self) -> None:
        """End the process, and wait for its end. Its workers go on without it."""
        ours = self.owner == os.getpid()
        if ours:
            self._channel.end()
        self._channel.close()
        if ours and self._has_ended():
            self._process.status()
        self._process.close()

    def _has_ended(self) -> bool:
        """Wait for its end; false if its storage does not answer, so that no signal can end it."""
        if self._process.ended(within_s=_EXIT_S):
            return True
        self._process.kill()
        return self._process.ended(within_s=_EXIT_S)


class WarmWorkers:
    """Starts worker processes as copies of one process, which is started when it is not there.

    In a copy of the calling process (``os.fork()``) it starts a process for that copy. An object
    that is dropped ends its process.

    :param owner: the name of the class whose object this belongs to, for errors.
    """

    def __init__(self, request: Repeatable, owner: str) -> None:
        self._request = request
        self._owner = owner
        self._warm: _WarmProcess | None = None
        self._lock = threading.Lock()
        self._closed = False

    def warm_up(self) -> None:
        """Start the process, unless it is there. Does not wait until it is warm.

        :raises OSError: it could not be started.
        :raises ClosedError: :meth:`close` was called.
        """
        with self._turn():
            self._present()

    def start(
        self, connection: socket.socket, stderr: IO[bytes], *, cancel: Cancel
    ) -> int | Process:
        """Start a worker process: see :data:`pyxlsnap.worker.start.Start`.

        :raises OSError: it could not be started.
        :raises ClosedError: :meth:`close` was called.
        :raises Cancelled: ``cancel`` was set before there was a worker.
        """
        with self._turn(cancel):
            for _ in range(2):  # if the process was killed or is outdated, another one is started
                with suppress(_Gone):
                    return self._copy(connection, stderr, cancel)
            return start_worker(connection, stderr)  # which can say what is wrong

    @contextmanager
    def _turn(self, cancel: Cancel | None = None) -> Iterator[None]:
        """Wait until no other call uses the process."""
        cancel = cancel or Cancel()
        cancel.check()
        while not self._lock.acquire(timeout=_LOOK_S):
            cancel.check()
        try:
            yield
        finally:
            self._lock.release()

    def _copy(self, connection: socket.socket, stderr: IO[bytes], cancel: Cancel) -> Process:
        warm = self._present()
        try:
            return warm.start_copy(connection, stderr, cancel)
        except BaseException:
            # Its next answer might be that to this message.
            self._end()
            raise

    def _present(self) -> _WarmProcess:
        if self._closed:
            raise ClosedError(f"this {self._owner} was closed: make another one")
        if self._warm and self._warm.owner != os.getpid():
            self._end()
        if self._warm is None:
            warm = _WarmProcess(self._request)
            self._close_warm = weakref.finalize(self, warm.close)
            self._close_warm.atexit = False  # it ends by itself then
            self._warm = warm
        return self._warm

    def _end(self) -> None:
        warm, self._warm = self._warm, None
        if warm:
            self._close_warm()

    def close(self) -> None:
        """End the process, and wait for its end. Idempotent."""
        self._closed = True  # at once: a call that waits starts no other process
        with self._turn():
            self._end()
