"""Recovering operations that were killed, by their journals.

An unfinished create is rolled back (:mod:`.undo_create`). An unfinished revert that had begun to
destroy the domain is finished (:mod:`.finish_revert`), and so is a delete that had begun to delete
parts of the snapshot (:func:`pyxlsnap.delete.operation.finish`).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pyxlsnap.cancel import Cancel
from pyxlsnap.create.waiting import Waiting
from pyxlsnap.errors import Busy, DomainNotFound, Refused, UsageError
from pyxlsnap.guest.protocols import Host
from pyxlsnap.journal import (
    CloneEntry,
    CreateEntry,
    DeleteEntry,
    Entry,
    Journal,
    RevertEntry,
    unfinished,
)
from pyxlsnap.linux.locks import OPERATION, DomainLock
from pyxlsnap.linux.waiting import until
from pyxlsnap.model import check_uuid
from pyxlsnap.monitor.launch import keep_watched
from pyxlsnap.monitor.xl import xl_monitor
from pyxlsnap.recovery.every import Turn, recover_every
from pyxlsnap.request import Callbacks, RecoverRequest
from pyxlsnap.results import Recovered

# A monitor that acts may dump the guest's core, or wait for memory.
_MONITOR_S, _MONITOR_POLL_S = 300.0, 0.1


def recover(
    host: Host, request: RecoverRequest, callbacks: Callbacks, cancel: Cancel | None = None
) -> Recovered:
    """Recover operations that were killed, in this process.

    A create is rolled back; a revert that had begun to destroy the domain is finished, and so is a
    delete that had deleted something. A clone is completed or taken back.

    :param cancel: ends only the wait of the caller, where the recovery itself must wait
        (:attr:`Callbacks.leave`).
    :raises DomainNotFound: there is no such domain, and no journal of one.
    :raises Busy: an operation on the requested domain is still under way.
    :raises NeedsAttention: a person must decide or finish the work; the error lists what is left,
        for all domains together. The journals of these domains stay.
    """

    token = cancel or Cancel()

    def recover_one(uuid: str, callbacks: Callbacks, limit_s: float | None) -> Recovered:
        return _recover_one(host, uuid, callbacks, token, wait_s=request.wait_s, limit_s=limit_s)

    if request.domain is None:
        return recover_every(recover_one, callbacks)
    return recover_one(_uuid_of(host, request.domain), callbacks, None)


def _recover_one(
    host: Host,
    uuid: str,
    callbacks: Callbacks,
    cancel: Cancel,
    *,
    wait_s: float,
    limit_s: float | None,
) -> Recovered:
    uuid = check_uuid(uuid)  # a file in the journals' directory may have any name
    lock = DomainLock(uuid, domain=uuid, wait_s=wait_s, part=OPERATION)
    try:
        if not until(lock.close_to_monitor, within_s=_MONITOR_S, poll_s=_MONITOR_POLL_S):
            raise Busy(
                f"the guest of {uuid} has shut down, and its monitor is still acting on that: "
                f"wait until it has ended",
                domain=uuid,
            )
        callbacks.share_lock(uuid, lock.fd)
        journal = Journal(uuid)
        entry = journal.read()
        if entry is None:
            return Recovered((), rolled_back=True)
        told = Waiting(entry.domain, uuid, callbacks, cancel, suspended=False)
        waiting = Turn(told, limit_s)
        if finish := _way_to_finish(host, entry, waiting, callbacks):
            try:
                recovered = finish()
            finally:
                unwatched = _keep_watched(host, entry, callbacks)
            journal.clear()
            return _with_lines(recovered, unwatched)
    finally:
        lock.release()
    assert isinstance(entry, RevertEntry)
    from pyxlsnap.recovery.finish_revert import redo

    return redo(host, entry, callbacks)


def _way_to_finish(
    host: Host, entry: Entry, waiting: Callable[[str], None], callbacks: Callbacks
) -> Callable[[], Recovered] | None:
    """The recovery to run under the lock; ``None``: ``redo``, which takes the lock."""
    if isinstance(entry, CreateEntry):
        from pyxlsnap.recovery.undo_create import undo_create

        return partial(undo_create, host, entry, waiting)
    if isinstance(entry, DeleteEntry):
        from pyxlsnap.delete.operation import finish as finish_delete

        return partial(finish_delete, host, entry)
    if isinstance(entry, CloneEntry):
        from pyxlsnap.recovery.finish_clone import finish_clone

        return partial(finish_clone, host, entry, callbacks, waiting)
    from pyxlsnap.recovery.finish_revert import Decision, carry_out, decide_now, find_guest

    guest = find_guest(host, entry)
    decided = decide_now(host, guest, entry)
    if decided is Decision.REDO:
        return None
    return partial(carry_out, host, decided, guest, entry, callbacks)


def _uuid_of(host: Host, domain: str) -> str:
    """The uuid of a domain, from its uuid, name or domid.

    A domain that is off is found by the name in its journal.

    :raises DomainNotFound: there is no such domain, and no journal of one.
    """
    try:
        return check_uuid(domain)
    except UsageError:
        pass
    try:
        return host.find(domain).uuid
    except DomainNotFound:
        if uuid := _uuid_in_journals(domain):
            return uuid
        raise


def _uuid_in_journals(domain: str) -> str | None:
    for uuid in unfinished():
        try:
            entry = Journal(uuid).read()
        except Refused:  # damaged, or another release's: it may be of any other domain
            continue
        if entry and entry.domain == domain:
            return uuid
    return None


def _with_lines(recovered: Recovered, more: list[str]) -> Recovered:
    back, made = recovered.reverted, recovered.cloned
    if back:
        back = replace(back, warnings=(*back.warnings, *more))
    if made:
        made = replace(made, warnings=(*made.warnings, *more))
    lines = (*recovered.lines, *more)
    return replace(recovered, lines=lines, reverted=back, cloned=made)


def _keep_watched(host: Host, entry: Entry, callbacks: Callbacks) -> list[str]:
    """Start the monitor that the killed operation would have started."""
    wanted = entry.monitor and callbacks.start_monitor
    guest = host.find_if_there(entry.uuid) if wanted else None
    if guest is None or xl_monitor(guest.name, guest.domid):
        return []
    return keep_watched(callbacks.start_monitor, guest.name, guest.uuid)
