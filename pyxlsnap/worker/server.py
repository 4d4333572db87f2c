"""The worker process: runs one operation, and rolls the operation back if the caller ends.

The caller starts the worker as ``python -m pyxlsnap.worker``, or as a copy of its own process (see
:mod:`pyxlsnap.worker.start`), with a socket as its standard input.
The worker is a process of its own because libxl may abort its process, forks without exec, and
depends on the handling of SIGCHLD. None of this may reach the caller. An operation that changes
something has a supervisor (:mod:`pyxlsnap.worker.supervisor`), which recovers at once if the worker
is killed.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.errors import Interrupted, PyxlsnapError
from pyxlsnap.guest.protocols import Host
from pyxlsnap.linux.limits import raise_limits
from pyxlsnap.linux.locks import RIVAL_S
from pyxlsnap.linux.processes import fresh_signals
from pyxlsnap.monitor import launch
from pyxlsnap.request import (
    Callbacks,
    CloneConfigurationRequest,
    CloneRequest,
    CreateRequest,
    DeleteCloneRequest,
    DeleteRequest,
    FeasibilityRequest,
    MonitorRequest,
    ReadRequest,
    RecoverRequest,
    Request,
    RevertRequest,
    changes_something,
    in_words,
    request_from_plain,
)
from pyxlsnap.results import (
    CloneConfiguration,
    Cloned,
    Deleted,
    Feasibility,
    Plan,
    Recovered,
    Reverted,
    Snapshot,
)
from pyxlsnap.serialize import Message, error_to_plain
from pyxlsnap.snapshot_info import SnapshotInfo
from pyxlsnap.worker import modules
from pyxlsnap.worker.channel import Channel
from pyxlsnap.worker.client_link import ClientLink, LogSender
from pyxlsnap.worker.supervisor import Death, SupervisorLink, supervise
from pyxlsnap.xen.callbacks import close_in_children
from pyxlsnap.xen.toolstack import Toolstack

Result = (
    Snapshot
    | Reverted
    | Cloned
    | Deleted
    | Recovered
    | Plan
    | Feasibility
    | CloneConfiguration
    | SnapshotInfo
    | None
)

log = logging.getLogger("pyxlsnap.worker")


def serve(request: Request, client: ClientLink, callbacks: Callbacks, cancel: Cancel) -> None:
    """Run an operation, and send its result or error."""

    def work() -> None:
        if isinstance(request, ReadRequest):  # needs no Xen
            from pyxlsnap import contents

            client.finish(_outcome(request, lambda: contents.read(request, cancel)))
            return
        # First, without libxl: a wrong cfgfile is an error on any host.
        ready = with_cfgfile(request)
        with Toolstack(operation=request.operation, domain=request.domain or "") as host:
            # Send the result before libxl is closed: libxl may abort the process there.
            client.finish(_outcome(request, lambda: perform(host, ready, callbacks, cancel)))

    client.finish(_outcome(request, work))  # dropped if a result was sent


def with_cfgfile(request: Request) -> Request:
    """The request with the content of its cfgfile, if it names one. Needs no Xen.

    :raises PyxlsnapError: the cfgfile is wrong, or another value is that can be checked here.
    """
    match request:
        case CreateRequest():
            from pyxlsnap.create.operation import read_cfgfile as read_creates

            return read_creates(request)
        case RevertRequest():
            from pyxlsnap.revert.operation import read_cfgfile as read_reverts

            return read_reverts(request)
        case CloneRequest():
            from pyxlsnap.clone.operation import read_cfgfile as read_clones

            return read_clones(request)
        case CloneConfigurationRequest():
            from pyxlsnap.clone.operation import read_cfgfile as read_clones

            return replace(request, clone=read_clones(request.clone))
        case DeleteRequest():
            from pyxlsnap.delete.operation import read_cfgfile as read_deletes

            return read_deletes(request)
    return request


def _outcome(request: Request, do: Callable[[], Result]) -> Message:
    """Call ``do``; return its result or error as the last message."""
    try:
        result = do()
    except Cancelled:  # a monitor, a plan or the like: there is nothing to roll back
        error = Interrupted(f"{in_words(request)} was cancelled", step="look")
        return {"error": error_to_plain(error)}
    except Exception as e:
        return {"error": _plain_error(e)}
    return {"result": asdict(result) if result else None}


def _plain_error(error: Exception) -> Message:
    """An error as plain values. An error of another package is a bug of ours: log it."""
    if isinstance(error, PyxlsnapError):
        return error_to_plain(error)
    log.error("internal error", exc_info=error)
    return error_to_plain(PyxlsnapError(f"internal error: {type(error).__name__}: {error}"))


def perform(host: Host, request: Request, callbacks: Callbacks, cancel: Cancel) -> Result:
    """Run the operation that a request asks for."""
    match request:
        case ReadRequest():
            from pyxlsnap import contents

            return contents.read(request, cancel)
        case CreateRequest():
            from pyxlsnap.create import operation as create

            do = create.preview if request.dry_run else create.create
            return do(host, request, callbacks, cancel)
        case RevertRequest():
            from pyxlsnap.revert import operation as revert

            go_back = revert.preview if request.dry_run else revert.revert
            return go_back(host, request, callbacks, cancel)
        case CloneRequest() | CloneConfigurationRequest():
            return _clone(host, request, callbacks, cancel)
        case DeleteCloneRequest():
            from pyxlsnap.clone.delete import delete_clone

            return delete_clone(host, request, callbacks, cancel)
        case DeleteRequest():
            from pyxlsnap.delete import operation as delete

            return delete.delete(host, request, callbacks, cancel)
        case RecoverRequest():
            from pyxlsnap.recovery import operation as recovery

            return recovery.recover(host, request, callbacks, cancel)
        case MonitorRequest():
            from pyxlsnap.monitor.actions import monitor

            monitor(host, request.domain, on_event=callbacks.on_event, cancel=cancel)
            return None
        case FeasibilityRequest():
            from pyxlsnap.create.feasibility import feasibility

            return feasibility(host, request, cancel)


def _clone(
    host: Host,
    request: CloneRequest | CloneConfigurationRequest,
    callbacks: Callbacks,
    cancel: Cancel,
) -> Cloned | Plan | CloneConfiguration:
    from pyxlsnap.clone import operation as clone

    if isinstance(request, CloneConfigurationRequest):
        return clone.configuration(host, request, callbacks, cancel)
    do = clone.preview if request.dry_run else clone.clone
    return do(host, request, callbacks, cancel)


def recover_from(death: Death, client: ClientLink, *, watch: bool) -> None:
    """Recover from the death of the worker, and report the death and the recovery."""
    from pyxlsnap.recovery import operation as recovery

    message: Message = {"died": death.how, "recovered": []}
    cancel = Cancel()
    threading.Thread(target=client.listen, args=(cancel,), daemon=True).start()
    client.send({"recovers": True})  # a cancel may have been read by the worker
    callbacks = Callbacks(
        on_progress=client.progress,
        leave=lambda error: client.leave({**message, "error": error_to_plain(error)}),
        share_lock=client.share_lock,
        start_monitor=launch.start_monitor if watch else None,
    )
    for uuid in death.uuids:
        request = RecoverRequest(domain=uuid, wait_s=RIVAL_S)
        try:
            with Toolstack(operation=request.operation, domain=uuid) as host:
                found = recovery.recover(host, request, callbacks, cancel)
            message["recovered"].append(asdict(found))
        except Exception as e:
            message["error"] = _plain_error(e)
    client.finish(message)


class _Worker:
    """Does what the first message of the caller asks for."""

    def __init__(self, channel: Channel, message: Message) -> None:
        self._channel = channel
        self.request = request_from_plain(message["request"])
        self._hooks: bool = message["hooks"]
        self._log_level: int = message["log_level"]

    @property
    def watch(self) -> bool:
        """Whether to start a monitor if no process watches the domain afterwards."""
        return getattr(self.request, "monitor", False)

    def work(self, supervisor: SupervisorLink | None = None) -> None:
        """Run the operation."""
        cancel = Cancel()
        signal.signal(
            signal.SIGTERM, lambda *_: threading.Thread(target=cancel.set, daemon=True).start()
        )
        client = self.listen(supervisor)
        threading.Thread(target=client.listen, args=(cancel,), daemon=True).start()
        serve(self.request, client, self._callbacks(client, cancel, supervisor), cancel)

    def listen(self, supervisor: SupervisorLink | None = None) -> ClientLink:
        """Make the link to the caller, and send all log records there from now on."""
        client = ClientLink(self._channel, supervisor)
        logger = logging.getLogger("pyxlsnap")
        logger.addHandler(LogSender(client, self.request))
        logger.setLevel(self._log_level)
        return client

    def _callbacks(
        self, client: ClientLink, cancel: Cancel, supervisor: SupervisorLink | None
    ) -> Callbacks:
        start = supervisor.start_monitor if supervisor else launch.start_monitor
        prepare = supervisor.prepare_monitor if supervisor and self.watch else None
        found = Callbacks(
            on_progress=client.progress,
            on_event=client.event,
            leave=lambda error: client.leave({"error": error_to_plain(error)}),
            share_lock=client.share_lock,
            start_monitor=start if self.watch else None,
            prepare_monitor=prepare,
            will_ask_qemu=supervisor.load_qmp if supervisor else modules.load_qmp,
        )
        if not self._hooks:
            return found
        return replace(found, before_suspend=partial(client.ask, cancel=cancel))


def main() -> None:
    """Serve one request. It comes over the socket that is the standard input."""
    fresh_signals()  # the caller may have changed them
    raise_limits()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller cancels over the socket
    sock = socket.socket(fileno=os.dup(0))  # not inherited: a domain's QEMU would keep it open
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    close_in_children(sock.fileno())
    channel = Channel(sock)
    message = channel.receive()
    if message is None:
        return
    worker = _Worker(channel, message)
    modules.load(worker.request)
    if isinstance(worker.request, RecoverRequest) or not changes_something(worker.request):
        worker.work()
    elif death := supervise(worker.work):
        recover_from(death, worker.listen(), watch=worker.watch)
