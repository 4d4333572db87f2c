"""Taking a clone apart: its domain, its disks, its file. Nothing else is touched.

A delete, a replacement, the undo of a clone and its recovery do this with the same functions.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.clone.line_files import delete_line_files
from pyxlsnap.clone.names import lock_name, refuse_renamed, refuse_unfinished
from pyxlsnap.clone_file import CloneFile, find_clone, not_mounted
from pyxlsnap.create.waiting import Reports
from pyxlsnap.disks.abilities import CloningStrategy
from pyxlsnap.disks.registry import close_all, strategies
from pyxlsnap.disks.standing import has_snapshots_inside, standing_on
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import LeftOver, undo_each
from pyxlsnap.errors import (
    DiskError,
    DomainNotFound,
    Interrupted,
    NeedsAttention,
    PyxlsnapError,
    Refused,
)
from pyxlsnap.guest.destroy import destroy
from pyxlsnap.guest.protocols import Guest, Host, find_if_there
from pyxlsnap.journal import CloneEntry, Journal, boot_id
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.model import DomainInfo
from pyxlsnap.request import Callbacks, DeleteCloneRequest
from pyxlsnap.results import CloneDisk, Deleted, Progress


def delete_clone(
    host: Host, request: DeleteCloneRequest, callbacks: Callbacks, cancel: Cancel | None = None
) -> Deleted:
    """Destroy a clone and delete its disks, in this process.

    :raises DomainNotFound: there is no clone of this name.
    :raises Busy, Refused: another operation on it is under way, or was killed; its domain was
        renamed; or a disk could not be deleted.
    :raises Interrupted: ``cancel`` was set before anything was done.
    :raises NeedsAttention: it failed when it had begun; the error lists what is left.
    """
    with _locked(request, callbacks) as found:
        refuse_renamed(find_if_there(host, found.uuid), found.domain)
        refuse_undeletable(found)
        try:
            (cancel or Cancel()).check()
        except Cancelled:
            what = f"the delete of the clone {found.domain} was interrupted"
            raise Interrupted(what, step="plan") from None
        entry = replace(found, deleting=True, boot=boot_id())
        Journal(entry.uuid).write(entry)
        return finish_delete(host, entry, callbacks)


@contextmanager
def _locked(request: DeleteCloneRequest, callbacks: Callbacks) -> Iterator[CloneEntry]:
    """Hold the locks of a clone.

    :returns: its entry.
    """
    name = request.domain
    with ExitStack() as locks:
        locks.callback(lock_name(name).release)
        refuse_unfinished(name)
        if (found := find_clone(name)) is None:
            raise DomainNotFound(f"there is no clone {name!r} of pyxlsnap", domain=name)
        lock = DomainLock(found.uuid, domain=name)
        locks.callback(lock.release)
        callbacks.share_lock(found.uuid, lock.fd)
        Journal(found.uuid).refuse_unfinished()
        yield found


def refuse_undeletable(entry: CloneEntry) -> None:
    """Find before the destroy of a clone what would keep its disks from being deleted after it.

    :raises Refused: a strategy that made a disk is not there, an image stands on a disk, a disk has
        disk snapshots inside, or the filesystem of a disk is not mounted.
    """
    with _strategies(entry, lambda _: None), refusing_os_errors():
        for child in entry.children:
            path = Path(child.target)
            if where := not_mounted(entry, child):
                raise Refused(
                    f"the clone {entry.domain} cannot be deleted: its disk {path} is not there, "
                    f"and no filesystem is mounted at {where}: mount it first; if it is lost, "
                    f"destroy the domain and remove {CloneFile(entry.uuid).path}"
                )
            if not path.is_file():
                continue
            if images := standing_on(path, [path.parent]):
                raise Refused(
                    f"the clone {entry.domain} cannot be deleted: {images[0]} stands on its disk "
                    f"{path}: delete what stands there first"
                )
            # (What a guest has written to a raw disk may look like an image.)
            if child.format == "qcow2" and has_snapshots_inside(path):
                raise Refused(
                    f"the clone {entry.domain} cannot be deleted: there are disk snapshots inside "
                    f"its disk {path}, which would be lost: delete them first, with the commands "
                    f"that snapshot-create printed (`qemu-img snapshot -l` lists them)"
                )


def finish_delete(host: Host, entry: CloneEntry, callbacks: Callbacks) -> Deleted:
    """Do the steps of a delete whose entry is in the journal. The caller holds the clone's lock.

    :raises NeedsAttention: a step failed; the journal stays, but for a disk that is not the
        clone's any more, which only a person can delete.
    """
    lines: list[str] = []
    try:
        callbacks.on_progress(Progress("destroy"))
        if guest := find_if_there(host, entry.uuid):
            lines += destroyed(guest)
        callbacks.on_progress(Progress("disks"))
        lines += delete_line_files(entry)
        lines += remove_disks(entry, Reports(callbacks))
    except LeftOver as e:
        _forget(entry)
        raise _unfinished(entry, e, lines, e.finish) from e
    except Exception as e:
        finish = f"pyxlsnap snapshot-recover {entry.uuid}"
        raise _unfinished(entry, e, lines, finish) from e
    _forget(entry)
    return Deleted(entry.name, entry.domain, entry.uuid, entry.cfgfile, tuple(lines))


def _forget(entry: CloneEntry) -> None:
    CloneFile(entry.uuid).clear()
    Journal(entry.uuid).clear()


def _unfinished(
    entry: CloneEntry, cause: Exception, lines: list[str], finish: str
) -> NeedsAttention:
    return NeedsAttention(
        f"deleting the clone {entry.domain} of {entry.name} failed: {cause}",
        step="delete",
        undone=lines,
        left=[str(cause)],
        finish=finish,
    )


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
    away = _not_seen(entry)
    failed: list[PyxlsnapError] = [*away]
    with _strategies(entry, waiting) as found:
        for strategy in found:
            vdevs = set(strategy.vdevs) - {e.vdev for e in away}
            disks = [child for child in entry.children if child.vdev in vdevs]
            try:
                removed += strategy.delete_clone(disks, entry.disk_state)
            except PyxlsnapError as e:
                failed.append(e)
    return removed, failed


def _not_seen(entry: CloneEntry) -> list[DiskError]:
    """The errors for the disks whose filesystem is not mounted: they are not deleted."""
    return [
        DiskError(
            f"{child.target} is not there, and no filesystem is mounted at {where}: mount it, then "
            f"run the command again",
            vdev=child.vdev,
        )
        for child in entry.children
        if (where := not_mounted(entry, child))
    ]


@contextmanager
def _strategies(
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
