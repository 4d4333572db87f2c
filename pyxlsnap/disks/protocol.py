"""What a disk strategy is: the Protocols of a kind of storage, and what its objects are told."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.results import Artefact


@dataclass(frozen=True, slots=True)
class DiskTask:
    """What the strategies of one operation are told."""

    #: the snapshot's name
    name: str
    #: when the disk snapshots are taken, QEMU's block nodes are inactive (a live HVM suspend)
    inactive: bool = False
    #: the user has named the disks; else every writable one was chosen
    asked: bool = True
    #: called again and again by what takes long; what it raises must come through
    check: Callable[[], None] = lambda: None


class DiskStrategy(Protocol):
    """How the disks of one kind of storage are snapshotted and reverted, in one operation.

    An object stands for *all* disks of its kind in the operation, so that they can be done
    together. It lives in the worker process. Whatever it raises ends the operation, which is then
    undone; :class:`~pyxlsnap.DiskError` and :class:`~pyxlsnap.Refused` are shown as they are.
    """

    #: its name, for plans, messages, and to find it again: none of ours ("qcow2", "raw file", …)
    kind: str
    #: the disks it stands for
    vdevs: tuple[str, ...]

    # create

    def check_create(self, domid: int) -> None:
        """Make sure that :meth:`create` will work; connect to what it needs. Changes nothing.

        :raises Refused: it would not; the message says what would.
        """

    def expected_seconds(self) -> float:
        """How long :meth:`create` is expected to hold the guest."""

    def state(self) -> dict[str, str]:
        """What :meth:`adopt_create` needs to know of this object; keys begin with a vdev.

        Known when :meth:`check_create` has returned.
        """

    def prepare(self) -> None:
        """Make what :meth:`create` needs. The guest runs, so this may take its time.

        :raises PyxlsnapError: :meth:`undo_create` takes back what was made.
        """

    def create(self) -> None:
        """Take the disk snapshots, all or none. The guest is suspended: be quick.

        :raises PyxlsnapError: none was taken, or :meth:`undo_create` is needed to tell.
        """

    def finish_create(self) -> None:
        """The guest runs again: make durable what was made, and do what else can wait until now.

        :raises PyxlsnapError: the snapshot is not to be relied on; :meth:`undo_create` follows.
        """

    def settle(self) -> None:
        """Bring a :meth:`create` that was cut off to where the guest may run again.

        Called before a resume when something has failed; more than once does no harm.

        :raises PyxlsnapError: the guest must not run yet: it would lose data.
        """

    def undo_create(self) -> list[str]:
        """Remove what :meth:`prepare` and :meth:`create` made, and nothing else; say what.

        The guest runs again. To be called after they failed, too; more than once does no harm.

        :raises PyxlsnapError: something is left.
        """

    def adopt_create(self, domid: int, *, began: float, state: Mapping[str, str]) -> None:
        """Stand for an object of another process that began a snapshot and is dead.

        So that :meth:`settle` and :meth:`undo_create` can be called.

        :param began: seconds since the epoch.
        :param state: what its :meth:`state` said.
        """

    def artefacts(self, domain: str) -> list[Artefact]:
        """What :meth:`create` made, and how to delete it."""

    # revert

    def check_revert(self) -> None:
        """Make sure that the disk snapshots are there and whole. Changes nothing.

        Called again if the revert has had to wait for something.

        :raises Refused: they are not.
        """

    def revert(self) -> None:
        """Put the disks back. The domain and its QEMU are gone. Can be run again.

        What it replaces is kept until :meth:`finish_revert`.

        :raises PyxlsnapError: the disks may be half-reverted; running it again mends that.
        """

    def finish_revert(self, domid: int) -> list[str]:
        """The domain is restored, as ``domid``: drop what was kept.

        Also called on a new object whose other methods were not, by a recovery. Returns what could
        not be dropped, a line each; that is no failure of the revert.
        """

    def close(self) -> None:
        """Let go of connections. Idempotent."""


class DiskKind(Protocol):
    """A kind of storage, and what makes a :class:`DiskStrategy` of some disks: mostly its class.

    Others than ours are found by the entry point ``pyxlsnap.disks``.
    """

    def claims(self, disk: Disk) -> bool:
        """Whether the disk is in this kind of storage. Asked of every disk but those left out."""

    def __call__(
        self, disks: Sequence[tuple[Disk, DiskRequest]], task: DiskTask, /
    ) -> DiskStrategy:
        """The strategy for these disks, all of which it claims. Changes nothing.

        :raises Refused: what was requested of one of them cannot be done.
        """
