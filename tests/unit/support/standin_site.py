"""In a worker process: the scenarios of a test in the place of the operations that need Xen.

Python imports ``sitecustomize`` before the worker, and that calls :func:`install`. This module is
all that knows how the worker calls an operation: a scenario sees a :class:`Call`.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import NoReturn, cast

import pyxlsnap.clone.operation
import pyxlsnap.contents
import pyxlsnap.create.feasibility
import pyxlsnap.create.operation
import pyxlsnap.delete.operation
import pyxlsnap.monitor.actions
import pyxlsnap.monitor.process
import pyxlsnap.recovery.operation
import pyxlsnap.revert.operation
import pyxlsnap.xen.toolstack
from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import PyxlsnapError
from pyxlsnap.guest.protocols import Host
from pyxlsnap.hooks import Hook, Moment
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.model import RunState, SnapshotConfig
from pyxlsnap.monitor.launch import is_to_begin
from pyxlsnap.request import (
    Callbacks,
    CloneRequest,
    CreateRequest,
    DeleteRequest,
    FeasibilityRequest,
    PrepareMonitor,
    ReadRequest,
    RecoverRequest,
    Request,
    RevertRequest,
    ShareLock,
    StartMonitor,
)
from pyxlsnap.results import (
    CloneConfiguration,
    Cloned,
    Deleted,
    Feasibility,
    OnEvent,
    OnProgress,
    Plan,
    Progress,
    Recovered,
    Reverted,
    Snapshot,
)
from pyxlsnap.snapshot_info import SnapshotInfo
from tests.unit.support.values import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of an operation, as a scenario sees it; what the operation has not is as here."""

    #: the directory for traces
    here: Path
    domain: str
    #: what was asked for: of a create, a revert, a clone, their plans, and a read
    request: Request | None = None
    wanted: SnapshotConfig = field(default_factory=SnapshotConfig)
    live: bool = False
    max_downtime: float | None = None
    max_rate: float | None = None
    #: running, force and keep_current of a revert; uuid, replace and edited of a clone
    options: Mapping[str, object] = field(default_factory=dict)
    on_progress: OnProgress = lambda _: None
    on_event: OnEvent = lambda _: None
    cancel: Cancel = field(default_factory=Cancel)
    share_lock: ShareLock = lambda _uuid, _fd: None
    before_suspend: Hook | None = None
    start_monitor: StartMonitor | None = None
    prepare_monitor: PrepareMonitor | None = None
    will_ask_qemu: Callable[[], None] = lambda: None
    leave: Callable[[PyxlsnapError], None] = lambda _: None
    #: the pipe of a watching process
    writer: int = -1
    #: a recovery's
    lock: DomainLock | None = None

    def mark(self, name: str) -> None:
        """Leave an empty file as a trace."""
        (self.here / name).touch()

    def say(self, what: object) -> None:
        """Leave the text of a value as a trace."""
        (self.here / "said").write_text(repr(what))

    def wait_for(self, name: str, *, there: bool = True) -> None:
        """Wait until a file is there, or is there no more."""
        end = time.monotonic() + 60
        while (self.here / name).exists() != there:
            assert time.monotonic() < end, name
            time.sleep(0.01)

    def wait_for_cancel(self) -> None:
        """Wait until the operation is cancelled."""
        end = time.monotonic() + 20
        while not self.cancel.is_set() and time.monotonic() < end:
            time.sleep(0.01)
        assert self.cancel.is_set()

    def report(self, phase: str, done: int = 0, expected: int = 0, iteration: int = 0) -> None:
        """Report progress."""
        self.on_progress(Progress(phase, done, expected, iteration))

    def take_lock(self) -> None:
        """Take the domain's lock, and share it with caller and supervisor."""
        lock = DomainLock(UUID, domain="vm1", directory=self.here / "run")
        self.share_lock(UUID, lock.fd)

    def ask(self) -> None:
        """Come to the point before the suspend."""
        assert self.before_suspend
        self.before_suspend(Moment("vm1", 7, UUID, RunState.RUNNING))


#: a scenario by the name of the operation that it stands in for
Scenarios = Mapping[str, Callable[[Call], object]]


def die(number: int = signal.SIGKILL) -> NoReturn:
    """Send this process a signal that ends it."""
    os.kill(os.getpid(), number)
    sleep()


def sleep() -> NoReturn:
    """Do nothing until somebody kills this process."""
    time.sleep(60)
    raise AssertionError("nobody has killed this process")


def install(here: str) -> None:
    """Put the scenarios that :class:`~tests.unit.support.standin.StandIn` has named in place."""
    names: dict[str, str] = json.loads((Path(here) / "site" / "scenarios.json").read_text())
    scenarios = {operation: _find(name) for operation, name in names.items()}
    _put_in_place(_Operations(Path(here), scenarios))


def _find(name: str) -> Callable[[Call], object]:
    module, _, function = name.partition(":")
    return cast(Callable[[Call], object], getattr(import_module(module), function))


class _Operations:
    """The operations as the worker calls them: each runs its scenario."""

    def __init__(self, here: Path, scenarios: Scenarios) -> None:
        self._here = here
        self._scenarios = scenarios

    def create(
        self, host: Host, request: CreateRequest, callbacks: Callbacks, cancel: Cancel
    ) -> Snapshot:
        call = replace(
            self._call(request, callbacks),
            live=request.live,
            max_downtime=request.max_downtime,
            max_rate=request.max_rate,
            cancel=cancel,
        )
        return cast(Snapshot, self._scenarios["create"](call))

    def revert(
        self, host: Host, request: RevertRequest, callbacks: Callbacks, cancel: Cancel
    ) -> Reverted:
        options = {key: getattr(request, key) for key in ("running", "force", "keep_current")}
        call = replace(self._call(request, callbacks), options=options, cancel=cancel)
        return cast(Reverted, self._scenarios["revert"](call))

    def clone(
        self, host: Host, request: CloneRequest, callbacks: Callbacks, cancel: Cancel
    ) -> Cloned:
        options = {key: getattr(request, key) for key in ("uuid", "replace", "edited")}
        call = replace(self._call(request, callbacks), options=options, cancel=cancel)
        return cast(Cloned, self._scenarios["clone"](call))

    def configuration(self, *_: object) -> CloneConfiguration:
        return CloneConfiguration(UUID, "{}")

    def delete(
        self, host: Host, request: DeleteRequest, callbacks: Callbacks, cancel: Cancel
    ) -> Deleted:
        """The cfgfile takes the place of the domain."""
        call = Call(
            here=self._here,
            domain=request.cfgfile,
            on_progress=callbacks.on_progress,
            share_lock=callbacks.share_lock,
            cancel=cancel,
        )
        return cast(Deleted, self._scenarios["delete"](call))

    def _call(
        self, request: CreateRequest | RevertRequest | CloneRequest, callbacks: Callbacks
    ) -> Call:
        asked = callbacks.before_suspend is not Callbacks().before_suspend
        return Call(
            here=self._here,
            domain=request.domain,
            request=request,
            wanted=request.config or SnapshotConfig(),
            on_progress=callbacks.on_progress,
            share_lock=callbacks.share_lock,
            before_suspend=callbacks.before_suspend if asked else None,
            start_monitor=callbacks.start_monitor,
            prepare_monitor=callbacks.prepare_monitor,
            will_ask_qemu=callbacks.will_ask_qemu,
            leave=callbacks.leave,
        )

    def recover(
        self, host: Host, request: RecoverRequest, callbacks: Callbacks, cancel: Cancel
    ) -> Recovered:
        domain = str(request.domain)
        lock = DomainLock(UUID, domain="vm1", directory=self._here / "run")
        (self._here / "recovered").write_text(domain)
        call = Call(
            here=self._here,
            domain=domain,
            share_lock=callbacks.share_lock,
            lock=lock,
            cancel=cancel,
            leave=callbacks.leave,
        )
        recovered = cast(Recovered, self._scenarios["recover"](call))
        lock.release()
        return recovered

    def feasibility(self, host: Host, request: FeasibilityRequest, cancel: Cancel) -> Feasibility:
        call = Call(here=self._here, domain=request.domain)
        return cast(Feasibility, self._scenarios["feasibility"](call))

    def monitor(self, host: Host, domain: str, *, on_event: OnEvent, cancel: Cancel) -> None:
        self._scenarios["monitor"](
            Call(here=self._here, domain=domain, on_event=on_event, cancel=cancel)
        )

    def watch(self, uuid: str, writer: int, *, waits: bool) -> int:
        if not waits or is_to_begin(writer):
            self._scenarios["watch"](Call(here=self._here, domain=uuid, writer=writer))
        else:
            (self._here / "not begun").touch()
        return 0

    def preview(
        self,
        host: Host,
        request: CreateRequest | RevertRequest | CloneRequest,
        callbacks: Callbacks,
        cancel: Cancel,
    ) -> Plan:
        call = replace(self._call(request, callbacks), cancel=cancel)
        return cast(Plan, self._scenarios["plan"](call))

    def read(self, request: ReadRequest, cancel: Cancel) -> SnapshotInfo:
        call = Call(here=self._here, domain="", request=request, cancel=cancel)
        return cast(SnapshotInfo, self._scenarios["read"](call))

    @contextmanager
    def toolstack(self, **_: object) -> Iterator[None]:
        yield
        self._scenarios["close"](Call(here=self._here, domain=""))


def _put_in_place(operations: _Operations) -> None:
    for module, name, function in (
        (pyxlsnap.create.operation, "create", operations.create),
        (pyxlsnap.create.operation, "preview", operations.preview),
        (pyxlsnap.revert.operation, "revert", operations.revert),
        (pyxlsnap.revert.operation, "preview", operations.preview),
        (pyxlsnap.clone.operation, "clone", operations.clone),
        (pyxlsnap.clone.operation, "preview", operations.preview),
        (pyxlsnap.clone.operation, "configuration", operations.configuration),
        (pyxlsnap.contents, "read", operations.read),
        (pyxlsnap.delete.operation, "delete", operations.delete),
        (pyxlsnap.recovery.operation, "recover", operations.recover),
        (pyxlsnap.monitor.actions, "monitor", operations.monitor),
        (pyxlsnap.monitor.process, "watch", operations.watch),
        (pyxlsnap.create.feasibility, "feasibility", operations.feasibility),
        (pyxlsnap.xen.toolstack, "Toolstack", operations.toolstack),
    ):
        setattr(module, name, function)
