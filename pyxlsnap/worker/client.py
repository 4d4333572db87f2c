"""The worker process as its caller sees it: started, listened to, cancelled, and waited for."""

import logging
import os
import socket
import subprocess
import threading
from contextlib import ExitStack
from typing import Any

from pyxlsnap.errors import NeedsAttention, WorkerDied
from pyxlsnap.hooks import Moment
from pyxlsnap.linux.files import scratch_file
from pyxlsnap.linux.locks import unlock
from pyxlsnap.linux.processes import Process, environment, how_ended, python
from pyxlsnap.request import Request, changes_something, request_to_plain
from pyxlsnap.results import DomainEvent, OnEvent, OnProgress, Progress
from pyxlsnap.serialize import Message, error_from_plain, log_from_plain, rebuild
from pyxlsnap.text import readable
from pyxlsnap.worker.channel import Channel
from pyxlsnap.worker.hook_calls import HookCalls

log = logging.getLogger("pyxlsnap")

_EXIT_S = 20.0  # its supervisor waits for it, too
_STDERR_BYTES = 4096
_HARMLESS = ("checking", "journal")


class WorkerClient:
    """The caller's end of a worker process.

    :raises OSError: the process could not be started.
    """

    def __init__(
        self, request: Request, on_progress: OnProgress, on_event: OnEvent, hooks: HookCalls
    ) -> None:
        self._on_progress = on_progress
        self._on_event = on_event
        self._hooks = hooks
        self._about = {"operation": request.operation, "domain": request.domain or ""}
        self._changes = changes_something(request)
        self._failed: BaseException | None = None
        self._send_lock = threading.Lock()
        self._answered = False
        #: uuids of the domains whose locks the worker has taken
        self.locked: dict[str, None] = {}
        #: the worker has come so far that something may have changed
        self.begun = False
        #: the result, if an exception takes its place
        self.done: Message | None = None
        #: what the supervisor said when the worker had died
        self.recovery: Message | None = None
        with ExitStack() as started:
            self._stderr = started.enter_context(scratch_file())
            ours, theirs = socket.socketpair()
            self._channel = Channel(started.enter_context(ours))
            with theirs:
                self._popen = subprocess.Popen(
                    python("pyxlsnap.worker"),
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=self._stderr,
                    start_new_session=True,
                    cwd="/",
                    env=environment(),
                )
            started.callback(self._popen.wait)
            started.callback(ours.close)  # which ends it
            # Not by its number: if somebody else reaps it, another process may get that.
            self._process = Process(self._popen.pid)
            started.pop_all()
        level = log.getEffectiveLevel()
        start = {"request": request_to_plain(request), "hooks": hooks.wanted, "log_level": level}
        self._send(start)

    def cancel(self) -> bool:
        """Ask the worker to stop; it answers with its result all the same."""
        self._send({"cancel": True})
        return True

    def _send(self, message: Message) -> None:
        with self._send_lock:
            try:
                self._channel.send(message)
            except OSError:
                pass  # the worker has ended; the reader sees that

    def result(self) -> Any:
        """Wait for the end of the operation.

        An exception here, be it KeyboardInterrupt or one from the progress callback, cancels the
        operation; it is raised when the worker has rolled back.
        """
        while message := self._next():
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
        if isinstance(error, NeedsAttention):  # it matters more than why it was cancelled
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
        """What was done is not lost, although an exception takes the place of the result."""
        if not self._changes:
            return
        where = (result or {}).get("cfgfile")
        operation, domain = self._about["operation"], self._about["domain"] or "every domain"
        said = f"too late to cancel the {operation} of {domain}: it is done"
        said += f" ({where})" if where else ""
        failed.add_note(said)
        log.warning("%s", said, extra=self._about)

    def _handle(self, message: Message) -> None:
        if "progress" in message:
            progress: Progress = rebuild(Progress, message["progress"])
            self.begun = self.begun or progress.phase not in _HARMLESS
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
        elif "lock" in message:
            self.locked[message["lock"]] = None

    def _notice_interrupt(self) -> None:
        """Ctrl-C while a hook ran cancels the operation, as at any time."""
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
        """The worker is dead: the locks are ours alone now. Give them back."""
        for fd in self._channel.fds:
            unlock(fd)

    def close(self) -> None:
        """Close everything; the process has ended, or is ended now.

        A process that has not answered is rolling back, which must not be disturbed.
        """
        self._channel.close()
        if self._answered and not self._process.ended(within_s=_EXIT_S):
            self._process.kill()
        self._reap()
        self._process.close()
        self._stderr.close()

    def _reap(self) -> int | None:
        """Wait for the process to end; its status, the first time, if nobody else has reaped it."""
        self._process.ended()
        status = self._process.status()
        self._popen.returncode = status or 0  # so that subprocess does not look for it
        return status
