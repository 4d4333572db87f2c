"""What operations say of themselves while they run, and what they give back: plain and frozen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pyxlsnap.model import RunState


@dataclass(frozen=True, slots=True)
class Artefact:
    """Something that a snapshot left on the host, and how a person deletes it."""

    #: "memory file", "cfgfile" or "disk snapshot"
    kind: str
    #: the path, or the disk snapshot's name and what it is in
    where: str
    #: the commands that delete it, or what has to be done
    delete: str
    #: of a disk snapshot: whose
    vdev: str = ""
    #: of a disk snapshot that the disk stands on: files in the disk's chain, its own included;
    #: ``None`` where the disk stands alone, or nobody could count them
    chain_depth: int | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an operation is.

    The phases of a create are "checking", "memory", "domain now suspended" and "resumed" (and
    others that libxl names); those of a revert are "checking" and its steps.
    """

    #: what goes on: "checking", "memory", "resumed", or a step of a revert such as "disks"
    phase: str
    #: bytes of the domain's memory, in this pass; 0 in phases that are not counted
    bytes_done: int = 0
    #: 0 where nobody knows it
    bytes_expected: int = 0
    #: the pass over memory, from 0, of a live save
    iteration: int = 0


OnProgress = Callable[[Progress], None]
#: a step of a sequence: its name, and what does it
Step = tuple[str, Callable[[], None]]


@dataclass(frozen=True, slots=True)
class PlannedDisk:
    """One disk of a plan."""

    #: the guest's device
    vdev: str
    #: host path
    target: str
    #: the disk strategy
    how: str
    #: where its disk snapshot goes, or is; "" for inside the disk's own storage
    path: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What an operation would do; nothing was touched."""

    #: "create" or "revert"
    operation: str
    #: the snapshot's name
    name: str
    #: the domain's name
    domain: str
    #: the domain's uuid
    uuid: str
    #: the memory file that would be written, or read
    memory_path: str
    #: the cfgfile that would be written, or was read
    cfgfile: str
    #: of a snapshot: whether the domain runs while its memory is written
    live: bool
    #: the state that the domain would be in afterwards
    state: RunState
    #: the disks that would be snapshotted, or put back
    disks: tuple[PlannedDisk, ...]
    #: writable or not, disks that are not in it, each with the reason
    left_out: Mapping[str, str]
    #: what is not as one might expect, a line each
    warnings: tuple[str, ...]
    #: seconds that the domain would stand still, roughly; ``None`` for a revert
    seconds_suspended: float | None


@dataclass(frozen=True, slots=True)
class Feasibility:
    """Whether a domain can be snapshotted as it is now, with every writable disk."""

    #: the domain's name
    domain: str
    #: its uuid
    uuid: str
    #: why it cannot, a line each with the way out; empty: it can
    reasons: tuple[str, ...]
    #: what hinders a live snapshot beside them
    live_reasons: tuple[str, ...]

    @property
    def possible(self) -> bool:
        """A snapshot is possible, at least one for which the domain stands still."""
        return not self.reasons

    @property
    def live(self) -> bool:
        """A live one is, too."""
        return self.possible and not self.live_reasons


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that was taken."""

    #: its name
    name: str
    #: the domain's name
    domain: str
    #: the domain's domid
    domid: int
    #: the domain's uuid
    uuid: str
    #: the domain ran while its memory was written
    live: bool
    #: the memory file
    memory_path: str
    #: the file that a revert takes
    cfgfile: str
    #: everything that was made, and how to delete it
    artefacts: tuple[Artefact, ...]
    #: disks that are not in it, each with the reason
    left_out: Mapping[str, str]
    #: what is not as one might expect, a line each
    warnings: tuple[str, ...]
    #: the state that it was taken in, and that the domain is in again
    state: RunState
    #: seconds from the guest's suspension to the return of its resume, measured
    seconds_suspended: float
    #: seconds that a paused guest was let go for, to answer the suspend request
    seconds_unpaused: float = 0.0
    #: how long each step took; of those, "disk snapshots" and "resume" while it was suspended
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def chain_depth(self) -> dict[str, int]:
        """By vdev, the files in the chain of each disk that stands on its disk snapshot."""
        return {a.vdev: a.chain_depth for a in self.artefacts if a.chain_depth is not None}


@dataclass(frozen=True, slots=True)
class Reverted:
    """A revert that was done."""

    #: the snapshot's name
    name: str
    #: the domain's name
    domain: str
    #: the domain's new domid
    domid: int
    #: the domain's uuid: that in the snapshot
    uuid: str
    #: the state that the domain is in now
    state: RunState
    #: vdevs whose content was put back
    disks: tuple[str, ...]
    #: what is not as one might expect, a line each
    warnings: tuple[str, ...]
    #: the cfgfile of the snapshot that was taken of the present first; "" if none was asked for
    kept: str = ""
    #: how long each step took; empty if it was finished by a recovery
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """A domain that shut down by itself, and what was done, as its configuration says."""

    #: the domain's name
    domain: str
    #: the domain's uuid
    uuid: str
    #: of the domain that shut down
    domid: int
    #: as :attr:`DomainInfo.shutdown_reason`
    reason: str
    #: libxl's word: "restart", "destroy", "preserve", …
    action: str
    #: of the domain that goes on; ``None`` if none does
    new_domid: int | None


OnEvent = Callable[[DomainEvent], None]


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of an operation that was killed."""

    #: what was done or found, a line each; empty when nothing was in flight
    lines: tuple[str, ...]
    #: everything is as before it; false: it had done its work, or somebody else has gone on
    rolled_back: bool
    #: the revert that was brought to its end, if it was one
    reverted: Reverted | None = None
