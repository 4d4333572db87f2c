"""The caller's side of a worker process: starts it, receives its messages, waits for its end."""

import logging
import os
import socket
import threading
from contextlib import ExitStack
from typing import Any

from pyxlsnap.errors import NeedsAttention, WorkerDied
from pyxlsnap.hooks import Moment
from pyxlsnap.linux.files import scratch_file
from pyxlsnap.linux.locks import unlock
from pyxlsnap.linux.processes import Process, how_ended, reap
from pyxlsnap.request import (
    Callbacks,
    Request,
    changes_something,
    in_words,
    request_to_plain,
)
from pyxlsnap.results import DomainEvent, Progress
from pyxlsnap.serialize import Message, error_from_plain, log_from_plain, rebuild
from pyxlsnap.text import readable
from pyxlsnap.worker.channel import Channel
from pyxlsnap.worker.hook_calls import HookCalls
from pyxlsnap.worker.start import Start

log = logging.getLogger("pyxlsnap")

_EXIT_S = 20.0  # includes the supervisor's wait for the worker
_STDERR_BYTES = 4096
_HARMLESS = ("checking", "journal", "prepare", "check again")


class WorkerClient:
    """The caller's end of a worker process.

    :raises OSError: the process could not be started.
    :raises Cancelled: ``start`` has raised it.
    """

    def __init__(
        self, request: Request, callbacks: Callbacks, hooks: HookCalls, start: Start
    ) -> None:
        self._on_progress = callbacks.on_progress
        self._on_event = callbacks.on_event
        self._hooks = hooks
        self._about = {"operation": request.operation, "domain": request.domain or ""}
        self._in_words = in_words(request)
        self._changes = changes_something(request)
        self._failed: BaseException | None = None
        self._send_lock = threading.Lock()
        self._answered = False
        self._cancelled = False
        #: the process has answered, and continues without its caller
        self.goes_on = False
        #: uuids of the domains that the worker has locked (a dict, to keep the order)
        self.locked: dict[str, None] = {}
        #: the operation has begun, so that something may have changed
        self.begun = False
        self._phase = ""
        #: the result, if an exception is raised in the place of the result
        self.done: Message | None = None
        #: the supervisor's message after the death of the worker
        self.recovery: Message | None = None
        level = log.getEffectiveLevel()
        first = {"request": request_to_plain(request), "hooks": hooks.wanted, "log_level": level}
        with ExitStack() as started:
            self._stderr = started.enter_context(scratch_file())
            ours, theirs = socket.socketpair()
            self._channel = Channel(started.enter_context(ours))
            with theirs:
                process = start(theirs, self._stderr)
            if isinstance(process, int):
                started.callback(reap, process)
                started.callback(ours.close)  # so that the process ends
                # By pidfd: if other code reaps the process, another process may get its pid.
                process = Process(process)
            self._process = process
            started.pop_all()
        self._send(first)

    def cancel(self) -> bool:
        """Ask the worker to cancel the operation. The worker still sends a result or an error."""
        self._cancelled = True
        self._send({"cancel": True})
        return True

    def _send(self, message: Message) -> None:
        with self._send_lock:
            try:
                self._channel.send(message)
            except OSError:
                pass  # the worker has ended; receive() notices

    def result(self) -> Any:
        """Wait for the end of the operation.

        An exception during the wait (KeyboardInterrupt, or from the progress callback) cancels the
        operation, and is raised again when the worker has rolled back.

        :raises PyxlsnapError: the error of the operation.
        :raises WorkerDied: the worker ended without a result.
        """
        while message := self._next():
            self.goes_on = "goes_on" in message
            if "died" in message:
                self.recovery = message
                self._answered = True
                raise WorkerDied(self._epitaph(message["died"]), stderr=self._read_stderr())
            if "result" in message or "error" in message:
                return self._outcome(message)
        raise WorkerDied(self._epitaph(how_ended(self._reap())), stderr=self._read_stderr())

    def _next(self) -> Message | None:
        while True:
            try:
                if message := self._channel.receive():
                    self._handle(message)
                return message
            except BaseException as e:
                self._fail(e)

    def _fail(self, error: BaseException) -> None:
        self._failed = self._failed or error
        self.cancel()

    def _outcome(self, message: Message) -> Any:
        self._answered = True
        error = error_from_plain(message["error"]) if "error" in message else None
        if isinstance(error, NeedsAttention):  # more important than the cause of the cancel
            raise error from self._failed
        if self._failed:
            if not error:
                self.done = message["result"]
                self.say_too_late(self._failed, self.done)
            raise self._failed
        if error:
            raise error from self._hooks.cause
        return message["result"]

    def say_too_late(self, failed: BaseException, result: Message | None) -> None:
        """Add to the exception, and log, that the operation was done in spite of the cancel."""
        if not self._changes:
            return
        where = (result or {}).get("cfgfile")
        said = f"too late to cancel {self._in_words}: it is done"
        said += f" ({where})" if where else ""
        failed.add_note(said)
        log.warning("%s", said, extra=self._about)

    def _handle(self, message: Message) -> None:
        if "progress" in message:
            progress: Progress = rebuild(Progress, message["progress"])
            # A wait is a part of the phase that it comes in.
            if not (self._phase and progress.phase.startswith("waiting for ")):
                self._phase = progress.phase
            self.begun = self.begun or self._phase not in _HARMLESS
            if progress.phase == "resumed":
                self._hooks.after_resume()
                self._notice_interrupt()
            if not self._failed:
                self._on_progress(progress)
        elif "hook" in message:
            moment: Moment = rebuild(Moment, message["hook"])
            self._send({"hooked": self._hooks.before_suspend(moment)})
            self._notice_interrupt()
        elif "event" in message and not self._failed:
            self._on_event(rebuild(DomainEvent, message["event"]))
        elif "log" in message:
            record = log_from_plain(message["log"])
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)
        elif "recovers" in message and self._cancelled:
            self.cancel()
        elif "lock" in message:
            self.locked[message["lock"]] = None

    def _notice_interrupt(self) -> None:
        """Cancel the operation if Ctrl-C was pressed while a hook ran."""
        if self._hooks.interrupted:
            self._fail(self._hooks.interrupted)

    def _epitaph(self, how: str) -> str:
        said = self._read_stderr().strip().splitlines()
        return f"the worker process {how}" + (f": {said[-1]}" if said else "")

    def _read_stderr(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _STDERR_BYTES))
        return readable(self._stderr.read())

    def release_locks(self) -> None:
        """Release the locks of a dead worker: this process has the last copies of them.

        Not if its supervisor goes on: a copy of the supervisor's own lock is among them.
        """
        if self.goes_on:
            return
        for fd in self._channel.fds:
            unlock(fd)

    def close(self) -> None:
        """Close everything, and wait for the end of the process.

        A process that has answered is killed if it does not end in time. A process that has not
        answered is rolling back: it is never killed. A process that has said that it goes on is
        not waited for.
        """
        self._channel.close()
        self._stderr.close()
        if self.goes_on:
            threading.Thread(target=self._end, name="pyxlsnap-reap", daemon=True).start()
            return
        if self._answered and not self._process.ended(within_s=_EXIT_S):
            self._process.kill()
        self._end()

    def _end(self) -> None:
        self._reap()
        self._process.close()

    def _reap(self) -> int | None:
        """Wait for the process to end.

        :returns: its status, at the first call; ``None`` if other code has reaped the process.
        """
        self._process.ended()
        return self._process.status()
