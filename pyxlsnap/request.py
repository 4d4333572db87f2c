"""The requests: one typed value for each operation, from :mod:`pyxlsnap.api` to the sequence.

The worker process gets the request as JSON, and the journal stores it. :class:`Callbacks` has the
functions that an operation calls while it runs.
"""

from collections.abc import Callable
from dataclasses import asdict, field
from typing import Any, ClassVar, Protocol, get_args

from pyxlsnap import disk_item
from pyxlsnap.dataclass import dataclass
from pyxlsnap.errors import PyxlsnapError, UsageError
from pyxlsnap.hooks import Hook
from pyxlsnap.model import DiskRequest, SnapshotConfig
from pyxlsnap.results import OnEvent, OnProgress
from pyxlsnap.serialize import Message, rebuild
from pyxlsnap.text import command

#: called with the uuid and the descriptor of a domain's lock when the lock is taken
ShareLock = Callable[[str, int], None]
#: starts a monitor for the domain with this uuid (:mod:`pyxlsnap.monitor`)
StartMonitor = Callable[[str], None]


class ComingWatch(Protocol):
    """A process that is to watch a domain, which may not be there yet."""

    def begin(self) -> None:
        """Have the process find the domain and watch it. Does not wait, and raises nothing."""

    def has_begun(self) -> bool:
        """Wait until the watch has begun.

        :returns: false if the process has ended without a word: another is to be started.
        :raises OperationFailed: the watch could not be started.
        """

    def close(self) -> None:
        """Forget the process; it ends if its watch was not to begin. Idempotent."""


#: starts the process of a :class:`ComingWatch`, for the domain with this uuid
PrepareMonitor = Callable[[str], ComingWatch]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """Take a snapshot: see :func:`pyxlsnap.create_snapshot`."""

    operation: ClassVar[str] = "create"

    domain: str
    #: absolute path; "" if there is no cfgfile
    cfgfile: str = ""
    #: the settings of the caller; a setting in the cfgfile takes precedence
    config: SnapshotConfig = field(default_factory=SnapshotConfig)
    #: let the domain run while its memory is written
    live: bool = False
    #: limit of the expected downtime, in seconds; ``None``: no limit
    max_downtime: float | None = None
    #: limit for the writing of memory while the domain runs, in MiB a second; ``None``: no limit
    max_rate: float | None = None
    #: start a monitor if xl's own process for the domain exits at the suspend
    monitor: bool = True
    #: only plan
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RevertRequest:
    """Revert to a snapshot: see :func:`pyxlsnap.revert_snapshot`."""

    operation: ClassVar[str] = "revert"

    domain: str
    #: absolute path
    cfgfile: str
    #: the content of the cfgfile; ``None`` before the cfgfile is read
    config: SnapshotConfig | None = None
    #: unpause the domain afterwards, even if it was paused in the snapshot
    running: bool = False
    #: leave the domain paused, even if it ran in the snapshot
    paused: bool = False
    #: revert although the revert is risky
    force: bool = False
    #: first take a snapshot of the present state
    keep_current: bool = False
    #: start a monitor for the restored domain
    monitor: bool = True
    #: only plan
    dry_run: bool = False
    #: seconds to wait for another operation on the domain
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneRequest:
    """Make a new domain from a snapshot: see :func:`pyxlsnap.clone_snapshot`."""

    operation: ClassVar[str] = "clone"

    #: the name of the new domain
    domain: str
    #: absolute path
    cfgfile: str
    #: the content of the cfgfile; ``None`` before the cfgfile is read
    config: SnapshotConfig | None = None
    #: the uuid of the new domain; "": a new one, or that of the clone that is replaced
    uuid: str = ""
    #: where its disks are made; a disk that is not in the list is made in the usual place
    disks: tuple[DiskRequest, ...] = ()
    #: the bridge for its network devices; "": that of each in the snapshot
    bridge: str = ""
    #: its configuration (libxl's JSON) as the caller has changed it; "": not changed
    edited: str = ""
    #: unpause the domain afterwards, even if it was paused in the snapshot
    running: bool = False
    #: leave the domain paused, even if it ran in the snapshot
    paused: bool = False
    #: make the clone although that is risky
    force: bool = False
    #: destroy a clone of this name that was made from the same snapshot, and make it anew
    replace: bool = False
    #: start a monitor for the new domain
    monitor: bool = True
    #: only plan
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneConfigurationRequest:
    """Return the configuration that a clone would have, for the caller to change."""

    operation: ClassVar[str] = "clone-configuration"

    clone: CloneRequest

    @property
    def domain(self) -> str:
        """The name of the new domain."""
        return self.clone.domain


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteCloneRequest:
    """Destroy a clone and delete its disks: see :func:`pyxlsnap.delete_clone`."""

    operation: ClassVar[str] = "delete-clone"

    #: the clone's name
    domain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest:
    """Find what a cfgfile stands for: see :func:`pyxlsnap.read_snapshot`."""

    operation: ClassVar[str] = "read"
    #: the cfgfile and its memory file say which domain
    domain: ClassVar[str | None] = None

    #: absolute path
    cfgfile: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRequest:
    """Delete a snapshot: see :func:`pyxlsnap.delete_snapshot`."""

    operation: ClassVar[str] = "delete"
    #: the cfgfile and its memory file say which domain
    domain: ClassVar[str | None] = None

    #: absolute path
    cfgfile: str
    #: the content of the cfgfile; ``None`` before the cfgfile is read
    config: SnapshotConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverRequest:
    """Finish or undo operations that were killed: see :func:`pyxlsnap.recover`."""

    operation: ClassVar[str] = "recover"

    #: ``None``: all domains
    domain: str | None = None
    #: start the monitors that the killed operations would have started
    monitor: bool = True
    #: seconds to wait for another operation on the domain
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorRequest:
    """Act on a domain's own reboot, power-off and crash: see :func:`pyxlsnap.monitor_domain`."""

    operation: ClassVar[str] = "monitor"

    domain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeasibilityRequest:
    """Check whether a snapshot is possible: see :func:`pyxlsnap.can_snapshot`."""

    operation: ClassVar[str] = "feasibility"

    domain: str


Request = (
    CreateRequest
    | RevertRequest
    | CloneRequest
    | CloneConfigurationRequest
    | DeleteCloneRequest
    | ReadRequest
    | DeleteRequest
    | RecoverRequest
    | MonitorRequest
    | FeasibilityRequest
)

#: what can be done again and again in copies of one process
Repeatable = RevertRequest | CloneRequest

_CLASSES: dict[str, type[Request]] = {cls.operation: cls for cls in get_args(Request)}


def changes_something(request: Request) -> bool:
    """Whether the operation may change a domain, its disks or files."""
    match request:
        case CreateRequest() | RevertRequest() | CloneRequest():
            return not request.dry_run
        case DeleteRequest() | DeleteCloneRequest() | RecoverRequest():
            return True
    return False


def in_words(request: Request) -> str:
    """The operation and its domain, as the subject of a message."""
    if isinstance(request, DeleteRequest | ReadRequest):
        return f"the {request.operation} of {request.cfgfile}"
    noun = {
        "recover": "recovery",
        "feasibility": "feasibility check",
        "clone-configuration": "clone",
        "delete-clone": "delete of the clone",
    }
    operation = noun.get(request.operation, request.operation)
    return f"the {operation} of {request.domain or 'every domain'}"


def revert_command(request: RevertRequest) -> str:
    """The command that does the same revert, for a person to run."""
    words = ["pyxlsnap", "snapshot-revert", request.domain, request.cfgfile]
    words += ["--running"] * request.running + ["--paused"] * request.paused
    words += ["--force"] * request.force + ["--no-monitor"] * (not request.monitor)
    return command(words)


def clone_command(request: CloneRequest) -> str:
    """The command that makes the same clone, for a person to run.

    No command takes a configuration that the caller has changed, and without the change the clone
    may be on another bridge: the text then says which function is to be called.
    """
    if request.edited:
        return "call pyxlsnap.clone_snapshot again, with the same arguments and the same edit"
    words = ["pyxlsnap", "snapshot-clone", request.cfgfile, request.domain]
    words += [w for disk in request.disks for w in ("--disk", disk_item.render(disk))]
    words += ["--bridge", request.bridge] if request.bridge else []
    words += ["--running"] * request.running + ["--paused"] * request.paused
    words += ["--replace"] * request.replace + ["--force"] * request.force
    words += ["--no-monitor"] * (not request.monitor)
    return command(words)


def check_request(request: Request) -> None:
    """Make sure that the worker process and the journal can take a request.

    :raises UsageError: a value is not of the type that the function's signature says, or excludes
        another one.
    """
    if getattr(request, "running", False) and getattr(request, "paused", False):
        raise UsageError("running and paused exclude each other: give one of them")
    try:
        request_from_plain(request_to_plain(request))
    except (TypeError, ValueError) as e:
        raise UsageError(f"{request.operation}: {e}") from e


def request_to_plain(request: Request) -> Message:
    """A request as plain values."""
    return {"operation": request.operation, **asdict(request)}


def request_from_plain(values: Message) -> Request:
    """Make a request from the values of :func:`request_to_plain`.

    :raises KeyError, TypeError, ValueError: the values are no request.
    """
    fields = dict(values)
    request: Request = rebuild(_CLASSES[fields.pop("operation")], fields)
    return request


def _ignore(_: Any) -> None:
    """The default of a callback with one argument."""


def _share_with_nobody(_uuid: str, _fd: int) -> None:
    """The default of ``share_lock``."""


def _ask_nobody() -> None:
    """The default of ``will_ask_qemu``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """The functions that an operation calls while it runs, in its process and on its thread."""

    on_progress: OnProgress = _ignore
    #: called by a monitor: a domain shut down, and the configured action was performed
    on_event: OnEvent = _ignore
    share_lock: ShareLock = _share_with_nobody
    #: called if the operation is cancelled while it must wait: its caller gets this error at once,
    #: and the operation goes on alone
    leave: Callable[[PyxlsnapError], None] = _ignore
    #: called just before the suspend, when all is prepared; an exception ends the operation
    before_suspend: Hook = _ignore
    #: ``None``: start no monitor; the result then has a warning
    start_monitor: StartMonitor | None = None
    #: the same in two steps, for a domain that is only restored yet; ``None``: in one
    prepare_monitor: PrepareMonitor | None = None
    #: called before the domain is locked, if the operation or its undo may talk to its QEMU
    will_ask_qemu: Callable[[], None] = _ask_nobody
