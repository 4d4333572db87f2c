"""What the objects of a disk strategy are told of the operation that they work for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path

from pyxlsnap.dataclass import dataclass
from pyxlsnap.linux.room import Room


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
    #: a create: whether all of the guest's memory has been read. Before that, the guest's QEMU may
    #: still write to it: the end of a request that the disk snapshot does not have
    memory_read: Callable[[], bool] = lambda: False
    #: the user named the disks; if false, every writable disk was chosen
    asked: bool = True
    #: what ``DiskStrategy.state`` of a killed revert returned, which this revert finishes;
    #: ``None``: this revert finishes none
    finishes: Mapping[str, str] | None = None
    #: the same of a killed revert to this snapshot that had not begun to destroy the domain: what
    #: it prepared (:class:`~pyxlsnap.disks.abilities.PreparingStrategy`) may still be there
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
    #: a delete, and the undo of a create whose domain was started anew: the vdevs of the disks that
    #: the domain has now
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
    #: to be called every few seconds by a ``settle``, ``undo_create``, ``revert`` or
    #: ``finish_revert`` of a strategy that waits for another program, with what it waits for
    #: ("QEMU to answer"): tells the user. It raises nothing, but for a recovery of every domain:
    #: pass on what it raises then, which is no ``Exception``
    waiting: Callable[[str], None] = lambda _: None
