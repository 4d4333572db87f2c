"""What a disk strategy may be able to do besides: Protocols that it has or has not."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from pyxlsnap.disks.protocol import DiskStrategy


@runtime_checkable
class AdvisingStrategy(Protocol):
    """A strategy that knows a quicker way to take disk snapshots than the requested one."""

    def quicker(self) -> str:
        """The quicker way, for a message: "an external snapshot is quicker (…)"; "" if none.

        Called after :meth:`~DiskStrategy.check_create`, if :meth:`~DiskStrategy.expected_seconds`
        says that the guest will be suspended for long.
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
