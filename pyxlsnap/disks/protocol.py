"""What a disk strategy is: the Protocols of a kind of storage, and what its objects are told."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pyxlsnap.linux.room import Room
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.results import Artefact


@dataclass(frozen=True, slots=True)
class DiskTask:
    """The operation that a strategy works for; the same for all strategies of the operation."""

    #: the snapshot's name
    name: str
    #: QEMU's block nodes are inactive when the disk snapshots are taken (a live HVM suspend)
    inactive: bool = False
    #: the QEMU of the domain's disks is its device model (HVM). libxl needs an answer of it at the
    #: end of the memory, and waits for that for ten seconds
    device_model: bool = False
    #: the user named the disks; if false, every writable disk was chosen
    asked: bool = True
    #: what :meth:`DiskStrategy.state` of a killed revert returned, which this revert finishes;
    #: ``None``: this revert finishes none
    finishes: Mapping[str, str] | None = None
    #: the same of a killed revert to this snapshot that had not begun to destroy the domain: what
    #: it prepared (:class:`PreparingStrategy`) may still be there
    prepared: Mapping[str, str] | None = None
    #: to be called often by slow work; lets the operation be cancelled, so pass on what it raises
    check: Callable[[], None] = lambda: None
    #: a create's checks: to be called with a warning for the user, one line
    warn: Callable[[str], None] = lambda _: None
    #: to be called in the checks for what the operation will write to a filesystem: a name for it,
    #: a directory there, and the bytes; returns the bytes that the rest of the operation leaves
    claim: Callable[[str, Path, int], int] = field(default_factory=lambda: Room().claim)
    #: a delete: the directories in which other disk snapshots of the domain are
    looks_in: Sequence[Path] = ()
    #: a delete: the vdevs of the disks that the domain has now
    attached: frozenset[str] = frozenset()
    #: a recovery: the domain was started anew since, and is not resumed: no program works for the
    #: killed create any more
    started_anew: bool = False
    #: an undo: whether the domain may be started again at any moment, which opens its disks. Then
    #: change no image that nobody has open, but fail
    may_start: Callable[[], bool] = lambda: False
    #: a create, and its recovery: whether the domain is gone for which the strategy works; another
    #: may have its disks by now. To be asked during each wait: no guest needs its result then
    gone: Callable[[], bool] = lambda: False
    #: to be called every few seconds by a :meth:`~DiskStrategy.settle`,
    #: :meth:`~DiskStrategy.undo_create`, :meth:`~DiskStrategy.revert` or
    #: :meth:`~DiskStrategy.finish_revert` that waits for another program, with what it waits for
    #: ("QEMU to answer"): tells the user. It raises nothing, but for a recovery of every domain:
    #: pass on what it raises then, which is no ``Exception``
    waiting: Callable[[str], None] = lambda _: None


class DiskStrategy(Protocol):
    """Takes and reverts the disk snapshots of one kind of storage, in one operation.

    One object handles *all* disks of its kind in the operation, so that it can do them together. It
    lives in the worker process. Each operation makes a new object, and calls its methods in this
    order:

    - a create: :meth:`check_create`, :meth:`expected_seconds`, :meth:`state`, :meth:`prepare`,
      :meth:`create` (the guest is suspended), :meth:`finish_create`, :meth:`artefacts`; a
      :class:`BesideStrategy` takes disk snapshots before :meth:`create`, too;
    - a create that fails: :meth:`settle`, then the guest is resumed, then :meth:`undo_create`;
    - a recovery after the worker of a create was killed: :meth:`adopt_create`, :meth:`settle`, then
      the guest is resumed, then :meth:`undo_create`, or :meth:`finish_create` if the snapshot is
      complete;
    - a create whose guest cannot be resumed: :meth:`finish_create`, for the snapshot is kept;
    - a revert: :meth:`check_revert`, :meth:`revert` (the domain is destroyed), then the domain is
      restored, then :meth:`finish_revert`.

    :meth:`close` comes last in each. A plan (``--dry-run``) ends after the checks.

    Only one method of an object is called at a time, but not always on the same thread. The same
    holds for all objects of other packages together.

    An exception of any kind ends the operation; a create is then undone. The messages of
    :class:`~pyxlsnap.DiskError` and :class:`~pyxlsnap.Refused` are shown to the user as they are:
    say what happened, to which disk, and what to do.

    The process may end without exit handlers: leave nothing to ``atexit``.
    """

    #: the strategy's name, for plans and messages; a recovery or a revert finds the strategy by it.
    #: Not empty, and none of pyxlsnap's own ("LVM thin", "LVM thick", "raw file", "block device",
    #: "qcow2")
    kind: str
    #: the vdevs of the disks that this object handles
    vdevs: tuple[str, ...]

    # create

    def check_create(self, domid: int) -> None:
        """Check that :meth:`create` will work, and connect to what it needs. Changes nothing.

        The guest runs, so this may take its time.

        :raises Refused: it would not work; the message says what would.
        """

    def expected_seconds(self) -> float:
        """How long :meth:`create` is expected to take, while the guest is suspended."""

    def state(self) -> dict[str, str]:
        """What an object of another process needs to know of this object.

        Called after :meth:`check_create` or :meth:`check_revert`, and written to the journal before
        anything is changed. So it must hold whatever tells what this object will make from what
        others made (tokens, names, inodes): the disk snapshots, for :meth:`adopt_create`; the disks
        that :meth:`revert` will keep, for :attr:`DiskTask.finishes`. Each key begins with a vdev:
        the keys of all strategies share one mapping.
        """

    def prepare(self) -> None:
        """Make what :meth:`create` needs. The guest runs, so this may take its time.

        :raises PyxlsnapError: it failed; :meth:`undo_create` will be called.
        """

    def create(self) -> None:
        """Take the disk snapshots that are not taken yet, all or none.

        The guest is suspended, and waits for nothing else: be quick. Its memory is complete.

        :raises PyxlsnapError: it failed; :meth:`settle` and :meth:`undo_create` will be called.
        """

    def finish_create(self) -> None:
        """Make durable what was made, and do what else could wait.

        The guest runs again, or cannot be resumed. Calling it again does no harm, also on an object
        that has adopted the snapshot.

        :raises PyxlsnapError: the snapshot cannot be relied on; :meth:`undo_create` will be called.
        """

    def settle(self) -> None:
        """Make it safe to resume the guest after a :meth:`create` that failed or was cut off.

        Finish what would lose data if the guest ran on, or make sure that it cannot happen later.
        Called before each resume once something has failed, also if :meth:`create` was never
        called. Calling it again does no harm. If another program may still do what :meth:`create`
        told it to do, wait until that is known, however long: the guest stays suspended, and the
        user is told (:attr:`DiskTask.waiting`).

        :raises DomainNotFound: the domain is gone (:attr:`DiskTask.gone`).
        :raises PyxlsnapError: the guest must not run yet: it would lose data. It stays suspended.
        """

    def undo_create(self) -> list[str]:
        """Remove what :meth:`prepare` and :meth:`create` made, and nothing else.

        The guest runs again. Called also if they failed, or were never called. Calling it again
        does no harm. If one disk fails, go on with the others, and raise at the end.

        :returns: what was removed, a line each.
        :raises PyxlsnapError: something is left; the message says what.
        """

    def adopt_create(self, domid: int | None, *, began: float, state: Mapping[str, str]) -> None:
        """Take over the snapshot that an object of a dead process began.

        Called on a new object in the place of :meth:`check_create`; :meth:`settle` and
        :meth:`undo_create` follow, even if this fails.

        :param domid: the domain as it is now, which may have been started anew since
            (:attr:`DiskTask.started_anew`); ``None``: it does not exist. Its old domid may be
            another guest's by now.
        :param began: when the create began, seconds since the epoch.
        :param state: what the dead object's :meth:`state` returned, and those of the other
            strategies.
        """

    def artefacts(self, domain: str) -> list[Artefact]:
        """What :meth:`create` made, and how a person deletes it.

        :param domain: the domain's name, for commands.
        """

    # revert

    def check_revert(self) -> None:
        """Check that the disk snapshots are there and complete, and that :meth:`revert` will work.

        Whatever :meth:`revert` will do is tried on something that does no harm, or checked: what it
        finds out later costs the user the guest. Leaves everything as it was. Called once more just
        before the domain is destroyed: what takes long need not be tried again. Where
        :meth:`revert` would keep a disk, there must be nothing yet, but for what the run made that
        this revert finishes (:attr:`DiskTask.finishes`).

        :raises Refused: they are not; the message says what to do.
        """

    def revert(self) -> None:
        """Put the disks back. The domain is destroyed, and its QEMU has exited.

        Keep the disks that are replaced until :meth:`finish_revert`, where the storage allows it.
        If this is cut off, the whole revert is run again from the top, and must then end well: do
        not use up the snapshot, and do not replace a kept disk with one that is reverted in part.

        :raises PyxlsnapError: the disks may be reverted in part; running the revert again
            completes them.
        """

    def finish_revert(self, domid: int) -> list[str]:
        """Remove the disks that :meth:`revert` kept, and nothing else.

        The domain is restored, as ``domid``. A recovery calls this on a new object, without any
        other method before: :attr:`DiskTask.finishes` tells what the dead object kept.

        :returns: what could not be removed, a line each; that is no failure of the revert.
        """

    def close(self) -> None:
        """Close connections and files. Calling it again does no harm."""


class DiskKind(Protocol):
    """A kind of storage: says which disks it is for, and makes their :class:`DiskStrategy`.

    Mostly the strategy's class, with :meth:`claims` as a static or class method. Kinds of other
    packages are found by the entry point ``pyxlsnap.disks``, and asked before pyxlsnap's own.
    """

    def claims(self, disk: Disk) -> bool:
        """Whether the disk is in this kind of storage.

        Called for every disk but CD-ROM drives, empty drives and read-only disks. Be quick, and
        change nothing.
        """

    def __call__(
        self, disks: Sequence[tuple[Disk, DiskRequest]], task: DiskTask, /
    ) -> DiskStrategy:
        """The strategy for these disks, all of which this kind claims. Changes nothing.

        :param disks: each disk with what was requested of it: a path and a format, or nothing.
        :raises Refused: a request cannot be fulfilled; the message names the disk.
        """
