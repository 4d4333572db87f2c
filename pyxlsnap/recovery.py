"""Finishing what an operation that was killed had begun, by its journal.

An unfinished create is rolled back (:mod:`.rollback`). An unfinished revert that had begun to
destroy the domain goes forward, to its end (:mod:`.completion`).
"""

from collections.abc import Callable
from dataclasses import replace

from pyxlsnap import completion
from pyxlsnap.completion import Redo
from pyxlsnap.errors import Busy, DomainNotFound, NeedsAttention, PyxlsnapError, UsageError
from pyxlsnap.journal import DomainLock, Entry, Journal, ShareLock, unfinished
from pyxlsnap.model import check_uuid
from pyxlsnap.outcome import Recovered
from pyxlsnap.ports import Host, StartMonitor, find_if_there
from pyxlsnap.processes import xl_monitor
from pyxlsnap.rollback import undo_create
from pyxlsnap.watched import keep_watched


def recover(
    host: Host,
    uuid: str,
    *,
    redo: Redo,
    wait_s: float = 0.0,
    share_lock: ShareLock = lambda _uuid, _fd: None,
    start_monitor: StartMonitor | None = None,
) -> Recovered:
    """Recover one domain, by uuid.

    :param redo: called without the lock, which it takes itself.
    :param wait_s: for so long, wait for somebody else who works on the domain.
    :param start_monitor: called if the operation that was killed would have called its own.
    :raises UsageError: that is no uuid.
    :raises Busy: the operation is still under way.
    :raises NeedsAttention: something is left that a person has to decide; the error says what.
    """
    uuid = check_uuid(uuid)
    lock = DomainLock(uuid, domain=uuid, wait_s=wait_s)
    try:
        share_lock(uuid, lock.fd)
        journal = Journal(uuid)
        entry = journal.read()
        if entry is None:
            return Recovered((), rolled_back=True)
        if not completion.must_go_forward(host, entry):
            try:
                undo = undo_create if entry.operation == "create" else completion.leave
                recovered = undo(host, entry)
            finally:
                unwatched = _keep_watched(host, entry, start_monitor)
            journal.clear()
            return _with_lines(recovered, unwatched)
    finally:
        lock.release()
    completion.wait_until_quiet(host, entry)
    return completion.go_forward(entry, redo)


def recover_every(one: Callable[[str], Recovered]) -> Recovered:
    """Recover every domain that has a journal, each by a call of ``one`` with its uuid.

    One that cannot be recovered does not keep the others from it. Operations that are still under
    way are left alone; the lines say so.

    :raises NeedsAttention: as :func:`recover`, for all of them.
    """
    lines: list[str] = []
    failed: list[NeedsAttention] = []
    back = True
    for uuid in unfinished():
        try:
            found = one(uuid)
            lines += [f"{uuid}: {line}" for line in found.lines]
            back = back and found.rolled_back
        except Busy as e:
            lines.append(f"{uuid}: {e}")
        except NeedsAttention as e:
            failed.append(e)
        except Exception as e:
            what = str(e) if isinstance(e, PyxlsnapError) else f"{uuid}: {type(e).__name__}: {e}"
            failed.append(NeedsAttention(what, step="recover", left=[f"the journal of {uuid}"]))
    if not failed:
        return Recovered(tuple(lines), rolled_back=back)
    raise NeedsAttention(
        "; ".join(map(str, failed)),
        step="recover",
        undone=[*lines, *(line for e in failed for line in e.undone)],
        left=[line for e in failed for line in e.left],
        finish="; ".join(e.finish for e in failed if e.finish),
    )


def uuid_of(host: Host, domain: str) -> str:
    """The uuid of a domain by any of its names; one that is off is known by its journal only.

    :raises DomainNotFound: there is neither such a domain nor an operation on one.
    """
    try:
        return check_uuid(domain)
    except UsageError:
        pass
    try:
        return host.find(domain).uuid
    except DomainNotFound:
        for uuid in unfinished():
            entry = Journal(uuid).read()
            if entry and entry.domain == domain:
                return uuid
        raise


def _with_lines(recovered: Recovered, more: list[str]) -> Recovered:
    back = recovered.reverted
    if back:
        back = replace(back, warnings=(*back.warnings, *more))
    return replace(recovered, lines=(*recovered.lines, *more), reverted=back)


def _keep_watched(host: Host, entry: Entry, start_monitor: StartMonitor | None) -> list[str]:
    guest = find_if_there(host, entry.uuid) if entry.monitor and start_monitor else None
    if guest is None or xl_monitor(guest.name):
        return []
    return keep_watched(start_monitor, guest.name, guest.uuid)
