"""The results of operations, and the reports of their progress: frozen dataclasses."""

from collections.abc import Callable, Mapping
from dataclasses import field

from pyxlsnap.dataclass import dataclass
from pyxlsnap.model import RunState


@dataclass(frozen=True, slots=True)
class Artefact:
    """Something that a snapshot created on the host, and how a person deletes it."""

    #: "memory file", "cfgfile" or "disk snapshot"
    kind: str
    #: the path, or the disk snapshot's name and the file or volume that contains it
    where: str
    #: the commands that delete it, or a text that says what to do
    delete: str
    #: the disk of a disk snapshot; "" for a file
    vdev: str = ""
    #: number of files in the disk's chain, including the disk itself, if the disk depends on this
    #: disk snapshot; ``None`` if it does not, or if the files could not be counted
    chain_depth: int | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an operation.

    The phases of a create are "checking", "memory", "domain now suspended" and "resumed" (and
    others that libxl names). The phases of a revert or a delete are "checking" and its steps. What
    takes long in a phase is reported every five seconds, as "waiting for QEMU to answer" or
    "waiting for lvs (pid 712) to leave xvda alone".
    """

    #: the phase: "checking", "memory", "resumed", or a step of a revert such as "disks"
    phase: str
    #: bytes of the domain's memory done in this pass; 0 in phases without a count
    bytes_done: int = 0
    #: bytes expected in this pass; 0 if the number is unknown
    bytes_expected: int = 0
    #: in a live snapshot the pass over the memory, counted from 0
    iteration: int = 0


OnProgress = Callable[[Progress], None]
#: a step of a sequence: its name and its function
Step = tuple[str, Callable[[], None]]


@dataclass(frozen=True, slots=True)
class PlannedDisk:
    """A disk in a plan."""

    #: the guest's device
    vdev: str
    #: path on the host
    target: str
    #: the disk strategy, described for people
    how: str
    #: path of the disk snapshot; "" if it is inside the disk's own storage
    path: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of an operation: what the operation would do. Nothing was changed."""

    #: "create", "revert" or "clone"
    operation: str
    #: the snapshot's name
    name: str
    #: the domain's name; that of the new domain for a clone
    domain: str
    #: the domain's uuid
    uuid: str
    #: the memory file: a create would write it, a revert or a clone would read it
    memory_path: str
    #: the cfgfile: a create would write it, a revert or a clone has read it
    cfgfile: str
    #: a create only: the domain would run while its memory is written
    live: bool
    #: the state of the domain afterwards
    state: RunState
    #: the disks that the operation would snapshot, revert or make
    disks: tuple[PlannedDisk, ...]
    #: disks that are not in the snapshot: the reason for each, by vdev
    left_out: Mapping[str, str]
    #: warnings: what differs from the usual, one line each
    warnings: tuple[str, ...]
    #: estimated seconds that the domain would be suspended; ``None`` for a revert or a clone
    seconds_suspended: float | None


@dataclass(frozen=True, slots=True)
class Feasibility:
    """Whether a snapshot of a domain with all its writable disks is possible now."""

    #: the domain's name
    domain: str
    #: the domain's uuid
    uuid: str
    #: why no snapshot is possible, one line each with what to do; empty if it is possible
    reasons: tuple[str, ...]
    #: further reasons that prevent only a live snapshot, one line each
    live_reasons: tuple[str, ...]

    @property
    def possible(self) -> bool:
        """Whether a snapshot is possible, perhaps only one that is not live."""
        return not self.reasons

    @property
    def live(self) -> bool:
        """Whether a live snapshot is possible, too."""
        return self.possible and not self.live_reasons


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The result of a create: a new snapshot."""

    #: the snapshot's name
    name: str
    #: the domain's name
    domain: str
    #: the domain's domid
    domid: int
    #: the domain's uuid
    uuid: str
    #: the domain ran while its memory was written
    live: bool
    #: path of the memory file
    memory_path: str
    #: path of the cfgfile, which a revert takes
    cfgfile: str
    #: everything that was created, and how to delete it
    artefacts: tuple[Artefact, ...]
    #: disks that are not in the snapshot: the reason for each, by vdev
    left_out: Mapping[str, str]
    #: warnings: what differs from the usual, one line each
    warnings: tuple[str, ...]
    #: the state of the domain in the snapshot, and again now
    state: RunState
    #: measured seconds from the suspend of the guest to the end of the resume
    seconds_suspended: float
    #: seconds for which a paused guest was unpaused, to answer the suspend request
    seconds_unpaused: float = 0.0
    #: seconds of each step; the guest was suspended during "disk snapshots" and "resume"
    seconds: Mapping[str, float] = field(default_factory=dict)
    #: seconds from the suspend until the disk snapshots were there that are taken beside the
    #: memory; as far as they took longer than the memory, the step "disk snapshots" has that, too
    seconds_beside: float = 0.0

    @property
    def chain_depth(self) -> dict[str, int]:
        """Number of files in the chain of each disk that depends on its disk snapshot, by vdev."""
        return {a.vdev: a.chain_depth for a in self.artefacts if a.chain_depth is not None}


@dataclass(frozen=True, slots=True)
class Reverted:
    """The result of a revert."""

    #: the snapshot's name
    name: str
    #: the domain's name
    domain: str
    #: the domain's new domid
    domid: int
    #: the domain's uuid, from the snapshot
    uuid: str
    #: the state of the domain now
    state: RunState
    #: vdevs of the disks that were reverted
    disks: tuple[str, ...]
    #: warnings: what differs from the usual, one line each
    warnings: tuple[str, ...]
    #: cfgfile of the snapshot that ``keep_current`` took first; "" without ``keep_current``
    kept: str = ""
    #: seconds of each step; empty if a recovery finished the revert
    seconds: Mapping[str, float] = field(default_factory=dict)
    #: measured seconds from the destroy of the domain until it ran again (until it was restored, if
    #: it stays paused); 0 if the domain was off before, or if a recovery finished the revert
    seconds_off: float = 0.0


@dataclass(frozen=True, slots=True)
class Deleted:
    """The result of a delete."""

    #: the snapshot's name
    name: str
    #: the domain's name
    domain: str
    #: the domain's uuid, from the snapshot
    uuid: str
    #: the cfgfile that named the snapshot, and is deleted, too
    cfgfile: str
    #: what was deleted or changed, one line each; a part that was not there has no line
    lines: tuple[str, ...]
    #: warnings: what differs from the usual, one line each
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CloneDisk:
    """A disk that a clone has of its own, made from a disk snapshot."""

    #: the guest's device
    vdev: str
    #: its path on the host
    target: str
    #: raw or qcow2
    format: str
    #: what it is: "overlay", "reflink copy", "copy", "thin snapshot", or a strategy's own word
    how: str
    #: the command that deletes it while no domain has it
    delete: str
    #: the file that it depends on, which must stay as it is; "" if it depends on none
    stands_on: str = ""


@dataclass(frozen=True, slots=True)
class Cloned:
    """The result of a clone: a new domain."""

    #: the snapshot's name
    name: str
    #: the clone's name
    domain: str
    #: the clone's domid
    domid: int
    #: the clone's uuid
    uuid: str
    #: the state of the clone now
    state: RunState
    #: the disks that it has of its own
    disks: tuple[CloneDisk, ...]
    #: everything that was created, and how to delete it
    artefacts: tuple[Artefact, ...]
    #: what the clone has in the place of what it could not share with another domain (a MAC, a
    #: socket, …), one line each
    changes: tuple[str, ...]
    #: warnings: what differs from the usual, one line each
    warnings: tuple[str, ...]
    #: a clone of this name was there before, and was destroyed with its disks
    replaced: bool = False
    #: seconds of each step; empty if a recovery finished the clone
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CloneConfiguration:
    """The configuration that a clone would have: for the ``edit`` of a clone."""

    #: the clone's uuid
    uuid: str
    #: libxl's JSON
    json: str


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """A domain shut down by itself, and the configured action was performed."""

    #: the domain's name
    domain: str
    #: the domain's uuid
    uuid: str
    #: domid of the domain that shut down
    domid: int
    #: why it shut down, as in :attr:`DomainInfo.shutdown_reason`
    reason: str
    #: the action, in libxl's words: "restart", "destroy", "preserve", …
    action: str
    #: domid of the domain that runs now; ``None`` if none runs
    new_domid: int | None


OnEvent = Callable[[DomainEvent], None]


@dataclass(frozen=True, slots=True)
class Recovered:
    """The result of a recovery."""

    #: what was done or found, one line each; empty if no operation was unfinished
    lines: tuple[str, ...]
    #: everything is as before the operation; false if the operation had completed, if another
    #: program has changed the domain since, or if the lines name something that only a person can
    #: delete
    rolled_back: bool
    #: the result of the revert that was finished; ``None`` if the operation was no revert
    reverted: Reverted | None = None
    #: the result of the delete that was finished; ``None`` if the operation was no delete
    deleted: Deleted | None = None
    #: the result of the clone that was finished; ``None`` if the operation was no clone
    cloned: Cloned | None = None
    #: seconds for which a paused domain ran at most, unpaused by the create that was rolled back; 0
    #: if it did not run
    seconds_unpaused: float = 0.0
