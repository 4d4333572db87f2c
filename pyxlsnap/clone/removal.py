"""Taking a clone apart: its domain, its disks, its file. Nothing else is touched.

A delete, a replacement, the undo of a clone and its recovery do this with these functions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from pyxlsnap.clone.line_files import delete_line_files
from pyxlsnap.clone_file import CloneFile, has_no_place, not_mounted
from pyxlsnap.disks.abilities import CloningStrategy
from pyxlsnap.disks.registry import close_all, strategies
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import LeftOver, undo_each
from pyxlsnap.errors import (
    DiskError,
    DomainNotFound,
    NeedsAttention,
    PyxlsnapError,
    Refused,
)
from pyxlsnap.guest.destroy import destroy
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.journal import CloneEntry, Journal
from pyxlsnap.model import DomainInfo
from pyxlsnap.results import CloneDisk


def destroyed(guest: Guest) -> list[str]:
    """Destroy a clone's domain, unless it has ended meanwhile; a line if it was destroyed."""
    try:
        destroy(guest)
    except DomainNotFound:
        return []
    return [f"destroyed {guest.name} (domid {guest.domid})"]


def info_if_there(guest: Guest | None) -> DomainInfo | None:
    """The domain's present state; ``None`` if there is no domain, or it ended just now."""
    try:
        return guest.info() if guest else None
    except DomainNotFound:
        return None


def started_by_others(guest: Guest, entry: CloneEntry) -> NeedsAttention:
    """Make (not raise) the error for a domain with the uuid of a clone that is not completed."""
    why = (
        f"{guest} was started with the uuid of the clone {entry.domain}, which was not completed, "
        f"and may use its disks"
    )
    return NeedsAttention(
        f"{why}: shut that domain down, then run `pyxlsnap snapshot-recover {entry.uuid}`; or keep "
        f"it and remove {Journal(entry.uuid).path}",
        step="recover",
        left=[why],
        finish=f"pyxlsnap snapshot-recover {entry.uuid}",
    )


def remove_disks(entry: CloneEntry, waiting: Callable[[str], None]) -> list[str]:
    """Delete the disks of a clone, whose domain is destroyed; returns what was deleted.

    Those of earlier clones of its name that could not be deleted before are deleted, too.

    :raises LeftOver: a disk is not the clone's any more: only a person can delete it.
    :raises PyxlsnapError: a disk could not be deleted, or its filesystem is not mounted.
    """
    removed, failed = _tried(entry, waiting)
    if failed:
        undo_each([_raising(e) for e in failed])
    return removed


def _tried(
    entry: CloneEntry, waiting: Callable[[str], None]
) -> tuple[list[str], list[PyxlsnapError]]:
    """Delete what can be deleted of a clone's disks; returns what was deleted, and the failures."""
    removed, failed = _tried_alone(entry, waiting)
    for earlier in entry.leftovers:
        lines, errors = _tried_alone(earlier, waiting)
        removed, failed = removed + lines, failed + errors
    return removed, failed


def _tried_alone(
    entry: CloneEntry, waiting: Callable[[str], None]
) -> tuple[list[str], list[PyxlsnapError]]:
    """As :func:`_tried`, without the disks of earlier clones."""
    removed: list[str] = []
    away, there = _look(entry)
    failed: list[PyxlsnapError] = [*away]
    with strategies_of(entry, waiting) as found:
        for strategy in found:
            disks = [child for child in there if child.vdev in strategy.vdevs]
            try:
                removed += strategy.delete_clone(disks, entry.disk_state)
            except PyxlsnapError as e:
                failed.append(e)
    return removed, failed


def _look(entry: CloneEntry) -> tuple[list[DiskError], list[CloneDisk]]:
    """Look where the disks of a clone are.

    :returns: the errors for those that cannot be looked at, or whose filesystem is not mounted,
        which are not deleted; and the disks that are to be deleted.
    """
    away, there = [], []
    for child in entry.children:
        try:
            if where := not_mounted(entry, child):
                why = (
                    f"{child.target} is not there, and no filesystem is mounted at {where}: mount "
                    f"it, then run the command again"
                )
                away.append(DiskError(why, vdev=child.vdev))
            elif not has_no_place(entry, child):
                there.append(child)
        except OSError as e:
            away.append(DiskError(f"{child.target}: {e.strerror}", vdev=child.vdev))
    return away, there


@contextmanager
def strategies_of(
    entry: CloneEntry, waiting: Callable[[str], None]
) -> Iterator[list[CloningStrategy]]:
    """The strategies that made the disks of a clone.

    :raises Refused: one is not there, or can delete no disks of clones.
    """
    made = {child.vdev for child in entry.children}
    pairs = zip(entry.devices, entry.disks, strict=True)
    chosen = [(disk, request) for disk, request in pairs if disk.vdev in made]
    found = strategies(chosen, DiskTask(entry.name, waiting=waiting), entry.kinds, trusted=True)
    try:
        able = [strategy for strategy in found if isinstance(strategy, CloningStrategy)]
        if len(able) < len(found):
            raise Refused(
                f"the disk strategy that made disks of the clone {entry.domain} can delete none: "
                f"install the release of it that can"
            )
        yield able
    finally:
        close_all(found)


def _raising(error: PyxlsnapError) -> Callable[[], list[str]]:
    def undo() -> list[str]:
        raise error

    return undo


def take_back(
    entry: CloneEntry, old: CloneEntry | None, waiting: Callable[[str], None]
) -> tuple[list[str], list[str]]:
    """Delete the disks of a clone that is not completed; its domain is destroyed.

    If the clone before it was destroyed already, that one's disks are deleted, too. The file of the
    clone is deleted unless it is still that of the clone before.

    :param old: the clone that was to be replaced; ``None``: none.
    :returns: what was deleted, and what is left because another program or a person has put it in
        the place of a disk; a line each. A recovery could not delete that, either.
    :raises PyxlsnapError: something else is left.
    """
    lines = delete_line_files(entry, besides=None if entry.replace_begun else old)
    removed, left = _removed_or_left(entry, waiting)
    lines += removed
    if old and not entry.replace_begun:
        return lines, left
    if old:
        removed, others = _removed_or_left(old, waiting)
        lines, left = lines + removed, left + others
    CloneFile(entry.uuid).clear()
    return lines, left


def _removed_or_left(
    entry: CloneEntry, waiting: Callable[[str], None]
) -> tuple[list[str], list[str]]:
    """As :func:`remove_disks`, but a disk that is not the clone's is no failure."""
    removed, failed = _tried(entry, waiting)
    others = [e for e in failed if isinstance(e, LeftOver)]
    if len(others) < len(failed):
        undo_each([_raising(e) for e in failed])
    return removed, [f"{e}: `{e.finish}` if nobody needs it" for e in others]


def remove_old_disks(old: CloneEntry | None, waiting: Callable[[str], None]) -> list[str]:
    """Delete the disks of a clone that was replaced, and what is left of those before it.

    What cannot be deleted is noted in the journal of the new clone: it is tried again when that one
    is replaced or deleted.

    :returns: a warning for what is left.
    """
    warnings, left = [], []
    for entry in (replace(old, leftovers=()), *old.leftovers) if old else ():
        try:
            _, failed = _tried_alone(entry, waiting)
        except PyxlsnapError as e:  # a strategy is not there any more
            failed = [e]
        if disks := _left(entry, failed):
            left.append(replace(entry, children=disks))
            warnings.append(
                f"a disk of a clone that was replaced could not be deleted: "
                f"{'; '.join(map(str, failed))}: it is tried again when the clone is replaced or "
                f"deleted; by hand: {'; '.join(disk.delete for disk in disks)}"
            )
    return warnings + (_noted(left) if left else [])


def _left(entry: CloneEntry, failed: list[PyxlsnapError]) -> tuple[CloneDisk, ...]:
    """The disks that could not be deleted; all of them if a failure names none."""
    named = [e.vdev.split(", ") if isinstance(e, DiskError) else entry.kinds for e in failed]
    vdevs = {vdev for some in named for vdev in some}
    return tuple(child for child in entry.children if child.vdev in vdevs)


def _noted(left: list[CloneEntry]) -> list[str]:
    """Note the disks that are left in the journal of the new clone; a warning if that fails."""
    journal = Journal(left[0].uuid)
    try:
        if isinstance(new := journal.read(), CloneEntry):
            journal.rewrite(replace(new, leftovers=tuple(left)))
    except OSError as e:  # the new clone is whole: it is not lost for this
        return [f"that disks are left could not be noted ({e.strerror}): delete them by hand"]
    return []
