"""Deleting a clone, in this process: the locks, the checks, and the steps.

The steps are taken by a recovery, too, when the process that began them was killed.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.clone.line_files import delete_line_files
from pyxlsnap.clone.names import lock_name, refuse_unfinished
from pyxlsnap.clone.removal import destroyed, remove_disks
from pyxlsnap.clone.undeletable import refuse_undeletable
from pyxlsnap.clone_file import CloneFile, find_clone
from pyxlsnap.create.waiting import Reports, heard
from pyxlsnap.disks.undo import LeftOver
from pyxlsnap.errors import DomainNotFound, Interrupted, NeedsAttention
from pyxlsnap.guest.protocols import Host
from pyxlsnap.journal import CloneEntry, Journal, boot_id
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.request import Callbacks, DeleteCloneRequest
from pyxlsnap.results import Deleted, Progress


def delete_clone(
    host: Host, request: DeleteCloneRequest, callbacks: Callbacks, cancel: Cancel | None = None
) -> Deleted:
    """Destroy a clone and delete its disks, in this process.

    :raises DomainNotFound: there is no clone of this name.
    :raises Busy, Refused: another operation on it is under way, or was killed; its domain was
        renamed; or a disk is in use by others, or could not be deleted.
    :raises Interrupted: ``cancel`` was set before anything was done.
    :raises NeedsAttention: it failed when it had begun; the error lists what is left.
    """
    cancel = cancel or Cancel()
    with _locked(request, callbacks) as found:
        try:
            for entry in (found, *found.leftovers):
                refuse_undeletable(host, entry, heard(cancel, Reports(callbacks)))
            cancel.check()
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


def finish_delete(host: Host, entry: CloneEntry, callbacks: Callbacks) -> Deleted:
    """Do the steps of a delete whose entry is in the journal. The caller holds the clone's lock.

    :raises NeedsAttention: a step failed; the journal stays, but for a disk that is not the
        clone's any more, which only a person can delete.
    """
    lines: list[str] = []
    try:
        callbacks.on_progress(Progress("destroy"))
        if guest := host.find_if_there(entry.uuid):
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
