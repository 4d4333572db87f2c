"""The worker's side of the connection to its caller: sends progress and log records, asks hooks."""

import logging
import queue
import threading
from dataclasses import asdict

from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import OperationFailed
from pyxlsnap.hooks import Moment
from pyxlsnap.request import Request
from pyxlsnap.results import DomainEvent, Progress
from pyxlsnap.serialize import Message, log_to_plain
from pyxlsnap.worker.channel import Channel
from pyxlsnap.worker.supervisor import SupervisorLink
from pyxlsnap.xen.callbacks import close_in_children


class ClientLink:
    """The worker's link to the caller. Sending never blocks and never fails: a thread sends.

    So a suspended guest never waits for a caller that is stopped or has ended.
    """

    def __init__(self, channel: Channel, supervisor: SupervisorLink | None = None) -> None:
        self._channel = channel
        self._supervisor = supervisor
        self._queue: queue.SimpleQueue[tuple[Message, int | None] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="pyxlsnap-send", daemon=True)
        self._thread.start()

    def send(self, message: Message, fd: int | None = None) -> None:
        """Have a message sent soon; ``fd`` stays open until :meth:`finish`."""
        self._queue.put((message, fd))

    def progress(self, progress: Progress) -> None:
        """Report progress."""
        self.send({"progress": asdict(progress)})

    def event(self, event: DomainEvent) -> None:
        """Report a domain's own shutdown, and the action that followed."""
        self.send({"event": asdict(event)})

    def ask(self, moment: Moment, cancel: Cancel) -> None:
        """Have the caller call its hook ``before_suspend``, and wait for the end of the hook.

        :raises OperationFailed: the hook failed.
        :raises Cancelled: the caller has ended, or has cancelled the operation.
        """
        self.send({"hook": asdict(moment)})
        with cancel.armed(self._wake):
            failure = self._answers.get()
        cancel.check()
        if failure is not None:
            raise OperationFailed(failure, step="before suspend")

    def _wake(self) -> bool:
        self._answers.put(None)
        return True

    def share_lock(self, uuid: str, fd: int) -> None:
        """Give the caller and the supervisor a domain's lock, too."""
        close_in_children(fd)
        if self._supervisor:
            self._supervisor.share_lock(uuid, fd)
        self.send({"lock": uuid}, fd)

    def finish(self, message: Message) -> None:
        """Send the last message, and wait until it is sent. Drop later messages."""
        self._queue.put((message, None))
        self._queue.put(None)
        self._thread.join()
        if self._supervisor:
            self._supervisor.answered()

    def leave(self, message: Message) -> None:
        """Send the caller a last message; the operation goes on, and its caller does not wait."""
        self.send({**message, "goes_on": True})

    def listen(self, cancel: Cancel) -> None:
        """Receive from the caller; set the token when the caller cancels or ends."""
        while (message := self._channel.receive()) and not message.get("cancel"):
            if "hooked" in message:
                self._answers.put(message["hooked"])
        cancel.set()

    def _send(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._channel.send(*item)
            except OSError:
                pass  # the caller has ended; listen() sees that, too


class LogSender(logging.Handler):
    """Sends log records to the caller, with the operation and the domain."""

    def __init__(self, client: ClientLink, request: Request) -> None:
        super().__init__()
        self._client = client
        self._about = {"operation": request.operation, "domain": request.domain or ""}

    def emit(self, record: logging.LogRecord) -> None:
        self._client.send({"log": self._about | log_to_plain(record)})
