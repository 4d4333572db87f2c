"""Taking a clone apart: its domain, its disks, its file. Nothing else is touched.

A delete, a replacement, the undo of a clone and its recovery do this with the same functions.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.clone.line_files import delete_line_files
from pyxlsnap.clone.names import lock_name, refuse_unfinished
from pyxlsnap.clone_file import CloneFile, find_clone
from pyxlsnap.create.waiting import Reports
from pyxlsnap.disks.abilities import CloningStrategy
from pyxlsnap.disks.registry import close_all, strategies
from pyxlsnap.disks.standing import standing_on
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import LeftOver, undo_each
from pyxlsnap.errors import DomainNotFound, Interrupted, NeedsAttention, PyxlsnapError, Refused
from pyxlsnap.guest.destroy import destroy
from pyxlsnap.guest.protocols import Guest, Host, find_if_there
from pyxlsnap.journal import CloneEntry, Journal, boot_id
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.request import Callbacks, DeleteCloneRequest
from pyxlsnap.results import Deleted, Progress


def delete_clone(
    host: Host, request: DeleteCloneRequest, callbacks: Callbacks, cancel: Cancel | None = None
) -> Deleted:
    """Destroy a clone and delete its disks, in this process.

    :raises DomainNotFound: there is no clone of this name.
    :raises Busy, Refused: another operation on it is under way, or was killed; or a disk could not
        be deleted.
    :raises Interrupted: ``cancel`` was set before anything was done.
    :raises NeedsAttention: it failed when it had begun; the error lists what is left.
    """
    with _locked(request, callbacks) as found:
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

    :raises Refused: a strategy that made a disk is not there, or an image stands on a disk.
    """
    with _strategies(entry, lambda _: None), refusing_os_errors():
        for child in entry.children:
            path = Path(child.target)
            if not path.is_file():
                continue
            if images := standing_on(path, [path.parent]):
                raise Refused(
                    f"the clone {entry.domain} cannot be deleted: {images[0]} stands on its disk "
                    f"{path}: delete what stands there first"
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


def remove_disks(entry: CloneEntry, waiting: Callable[[str], None]) -> list[str]:
    """Delete the disks of a clone, whose domain is destroyed; returns what was deleted.

    :raises LeftOver: a disk is not the clone's any more: only a person can delete it.
    :raises PyxlsnapError: a disk could not be deleted.
    """
    removed, failed = [], []
    with _strategies(entry, waiting) as found:
        for strategy in found:
            disks = [child for child in entry.children if child.vdev in strategy.vdevs]
            try:
                removed += strategy.delete_clone(disks, entry.disk_state)
            except PyxlsnapError as e:
                failed.append(e)
    if failed:
        undo_each([_raising(e) for e in failed])
    return removed


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
) -> list[str]:
    """Delete the disks of a clone that is not completed; its domain is destroyed.

    If the clone before it was destroyed already, that one's disks are deleted, too. The file of the
    clone is deleted unless it is still that of the clone before.

    :param old: the clone that was to be replaced; ``None``: none.
    :raises PyxlsnapError: something is left.
    """
    lines = delete_line_files(entry, besides=None if entry.replace_begun else old)
    lines += remove_disks(entry, waiting)
    if old and not entry.replace_begun:
        return lines
    if old:
        lines += remove_disks(old, waiting)
    CloneFile(entry.uuid).clear()
    return lines


def remove_old_disks(old: CloneEntry | None, waiting: Callable[[str], None]) -> list[str]:
    """Delete the disks of a clone that was replaced; returns a warning for what is left."""
    if old is None:
        return []
    try:
        remove_disks(old, waiting)
    except PyxlsnapError as e:
        return [f"a disk of the clone that was replaced could not be deleted: {e}"]
    return []
