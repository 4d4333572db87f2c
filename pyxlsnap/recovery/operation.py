"""Finishing what an operation that was killed had begun, by its journal.

An unfinished create is rolled back (:mod:`.undo_create`). An unfinished revert that had begun to
destroy the domain goes forward, to its end (:mod:`.finish_revert`).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pyxlsnap import cfgfile
from pyxlsnap.errors import Busy, DomainNotFound, NeedsAttention, PyxlsnapError, UsageError
from pyxlsnap.guest.protocols import Host, StartMonitor, find_if_there
from pyxlsnap.journal import Entry, Journal, unfinished
from pyxlsnap.linux.locks import RIVAL_S, DomainLock, ShareLock
from pyxlsnap.model import check_uuid
from pyxlsnap.monitor.launch import keep_watched
from pyxlsnap.monitor.xl import xl_monitor
from pyxlsnap.recovery import finish_revert
from pyxlsnap.recovery.finish_revert import Redo
from pyxlsnap.recovery.undo_create import undo_create
from pyxlsnap.results import Recovered, Reverted
from pyxlsnap.revert import operation as revert


def recover(
    host: Host,
    domain: str | None,
    *,
    wait_s: float = 0.0,
    share_lock: ShareLock = lambda _uuid, _fd: None,
    start_monitor: StartMonitor | None = None,
) -> Recovered:
    """Finish what operations that were killed had begun, in this process.

    A create is rolled back, a revert that had begun to destroy the domain goes to its end.

    :param domain: name, domid or uuid; it may be off. ``None``: every one that has a journal.
    :param wait_s: for so long, wait for somebody else who works on the domain.
    :raises DomainNotFound: there is neither such a domain nor an operation on one.
    :raises Busy: the one domain's operation is still under way.
    :raises NeedsAttention: something is left that a person has to decide; the error says what, of
        several domains all of it.
    """

    def redo(entry: Entry) -> Reverted:
        cfg = Path(entry.cfgfile)
        return revert.revert(
            host,
            entry.words[2],
            cfgfile.read(cfg),
            cfg,
            running="--running" in entry.words,
            force="--force" in entry.words,
            wait_s=RIVAL_S,
            share_lock=share_lock,
            start_monitor=start_monitor if entry.monitor else None,
        )

    def one(uuid: str) -> Recovered:
        return recover_one(
            host,
            uuid,
            redo=redo,
            wait_s=wait_s,
            share_lock=share_lock,
            start_monitor=start_monitor,
        )

    if domain is None:
        return recover_every(one)
    return one(uuid_of(host, domain))


def recover_one(
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
        if not finish_revert.must_go_forward(host, entry):
            try:
                undo = undo_create if entry.operation == "create" else finish_revert.leave
                recovered = undo(host, entry)
            finally:
                unwatched = _keep_watched(host, entry, start_monitor)
            journal.clear()
            return _with_lines(recovered, unwatched)
    finally:
        lock.release()
    finish_revert.wait_until_quiet(host, entry)
    return finish_revert.go_forward(entry, redo)


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
