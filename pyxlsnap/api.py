"""The high level: each call runs in a worker process of its own and returns when it has ended.

Nothing of the calling process is touched, whatever libxl does. If the caller dies, the worker
rolls back; if the worker dies, the caller recovers.
"""

import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from pyxlsnap import wire
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.errors import (
    Interrupted,
    NeedsAttention,
    OperationFailed,
    PyxlsnapError,
    UsageError,
    WorkerDied,
    from_wire,
)
from pyxlsnap.journal import unlock
from pyxlsnap.model import (
    Artefact,
    OnProgress,
    Progress,
    Recovered,
    Reverted,
    RunState,
    Snapshot,
    SnapshotConfig,
)

log = logging.getLogger("pyxlsnap")

_EXIT_S = 10.0
_STDERR_BYTES = 4096

StrPath = str | os.PathLike[str]


def create_snapshot(
    domain: str,
    *,
    cfgfile: StrPath | None = None,
    name: str | None = None,
    config: SnapshotConfig | None = None,
    live: bool = False,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Snapshot:
    """Take a snapshot of a running or paused domain: its memory, and its disks at the same instant.

    :param domain: name, domid or uuid.
    :param cfgfile: the file to read the snapshot's name, memory file and disks from.
    :param name: the snapshot's name, if the cfgfile has none (the file wins, with a warning).
    :param config: all of it as a value, instead of cfgfile and name.
    :param live: let the domain run while its memory is written.
    :param on_progress: called on the calling thread. What it raises cancels the operation and
        reaches the caller after the rollback.
    :param cancel: a token; when it is set, the operation is rolled back.
    :raises UsageError: name, file or option is wrong. Nothing was tried.
    :raises Refused: it cannot be done, and why. Nothing was tried.
    :raises OperationFailed: it failed and was undone: guest, disks and files are as before.
    :raises Interrupted: it was cancelled; the same.
    :raises NeedsAttention: it failed and something is left; the error says what, and the command
        that finishes it.
    """
    if config is not None and (cfgfile, name) != (None, None):
        raise UsageError("give either config, or cfgfile and name")
    if config is not None and config.memory_path:
        config = replace(config, memory_path=_absolute(config.memory_path))
    request: wire.Message = {
        "operation": "create",
        "domain": domain,
        "cfgfile": _absolute(cfgfile) if cfgfile is not None else None,
        "config": asdict(config or SnapshotConfig(name=name)),
        "live": live,
    }
    values = _run(request, on_progress, cancel)
    artefacts = tuple(Artefact(**a) for a in values.pop("artefacts"))
    warnings = tuple(values.pop("warnings"))
    state = RunState(values.pop("state"))
    return Snapshot(**values, artefacts=artefacts, warnings=warnings, state=state)


def revert_snapshot(
    domain: str,
    cfgfile: StrPath,
    *,
    running: bool = False,
    force: bool = False,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Reverted:
    """Bring a domain back to a snapshot. What it has done since is lost.

    :param domain: name, domid or uuid; it may be off.
    :param cfgfile: the file that :func:`create_snapshot` wrote.
    :param running: the domain runs afterwards, even if it was paused in the snapshot.
    :param force: do it even if it is risky.
    :param on_progress, cancel: as with :func:`create_snapshot`; once the domain is destroyed the
        revert goes on to its end.
    :raises UsageError, Refused: nothing was tried.
    :raises Risky: nothing was tried; ``force`` would do it.
    :raises OperationFailed, Interrupted: it ended before anything was changed.
    :raises NeedsAttention: it failed after the domain was destroyed; run it again to finish.
    """
    request: wire.Message = {
        "operation": "revert",
        "domain": domain,
        "cfgfile": _absolute(cfgfile),
        "running": running,
        "force": force,
    }
    values = _run(request, on_progress, cancel)
    values["state"] = RunState(values["state"])
    values["disks"], values["warnings"] = tuple(values["disks"]), tuple(values["warnings"])
    return Reverted(**values)


def recover(uuid: str) -> Recovered:
    """Finish what an operation that was killed had begun on a domain.

    :raises Busy: the operation is still under way.
    :raises NeedsAttention: something is left that needs a person.
    """
    values = _run({"operation": "recover", "domain": uuid}, None, None)
    return Recovered(lines=tuple(values["lines"]), rolled_back=values["rolled_back"])


def _absolute(path: StrPath) -> str:
    return str(Path(path).absolute())  # the worker starts in /


def _run(request: wire.Message, on_progress: OnProgress | None, cancel: Cancel | None) -> Any:
    worker = _Worker(request, on_progress or (lambda _: None))
    try:
        with (cancel or Cancel()).armed(worker.cancel):
            return worker.result()
    except Cancelled:
        raise Interrupted("cancelled before it began", step="start") from None
    except WorkerDied as died:
        worker.let_go_of_locks()  # the recovery takes them
        if request["operation"] == "recover":
            raise _not_recovered(died, request["domain"]) from died
        raise _recovered(died, worker.locked) from died
    finally:
        worker.close()


def _recovered(died: WorkerDied, uuids: list[str]) -> PyxlsnapError:
    """The worker is dead: do what it would have done."""
    done: list[str] = []
    stands: list[str] = []
    try:
        for uuid in uuids:
            recovered = recover(uuid)
            (done if recovered.rolled_back else stands).extend(recovered.lines)
    except NeedsAttention as e:
        return NeedsAttention(f"{died}; {e}", step=e.step, left=e.left, finish=e.finish)
    except PyxlsnapError as e:
        return NeedsAttention(
            f"{died}; recovering failed: {e}",
            step="recover",
            left=[str(e)],
            finish="; ".join(f"pyxlsnap snapshot-recover {uuid}" for uuid in uuids),
        )
    if stands:  # it had done its work
        return NeedsAttention(f"{died}; {'; '.join(stands)}", step="worker", left=stands)
    return OperationFailed(f"{died}; everything is as before", step="worker", undone=done)


def _not_recovered(died: WorkerDied, uuid: str) -> NeedsAttention:
    """A recovery's worker is dead: another one would end likewise."""
    return NeedsAttention(
        f"recovering {uuid} failed: {died}",
        step="recover",
        left=[f"what the journal of {uuid} says"],
        finish=f"pyxlsnap snapshot-recover {uuid}",
    )


class _Worker:
    """The worker process, seen from the caller."""

    def __init__(self, request: wire.Message, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._failed: BaseException | None = None
        self._send_lock = threading.Lock()
        self._answered = False
        #: uuids of the domains whose locks it has taken
        self.locked: list[str] = []
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  close() does
        ours, theirs = socket.socketpair()
        self._channel = wire.Channel(ours)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pyxlsnap.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                cwd="/",
                env=_environment(),
            )
        try:
            self._channel.send(request | {"log_level": log.getEffectiveLevel()})
        except OSError:
            pass  # it has died already, which the reader sees

    def cancel(self) -> bool:
        """Ask it to stop; it answers with its result all the same."""
        with self._send_lock:
            try:
                self._channel.send({"cancel": True})
            except OSError:
                pass  # it has gone, which the reader sees
        return True

    def result(self) -> Any:
        """Wait for the end of the operation.

        An exception here, be it KeyboardInterrupt or one from the progress callback, cancels the
        operation; it is raised when the worker has rolled back.
        """
        while message := self._next():
            if "result" in message or "error" in message:
                return self._outcome(message)
        raise WorkerDied(self._epitaph(), stderr=self._read_stderr())

    def _next(self) -> wire.Message | None:
        while True:
            try:
                if message := self._channel.receive():
                    self._handle(message)
                return message
            except BaseException as e:
                self._failed = self._failed or e
                self.cancel()

    def _outcome(self, message: wire.Message) -> Any:
        self._answered = True
        error = from_wire(message["error"]) if "error" in message else None
        if isinstance(error, NeedsAttention):  # it matters more than why it was cancelled
            raise error from self._failed
        if self._failed:
            raise self._failed
        if error:
            raise error
        return message["result"]

    def _handle(self, message: wire.Message) -> None:
        if "progress" in message and not self._failed:
            self._on_progress(Progress(**message["progress"]))
        elif "log" in message:
            record = wire.log_from_wire(message["log"])
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)
        elif "lock" in message:
            self.locked.append(message["lock"])

    def _epitaph(self) -> str:
        status = self._process.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        said = self._read_stderr().strip().splitlines()
        return f"the worker process {how}" + (f": {said[-1]}" if said else "")

    def _read_stderr(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _STDERR_BYTES))
        return self._stderr.read().decode("utf-8", "replace")

    def let_go_of_locks(self) -> None:
        """It is dead: the locks are ours alone now, and fall."""
        for fd in self._channel.fds:
            unlock(fd)

    def close(self) -> None:
        """Let go of everything; the process has ended, or does so now.

        One that has not answered is rolling back, which must not be disturbed.
        """
        self._channel.close()
        try:
            self._process.wait(_EXIT_S if self._answered else None)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()


def _environment() -> Mapping[str, str]:
    """The worker imports what we import, from where we import it."""
    paths = [str(Path(p).absolute()) for p in sys.path if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
