"""What a disk strategy may be able to do besides: Protocols that it has or has not."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.model import DiskRequest
from pyxlsnap.results import CloneDisk


@runtime_checkable
class AdvisingStrategy(Protocol):
    """A strategy that knows a quicker way to take disk snapshots than the requested one."""

    def quicker(self) -> str:
        """The quicker way, for a message: "an external snapshot is quicker (…)"; "" if none.

        Called after :meth:`~DiskStrategy.check_create`, if :meth:`~DiskStrategy.expected_seconds`
        says that the guest will be suspended for long.
        """


@runtime_checkable
class BesideStrategy(DiskStrategy, Protocol):
    """A strategy that takes disk snapshots while libxl still writes the guest's memory.

    The guest is suspended for less time then: in a snapshot that is not live, the disk snapshots
    take no time of their own as long as the memory takes longer. Only snapshots for which
    :meth:`~DiskStrategy.undo_create` leaves no trace can be taken so, because the memory may fail
    afterwards. Where a strategy lacks these methods, all its snapshots wait for the memory.
    """

    def beside(self) -> Collection[str]:
        """The vdevs of the disks whose snapshots :meth:`create_beside` takes.

        Called once, after :meth:`~DiskStrategy.check_create`. If disks are missing here,
        :meth:`~DiskStrategy.create` is called for them when the memory is complete.
        """

    def create_beside(self) -> None:
        """Take the disk snapshots of the disks that :meth:`beside` named, all or none.

        The guest is suspended, and :attr:`DiskTask.memory_read` says whether its memory is read.
        Called on another thread than the methods before, while strategies of pyxlsnap may be at
        work on others. If the guest's QEMU is its device model
        (:attr:`DiskTask.device_model`), do not keep it busy for longer than five seconds, and do
        not let it continue. If the memory fails meanwhile, :attr:`DiskTask.check` raises an
        exception.

        :raises PyxlsnapError: it failed, and the memory is given up. :meth:`~DiskStrategy.settle`
            and :meth:`~DiskStrategy.undo_create` will be called.
        """


@runtime_checkable
class PreparingStrategy(DiskStrategy, Protocol):
    """A strategy that can do a part of its revert beforehand, while the domain still runs.

    So the domain is off for a shorter time. A revert of a domain that is there calls
    :meth:`~DiskStrategy.check_revert`, :meth:`prepare_revert`, :meth:`~DiskStrategy.check_revert`
    again, then :meth:`~DiskStrategy.revert`; if it ends before the destroy, :meth:`undo_prepared`.
    """

    def prepare_revert(self, check: Callable[[], None]) -> None:
        """Make what :meth:`~DiskStrategy.revert` needs, under names that the journal has.

        Changes neither the disks, which the domain uses, nor the disk snapshots. What was made may
        not fit any more when :meth:`~DiskStrategy.revert` comes to use it: make it again there.

        :param check: to be called often by slow work; pass on what it raises.
        :raises PyxlsnapError: it failed; :meth:`undo_prepared` will be called.
        """

    def undo_prepared(self) -> None:
        """Remove what :meth:`prepare_revert` made, and nothing else.

        Calling it again does no harm, also if nothing was made. A recovery calls this on a new
        object without any other method before: :attr:`DiskTask.prepared` tells of the dead one. If
        one disk fails, go on with the others, and raise at the end.

        :raises PyxlsnapError: something is left; the message says what.
        """


@runtime_checkable
class DeletingStrategy(DiskStrategy, Protocol):
    """A strategy that can delete its disk snapshots, for :func:`pyxlsnap.delete_snapshot`.

    A delete calls :meth:`check_delete`, :meth:`prepare_delete`, then :meth:`delete`, and
    :meth:`~DiskStrategy.close`. Where a strategy of another package lacks these methods, the delete
    is refused.
    """

    def check_delete(self, domid: int | None) -> None:
        """Check that the disk snapshots can be deleted, and connect to what it needs.

        Changes nothing. A disk snapshot that is not there counts as deleted.

        :param domid: the domain, running or paused; ``None`` if it is off.
        :raises Refused: a disk snapshot cannot be deleted safely, or was not made by pyxlsnap; the
            message says what to do.
        """

    def prepare_delete(self) -> list[str]:
        """Make everything independent of the disk snapshots, which stay whole. This may be slow.

        Calls :attr:`DiskTask.check` often. If this is cut off, nothing is lost, and calling it
        again (on a new object, after :meth:`check_delete`) does the rest.

        :returns: what was changed, a line each.
        :raises PyxlsnapError: it failed; the disk snapshots are whole.
        """

    def delete(self) -> list[str]:
        """Delete the disk snapshots, and nothing else.

        Calling it again does no harm. If one disk fails, go on with the others, and raise at the
        end.

        :returns: what was deleted, a line each.
        :raises PyxlsnapError: something is left; the message says what.
        """


@runtime_checkable
class CloningStrategy(DiskStrategy, Protocol):
    """A strategy that can give a new domain disks of its own, made from its disk snapshots.

    A clone (:func:`pyxlsnap.clone_snapshot`) calls :meth:`check_clone`,
    :meth:`~DiskStrategy.state`, then :meth:`clone`, :meth:`~DiskStrategy.state` once more, and
    :meth:`~DiskStrategy.close`. A clone that fails, its recovery, and the delete of a clone call
    :meth:`delete_clone`. Where a strategy of another package lacks these methods, the clone is
    refused.

    The disk snapshot is only read. What the clone writes reaches neither the disk snapshot nor any
    other domain. Clones of one disk snapshot may be made at the same time, while the disk that it
    was taken of is in use or is reverted.
    """

    def check_clone(self, name: str, wanted: Mapping[str, DiskRequest]) -> Sequence[CloneDisk]:
        """Choose the disks of the clone, and check that :meth:`clone` will work.

        Whatever :meth:`clone` will do is tried on something that does no harm, or checked. Leaves
        everything as it was. Called once more just before :meth:`clone`: it then chooses the same,
        and what takes long need not be tried again.

        :param name: the clone's name, or one like it: it differs from that of the clone that is
            replaced, whose disks are there yet. The name of each new file, or of a directory that
            is made for it, ends in a dot and this name.
        :param wanted: by vdev, where the user wants a disk. A disk that is named there may be
            copied if there is no quicker way; any other must take no longer than its metadata do.
        :returns: a disk for each vdev, under names that nothing has yet.
        :raises Refused: it would not work; the message says what would.
        """

    def clone(self) -> None:
        """Make the disks. Calls :attr:`DiskTask.check` often if it copies.

        :raises PyxlsnapError: it failed; :meth:`delete_clone` will be called.
        """

    def delete_clone(self, disks: Sequence[CloneDisk], state: Mapping[str, str]) -> list[str]:
        """Delete the disks of a clone, and nothing else. No domain has them.

        Called on a new object, too, without any other method before. A disk that is not there
        counts as deleted. If one disk fails, go on with the others, and raise at the end.

        :param disks: what :meth:`check_clone` returned.
        :param state: what :meth:`~DiskStrategy.state` returned last, and those of the other
            strategies; :meth:`clone` may have been cut off.
        :returns: what was deleted, a line each.
        :raises PyxlsnapError: something is left; the message says what.
        """
