"""What a caller asks for, as a typed value: from the front door to the sequence.

The same value travels to the worker process as JSON, and is kept in the journal. Beside it,
:class:`Callbacks` are what an operation calls while it runs.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, get_args

from pyxlsnap.hooks import Hook
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.results import OnEvent, OnProgress
from pyxlsnap.serialize import Message, rebuild
from pyxlsnap.text import command

#: gets the uuid and the descriptor of a domain's lock as soon as the lock is held
ShareLock = Callable[[str, int], None]
#: starts a process that watches the domain of a uuid (:mod:`pyxlsnap.monitor`)
StartMonitor = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """Take a snapshot: see :func:`pyxlsnap.create_snapshot`."""

    operation: ClassVar[str] = "create"

    domain: str
    #: absolute; "" if ``config`` says everything
    cfgfile: str = ""
    #: what the caller said; what the cfgfile says goes first
    config: SnapshotConfig = field(default_factory=SnapshotConfig)
    live: bool = False
    #: seconds; ``None``: no limit
    max_downtime: float | None = None
    #: start a monitor of ours if xl's own leaves at the suspend
    monitor: bool = True
    #: plan only
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RevertRequest:
    """Go back to a snapshot: see :func:`pyxlsnap.revert_snapshot`."""

    operation: ClassVar[str] = "revert"

    domain: str
    #: absolute
    cfgfile: str
    #: what the cfgfile says; ``None``: it has not been read yet
    config: SnapshotConfig | None = None
    running: bool = False
    force: bool = False
    keep_current: bool = False
    #: start a monitor for the restored domain
    monitor: bool = True
    #: plan only
    dry_run: bool = False
    #: seconds to wait for another operation on the domain
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverRequest:
    """Finish what was killed: see :func:`pyxlsnap.recover`."""

    operation: ClassVar[str] = "recover"

    #: ``None``: every domain
    domain: str | None = None
    #: start the monitors that the killed operations would have started
    monitor: bool = True
    #: seconds to wait for another operation on the domain
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorRequest:
    """Act on a guest's own shutdowns: see :func:`pyxlsnap.monitor_domain`."""

    operation: ClassVar[str] = "monitor"

    domain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeasibilityRequest:
    """Look whether a snapshot is possible: see :func:`pyxlsnap.can_snapshot`."""

    operation: ClassVar[str] = "feasibility"

    domain: str


Request = CreateRequest | RevertRequest | RecoverRequest | MonitorRequest | FeasibilityRequest

_CLASSES: dict[str, type[Request]] = {cls.operation: cls for cls in get_args(Request)}


def changes_something(request: Request) -> bool:
    """Whether the operation changes a domain, its disks or files; else it only looks."""
    match request:
        case CreateRequest() | RevertRequest():
            return not request.dry_run
        case RecoverRequest():
            return True
    return False


def revert_command(request: RevertRequest) -> str:
    """The command line that makes the same revert, for a person to run."""
    words = ["pyxlsnap", "snapshot-revert", request.domain, request.cfgfile]
    words += ["--running"] * request.running + ["--force"] * request.force
    return command(words)


def request_to_plain(request: Request) -> Message:
    """A request as plain values that JSON can carry."""
    return {"operation": request.operation, **asdict(request)}


def request_from_plain(values: Message) -> Request:
    """Rebuild the request that :func:`request_to_plain` took apart.

    :raises KeyError, TypeError, ValueError: the values are none.
    """
    fields = dict(values)
    request: Request = rebuild(_CLASSES[fields.pop("operation")], fields)
    return request


def _ignore(_: Any) -> None:
    """Nobody wants to know."""


def _keep_to_itself(_uuid: str, _fd: int) -> None:
    """Nobody shares the lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """What an operation calls while it runs, in the process and on the thread that runs it."""

    on_progress: OnProgress = _ignore
    #: of a watch: a domain shut down, and the configured action was done
    on_event: OnEvent = _ignore
    share_lock: ShareLock = _keep_to_itself
    #: everything is prepared, and the guest is suspended next; what this raises ends the operation
    before_suspend: Hook = _ignore
    #: ``None``: nobody is to watch the domain; a result has a warning then
    start_monitor: StartMonitor | None = None
