"""Deleting a snapshot, in this process: the locks, the plan, and the run of the sequence."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from pyxlsnap import cfgfile
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.clone_file import IN_USE
from pyxlsnap.delete.plan import Parts, find_guest, make_plan, parts_of, read_parts
from pyxlsnap.delete.sequence import Deletion
from pyxlsnap.errors import Interrupted, NeedsAttention, PyxlsnapError, Refused
from pyxlsnap.guest.protocols import Host
from pyxlsnap.journal import DeleteEntry, Journal, unfinished
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.linux.processes import holders, process_name
from pyxlsnap.linux.stalled import refuse_silent_file
from pyxlsnap.linux.there import may_exist
from pyxlsnap.linux.waiting import until
from pyxlsnap.request import Callbacks, DeleteRequest
from pyxlsnap.results import Deleted, Progress, Recovered

_QUIET_S, _QUIET_POLL_S = 30.0, 0.1


def delete(
    host: Host, request: DeleteRequest, callbacks: Callbacks, cancel: Cancel | None = None
) -> Deleted:
    """Delete a snapshot, in this process (see :mod:`pyxlsnap.create.operation`).

    A delete of the same cfgfile that was killed or has failed is finished.

    :raises UsageError, Refused: the cfgfile is wrong, or a part cannot be deleted safely; nothing
        was changed.
    :raises OperationFailed, Interrupted: it ended before anything was deleted; the snapshot is
        whole. A disk, or a later disk snapshot, may not stand on this one any more.
    :raises NeedsAttention: it failed later. The error lists what is left, and has the command that
        finishes the delete; calling this again finishes it, too.
    """
    cancel = cancel or Cancel()
    request = read_cfgfile(request)
    try:
        with _locked(host, request, callbacks) as entry:
            callbacks.on_progress(Progress("checking"))
            request, parts = _resumed(request, entry)
            with closing(make_plan(host, request, parts, cancel)) as plan:
                return Deletion(plan, callbacks, cancel, entry=entry).run()
    except Cancelled:
        what = f"deleting the snapshot {request.cfgfile} was interrupted"
        raise Interrupted(what, step="plan") from None


def read_cfgfile(request: DeleteRequest) -> DeleteRequest:
    """Read the request's cfgfile into its ``config``. Needs no Xen.

    A delete that was killed or has failed may have deleted the cfgfile: then the journal has its
    content, and ``config`` stays ``None``.

    :raises ConfigError: the cfgfile is wrong, or not there.
    :raises Refused: its server does not answer.
    """
    if request.config is not None:
        return request
    refuse_silent_file(Path(request.cfgfile))
    if not may_exist(request.cfgfile) and _find_entry(request.cfgfile):
        return request
    return replace(request, config=cfgfile.read(Path(request.cfgfile)))


def finish(host: Host, entry: DeleteEntry) -> Recovered:
    """Finish a delete that was killed or has failed. The caller holds the domain's lock.

    :raises NeedsAttention: something is left; the journal stays.
    """
    what = f"the snapshot {entry.name} of {entry.domain}"
    _wait_until_quiet(entry)
    if not entry.begun:
        return Recovered((f"nothing was deleted: {what} is whole",), rolled_back=True)
    try:
        parts = parts_of(entry)
        with _no_new_clones(parts), closing(make_plan(host, entry.request, parts)) as plan:
            deleted = Deletion(plan, entry=entry).run()
    except NeedsAttention:
        raise
    except PyxlsnapError as e:
        raise _unfinished(entry, str(e)) from e
    return Recovered((f"deleted {what}", *deleted.lines), rolled_back=False, deleted=deleted)


@contextmanager
def _locked(
    host: Host, request: DeleteRequest, callbacks: Callbacks
) -> Iterator[DeleteEntry | None]:
    """Hold the locks of the snapshot's domain, and of the domain that has its name now.

    :returns: the earlier run of the same delete, if it was killed or has failed.
    :raises Busy: another operation on the domain is under way.
    :raises Refused: another operation was killed.
    """
    _, parts = _resumed(request, _find_entry(request.cfgfile))
    guest = find_guest(host, parts)
    if guest and guest.device_model_pid() is not None:
        callbacks.will_ask_qemu()
    with ExitStack() as locks:
        locks.enter_context(_no_new_clones(parts))
        for uuid in sorted({parts.uuid, guest.uuid if guest else parts.uuid}):
            lock = DomainLock(uuid, domain=parts.domain)
            locks.callback(lock.release)
            callbacks.share_lock(uuid, lock.fd)
            Journal(uuid).unfinished_delete(request.cfgfile)
        yield Journal(parts.uuid).unfinished_delete(request.cfgfile)


@contextmanager
def _no_new_clones(parts: Parts) -> Iterator[None]:
    """Keep clones from being made meanwhile: they read the snapshot.

    :raises Busy: one is being made.
    """
    lock = DomainLock(parts.uuid, domain=parts.domain, kind=IN_USE)
    try:
        yield
    finally:
        lock.release()


def _resumed(request: DeleteRequest, entry: DeleteEntry | None) -> tuple[DeleteRequest, Parts]:
    """What to delete: what an earlier run has left, or what the files say."""
    if entry and entry.begun:
        return entry.request, parts_of(entry)
    if request.config is None:  # the earlier run was finished meanwhile
        request = replace(request, config=cfgfile.read(request.cfgfile))
    return request, read_parts(request)


def _find_entry(cfgfile: str) -> DeleteEntry | None:
    """The delete of this cfgfile that was killed or has failed."""
    for uuid in unfinished():
        try:
            entry = Journal(uuid).read()
        except Refused:  # damaged, or another release's
            continue
        if isinstance(entry, DeleteEntry) and entry.cfgfile == cfgfile:
            return entry
    return None


def _wait_until_quiet(entry: DeleteEntry) -> None:
    """Wait until a qemu-img that the dead process started has ended.

    :raises NeedsAttention: it still works after half a minute.
    """
    names = [*(disk.target for disk in entry.devices), *(disk.path for disk in entry.disks)]

    def quiet() -> bool:
        there = [Path(name) for name in names if name and os.path.exists(name)]
        return all(process_name(pid) != "qemu-img" for path in there for pid in holders(path))

    if not until(quiet, within_s=_QUIET_S, poll_s=_QUIET_POLL_S):
        raise _unfinished(entry, "qemu-img still works on the disks: wait until it has ended")


def _unfinished(entry: DeleteEntry, why: str) -> NeedsAttention:
    return NeedsAttention(
        f"deleting the snapshot {entry.name} of {entry.domain} was not finished: {why}; then run "
        f"the command again",
        step="recover",
        left=[f"parts of the snapshot {entry.name} of {entry.domain}"],
        finish=f"pyxlsnap snapshot-recover {entry.uuid}",
    )
