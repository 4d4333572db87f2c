"""The worker process: runs one operation, and rolls it back when its caller goes away.

Started by :mod:`pyxlsnap.api` as ``python -m pyxlsnap.worker``, with a socket for its standard
input. A process of its own because libxl may abort it, forks without exec, and cares who owns
SIGCHLD: none of that may reach the caller. What changes something has a keeper
(:mod:`pyxlsnap.worker.supervisor`), which recovers at once if it is killed.
"""

import logging
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pyxlsnap import cfgfile, serialize
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.create import operation as create
from pyxlsnap.create.feasibility import feasibility
from pyxlsnap.errors import Interrupted, OperationFailed, PyxlsnapError
from pyxlsnap.guest.protocols import Host
from pyxlsnap.hooks import Moment
from pyxlsnap.linux.locks import RIVAL_S
from pyxlsnap.linux.processes import fresh_signals
from pyxlsnap.model import SnapshotConfig, check_name
from pyxlsnap.monitor import launch
from pyxlsnap.monitor.actions import monitor
from pyxlsnap.recovery import operation as recovery
from pyxlsnap.results import DomainEvent, Feasibility, Plan, Progress, Recovered, Reverted, Snapshot
from pyxlsnap.revert import operation as revert
from pyxlsnap.serialize import Message, to_wire
from pyxlsnap.worker.channel import Channel
from pyxlsnap.worker.supervisor import Death, Kept, keep
from pyxlsnap.xen.callbacks import close_in_children
from pyxlsnap.xen.toolstack import Toolstack

Result = Snapshot | Reverted | Recovered | Plan | Feasibility | None

log = logging.getLogger("pyxlsnap.worker")  # __name__ is "__main__" here


class Caller:
    """The other end of the socket. Sending never blocks and never fails: a thread does it.

    A caller that is stopped, or gone, must not hold up a guest that is suspended.
    """

    def __init__(self, channel: Channel, kept: Kept | None = None) -> None:
        self._channel = channel
        self._kept = kept
        self._queue: queue.SimpleQueue[tuple[Message, int | None] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="pyxlsnap-send", daemon=True)
        self._thread.start()

    def send(self, message: Message, fd: int | None = None) -> None:
        """Send a message some time soon; ``fd`` stays open until :meth:`finish`."""
        self._queue.put((message, fd))

    def progress(self, progress: Progress) -> None:
        """Report progress."""
        self.send({"progress": asdict(progress)})

    def event(self, event: DomainEvent) -> None:
        """Report what a domain did."""
        self.send({"event": asdict(event)})

    def ask(self, moment: Moment, cancel: Cancel) -> None:
        """Have the caller's hook called before a domain is suspended, and wait for that.

        :raises OperationFailed: it failed.
        :raises Cancelled: the caller is gone, or does not want to any more.
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
        """Let the caller hold the lock, too, and the keeper."""
        close_in_children(fd)
        if self._kept:
            self._kept.share_lock(uuid, fd)
        self.send({"lock": uuid}, fd)

    def finish(self, message: Message) -> None:
        """Send the last message and see it off. Later ones go nowhere."""
        self._queue.put((message, None))
        self._queue.put(None)
        self._thread.join()
        if self._kept:
            self._kept.answered()

    def listen(self, cancel: Cancel) -> None:
        """Take what the caller says; set the token when it says so, or is gone."""
        while (message := self._channel.receive()) and not message.get("cancel"):
            if "hooked" in message:
                self._answers.put(message["hooked"])
        cancel.set()

    def _send(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._channel.send(*item)
            except OSError:
                pass  # it has gone; listen() sees that, too


class _LogSender(logging.Handler):
    """Sends log records to the caller; they say of which operation they are."""

    def __init__(self, caller: Caller, request: Message) -> None:
        super().__init__()
        self._caller = caller
        self._about = {"operation": request["operation"], "domain": request["domain"] or ""}

    def emit(self, record: logging.LogRecord) -> None:
        self._caller.send({"log": self._about | serialize.log_to_wire(record)})


def serve(request: Message, caller: Caller, cancel: Cancel) -> None:
    """Run the operation that a request names, and send its result or error."""

    def work() -> None:
        # Before Xen is asked for: what is wrong here is wrong anywhere.
        config = _config(request)
        with Toolstack(operation=request["operation"], domain=request["domain"] or "") as host:
            # Before libxl is closed: if it aborts us there, what was done is done, and said.
            caller.finish(_outcome(lambda: perform(host, request, config, caller, cancel)))

    caller.finish(_outcome(work))  # if there was no answer yet


def _outcome(do: Callable[[], Result]) -> Message:
    """What came of it, as the last message."""
    try:
        result = do()
    except Cancelled:  # of a watch or a look: there is nothing to roll back
        return {"error": to_wire(Interrupted("cancelled", step="look"))}
    except Exception as e:
        return {"error": _error_to_wire(e)}
    return {"result": asdict(result) if result else None}


def _error_to_wire(error: Exception) -> Message:
    """An error for the caller; one that is none of ours is a bug."""
    if isinstance(error, PyxlsnapError):
        return to_wire(error)
    log.error("internal error", exc_info=error)
    return to_wire(PyxlsnapError(f"internal error: {type(error).__name__}: {error}"))


def perform(
    host: Host, request: Message, config: SnapshotConfig, caller: Caller, cancel: Cancel
) -> Result:
    """Run the operation that a request names."""
    operation, domain = request["operation"], request["domain"]
    start_monitor = launch.start_monitor if request.get("monitor") else None
    if operation == "monitor":
        monitor(host, domain, on_event=caller.event, cancel=cancel)
        return None
    if operation == "feasibility":
        return feasibility(host, domain, check=cancel.check)
    if operation == "recover":
        return recovery.recover(
            host,
            domain,
            wait_s=request["wait_s"],
            share_lock=caller.share_lock,
            start_monitor=start_monitor,
        )
    how: dict[str, Any] = {
        "on_progress": caller.progress,
        "cancel": cancel,
        "share_lock": caller.share_lock,
    }
    if not request.get("dry_run") and request.get("hooks"):
        how["before_suspend"] = lambda moment: caller.ask(moment, cancel)
    if operation == "create":
        how |= {"live": request["live"], "max_downtime": request.get("max_downtime")}
        if request.get("dry_run"):
            return create.preview(host, domain, config, **how)
        return create.create(host, domain, config, **how, start_monitor=start_monitor)
    how |= {key: request[key] for key in ("running", "force", "keep_current")}
    path = Path(request["cfgfile"])
    if request.get("dry_run"):
        return revert.preview(host, domain, config, path, **how)
    return revert.revert(host, domain, config, path, **how, start_monitor=start_monitor)


def _config(request: Message) -> SnapshotConfig:
    """What the caller said, overridden by the cfgfile if there is one."""
    said: SnapshotConfig = serialize.rebuild(SnapshotConfig, request.get("config") or {})
    if said.name is not None:
        check_name(said.name)
    if not request.get("cfgfile"):
        return said
    config = cfgfile.read(Path(request["cfgfile"]))
    if said.name and config.name and said.name != config.name:
        log.warning("the name is %s, as the cfgfile says, not %s", config.name, said.name)
    memory = config.memory_path  # relative to the file, as it is for a revert; we are in /
    if memory:
        memory = str(Path(request["cfgfile"]).parent / memory)
    return replace(config, name=config.name or said.name, memory_path=memory)


def recover_from(death: Death, caller: Caller, *, watch: bool) -> None:
    """The process that did the work is dead: recover, and tell the caller of both."""
    message: Message = {"died": death.how, "recovered": []}
    for uuid in death.uuids:
        try:
            with Toolstack(operation="recover", domain=uuid) as host:
                found = recovery.recover(
                    host,
                    uuid,
                    wait_s=RIVAL_S,
                    share_lock=caller.share_lock,
                    start_monitor=launch.start_monitor if watch else None,
                )
            message["recovered"].append(asdict(found))
        except Exception as e:
            message["error"] = _error_to_wire(e)
    caller.finish(message)


def _listen(channel: Channel, request: Message, kept: Kept | None = None) -> Caller:
    """The caller, with whatever is logged from now on going there."""
    caller = Caller(channel, kept)
    logger = logging.getLogger("pyxlsnap")
    logger.addHandler(_LogSender(caller, request))
    logger.setLevel(request["log_level"])
    return caller


def _work(channel: Channel, request: Message, kept: Kept | None) -> None:
    cancel = Cancel()
    signal.signal(
        signal.SIGTERM, lambda *_: threading.Thread(target=cancel.set, daemon=True).start()
    )
    caller = _listen(channel, request, kept)
    threading.Thread(target=caller.listen, args=(cancel,), daemon=True).start()
    serve(request, caller, cancel)


def main() -> None:
    """Serve the one request that comes over the socket which is the standard input."""
    fresh_signals()  # whatever the caller's daemon does with them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller cancels over the socket
    sock = socket.socket(fileno=os.dup(0))  # not inherited: a domain's QEMU would keep it for ever
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    close_in_children(sock.fileno())
    channel = Channel(sock)
    request = channel.receive()
    if request is None:
        return
    if request["operation"] not in ("create", "revert") or request.get("dry_run"):
        _work(channel, request, None)
    elif death := keep(lambda kept: _work(channel, request, kept)):
        recover_from(death, _listen(channel, request), watch=bool(request["monitor"]))


if __name__ == "__main__":
    main()
