"""The worker process: runs one operation, and rolls it back when its caller ends.

Started by :mod:`pyxlsnap.api` as ``python -m pyxlsnap.worker``, with a socket as its standard
input. It is a process of its own because libxl may abort it, forks without exec, and needs to know
who owns SIGCHLD: the caller must notice none of that. An operation that changes something has a
supervisor (:mod:`pyxlsnap.worker.supervisor`), which recovers at once if the worker is killed.
"""

import logging
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.create import operation as create
from pyxlsnap.create.feasibility import feasibility
from pyxlsnap.errors import Interrupted, OperationFailed, PyxlsnapError
from pyxlsnap.guest.protocols import Host
from pyxlsnap.hooks import Moment
from pyxlsnap.linux.locks import RIVAL_S
from pyxlsnap.linux.processes import fresh_signals
from pyxlsnap.monitor import launch
from pyxlsnap.monitor.actions import monitor
from pyxlsnap.recovery import operation as recovery
from pyxlsnap.request import (
    Callbacks,
    CreateRequest,
    FeasibilityRequest,
    MonitorRequest,
    RecoverRequest,
    Request,
    RevertRequest,
    changes_something,
    request_from_plain,
)
from pyxlsnap.results import DomainEvent, Feasibility, Plan, Progress, Recovered, Reverted, Snapshot
from pyxlsnap.revert import operation as revert
from pyxlsnap.serialize import Message, error_to_plain, log_to_plain
from pyxlsnap.worker.channel import Channel
from pyxlsnap.worker.supervisor import Death, SupervisorLink, supervise
from pyxlsnap.xen.callbacks import close_in_children
from pyxlsnap.xen.toolstack import Toolstack

Result = Snapshot | Reverted | Recovered | Plan | Feasibility | None

log = logging.getLogger("pyxlsnap.worker")


class ClientLink:
    """The worker's link to the caller. Sending never blocks and never fails: a thread does it.

    A caller that is stopped, or has ended, must not hold up a guest that is suspended.
    """

    def __init__(self, channel: Channel, supervisor: SupervisorLink | None = None) -> None:
        self._channel = channel
        self._supervisor = supervisor
        self._queue: queue.SimpleQueue[tuple[Message, int | None] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="pyxlsnap-send", daemon=True)
        self._thread.start()

    def send(self, message: Message, fd: int | None = None) -> None:
        """Have a message sent soon; ``fd`` stays open until :meth:`finish`."""
        self._queue.put((message, fd))

    def progress(self, progress: Progress) -> None:
        """Report progress."""
        self.send({"progress": asdict(progress)})

    def event(self, event: DomainEvent) -> None:
        """Report what a domain did."""
        self.send({"event": asdict(event)})

    def ask(self, moment: Moment, cancel: Cancel) -> None:
        """Have the caller's hook called before a domain is suspended, and wait for that.

        :raises OperationFailed: the hook failed.
        :raises Cancelled: the caller has ended, or has cancelled the operation.
        """
        self.send({"hook": asdict(moment)})
        with cancel.armed(self._wake):
            failed = self._answers.get()
        cancel.check()
        if failed:
            raise OperationFailed(failed, step="before suspend")

    def _wake(self) -> bool:
        self._answers.put("")
        return True

    def share_lock(self, uuid: str, fd: int) -> None:
        """Let the caller and the supervisor hold the lock, too."""
        close_in_children(fd)
        if self._supervisor:
            self._supervisor.share_lock(uuid, fd)
        self.send({"lock": uuid}, fd)

    def finish(self, message: Message) -> None:
        """Send the last message, and wait until it is sent. Later messages are dropped."""
        self._queue.put((message, None))
        self._queue.put(None)
        self._thread.join()
        if self._supervisor:
            self._supervisor.answered()

    def listen(self, cancel: Cancel) -> None:
        """Take what the caller says; set the token when the caller says so, or has ended."""
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


class _LogSender(logging.Handler):
    """Sends log records to the caller, with the operation and the domain."""

    def __init__(self, client: ClientLink, request: Request) -> None:
        super().__init__()
        self._client = client
        self._about = {"operation": request.operation, "domain": request.domain or ""}

    def emit(self, record: logging.LogRecord) -> None:
        self._client.send({"log": self._about | log_to_plain(record)})


def serve(request: Request, client: ClientLink, callbacks: Callbacks, cancel: Cancel) -> None:
    """Run an operation, and send its result or error."""

    def work() -> None:
        # Before Xen is asked for: a wrong cfgfile is wrong on any host.
        ready = _with_cfgfile(request)
        with Toolstack(operation=request.operation, domain=request.domain or "") as host:
            # The answer goes out before libxl is closed: libxl may abort the process there.
            client.finish(_outcome(lambda: perform(host, ready, callbacks, cancel)))

    client.finish(_outcome(work))  # if there was no answer yet


def _with_cfgfile(request: Request) -> Request:
    match request:
        case CreateRequest():
            return create.read_cfgfile(request)
        case RevertRequest():
            return revert.read_cfgfile(request)
    return request


def _outcome(do: Callable[[], Result]) -> Message:
    """What came of it, as the last message."""
    try:
        result = do()
    except Cancelled:  # of a watch or a look: there is nothing to roll back
        return {"error": error_to_plain(Interrupted("cancelled", step="look"))}
    except Exception as e:
        return {"error": _plain_error(e)}
    return {"result": asdict(result) if result else None}


def _plain_error(error: Exception) -> Message:
    """An error for the caller; one that is none of ours is a bug."""
    if isinstance(error, PyxlsnapError):
        return error_to_plain(error)
    log.error("internal error", exc_info=error)
    return error_to_plain(PyxlsnapError(f"internal error: {type(error).__name__}: {error}"))


def perform(host: Host, request: Request, callbacks: Callbacks, cancel: Cancel) -> Result:
    """Run the operation that a request asks for."""
    match request:
        case CreateRequest(dry_run=True):
            return create.preview(host, request, callbacks, cancel)
        case CreateRequest():
            return create.create(host, request, callbacks, cancel)
        case RevertRequest(dry_run=True):
            return revert.preview(host, request, callbacks, cancel)
        case RevertRequest():
            return revert.revert(host, request, callbacks, cancel)
        case RecoverRequest():
            return recovery.recover(host, request, callbacks)
        case MonitorRequest():
            monitor(host, request.domain, on_event=callbacks.on_event, cancel=cancel)
            return None
        case FeasibilityRequest():
            return feasibility(host, request, cancel)


def recover_from(death: Death, client: ClientLink, *, watch: bool) -> None:
    """The process that did the work is dead: recover, and tell the caller of both."""
    message: Message = {"died": death.how, "recovered": []}
    callbacks = Callbacks(
        share_lock=client.share_lock, start_monitor=launch.start_monitor if watch else None
    )
    for uuid in death.uuids:
        request = RecoverRequest(domain=uuid, wait_s=RIVAL_S)
        try:
            with Toolstack(operation=request.operation, domain=uuid) as host:
                found = recovery.recover(host, request, callbacks)
            message["recovered"].append(asdict(found))
        except Exception as e:
            message["error"] = _plain_error(e)
    client.finish(message)


class _Worker:
    """What the first message of a caller asks for."""

    def __init__(self, channel: Channel, message: Message) -> None:
        self._channel = channel
        self.request = request_from_plain(message["request"])
        self._hooks: bool = message["hooks"]
        self._log_level: int = message["log_level"]

    @property
    def watch(self) -> bool:
        """A monitor is to be started where nobody watches the domain in the end."""
        return getattr(self.request, "monitor", False)

    def work(self, supervisor: SupervisorLink | None = None) -> None:
        """Run the operation."""
        cancel = Cancel()
        signal.signal(
            signal.SIGTERM, lambda *_: threading.Thread(target=cancel.set, daemon=True).start()
        )
        client = self.listen(supervisor)
        threading.Thread(target=client.listen, args=(cancel,), daemon=True).start()
        serve(self.request, client, self._callbacks(client, cancel), cancel)

    def listen(self, supervisor: SupervisorLink | None = None) -> ClientLink:
        """Link to the caller; whatever is logged from now on goes there."""
        client = ClientLink(self._channel, supervisor)
        logger = logging.getLogger("pyxlsnap")
        logger.addHandler(_LogSender(client, self.request))
        logger.setLevel(self._log_level)
        return client

    def _callbacks(self, client: ClientLink, cancel: Cancel) -> Callbacks:
        found = Callbacks(
            on_progress=client.progress,
            on_event=client.event,
            share_lock=client.share_lock,
            start_monitor=launch.start_monitor if self.watch else None,
        )
        if not self._hooks:
            return found
        return replace(found, before_suspend=partial(client.ask, cancel=cancel))


def main() -> None:
    """Serve the one request that comes over the socket which is the standard input."""
    fresh_signals()  # whatever the caller's daemon does with them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller cancels over the socket
    sock = socket.socket(fileno=os.dup(0))  # not inherited: a domain's QEMU would keep it for ever
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    close_in_children(sock.fileno())
    channel = Channel(sock)
    message = channel.receive()
    if message is None:
        return
    worker = _Worker(channel, message)
    if isinstance(worker.request, RecoverRequest) or not changes_something(worker.request):
        worker.work()
    elif death := supervise(worker.work):
        recover_from(death, worker.listen(), watch=worker.watch)
