"""Finishing what an operation that was killed had begun, by its journal.

An unfinished create is rolled back: guest first, then disk snapshots and files. An unfinished
revert that had destroyed the domain can only go forward, by the command in the error.
"""

import logging
from pathlib import Path

from pyxlsnap.disks import strategies
from pyxlsnap.errors import DomainNotFound, NeedsAttention, PyxlsnapError
from pyxlsnap.journal import DomainLock, Entry, Journal, ShareLock
from pyxlsnap.model import DiskRequest
from pyxlsnap.ports import Guest, Host

log = logging.getLogger(__name__)

_SETTLE_S, _REQUEST_S = 2.0, 90.0


def recover(
    host: Host, uuid: str, *, share_lock: ShareLock = lambda _uuid, _fd: None
) -> tuple[str, ...]:
    """Recover one domain, by uuid; returns what was done, a line each (nothing: ``()``).

    :raises Busy: the operation is still under way.
    :raises NeedsAttention: something is left that a person has to decide; the error says what.
    """
    lock = DomainLock(uuid, domain=uuid)
    try:
        share_lock(uuid, lock.fd)
        journal = Journal(uuid)
        entry = journal.read()
        if entry is None:
            return ()
        done = _undo_create(host, entry) if entry.operation == "create" else _look(host, entry)
        journal.clear()
        return tuple(done)
    finally:
        lock.release()


def _undo_create(host: Host, entry: Entry) -> list[str]:
    done: list[str] = []
    left: list[str] = []
    guest = _find(host, entry.uuid)
    if guest and guest.ensure_running(settle_s=_SETTLE_S, request_s=_REQUEST_S):
        done.append(f"resumed {guest.name}")
    if Path(entry.cfgfile).exists() and Path(entry.memory_path).exists():
        return [*done, f"the snapshot {entry.name} was complete: see {entry.cfgfile}"]
    if guest:
        done += _undo_disks(guest, entry, left)
    elif entry.disks:
        vdevs = ", ".join(d.vdev for d in entry.disks)
        left.append(f"{entry.domain} is gone; {vdevs} may hold a disk snapshot {entry.name}")
    for name in (*entry.temporary, entry.memory_path):
        if Path(name).exists():
            Path(name).unlink()
            done.append(f"removed {name}")
    if left:
        raise NeedsAttention("; ".join(left), step="recover", undone=done, left=left)
    return done


def _undo_disks(guest: Guest, entry: Entry, left: list[str]) -> list[str]:
    """Delete the disk snapshots that were made: their names were free when the journal began."""
    by_vdev = {d.vdev: d for d in guest.config().disks}
    wanted = [(by_vdev[r.vdev], DiskRequest(r.vdev, r.path, r.format)) for r in entry.disks]
    done = []
    for strategy in strategies(wanted, name=entry.name):
        try:
            strategy.adopt_create(guest.domid, began=entry.started)
            done += strategy.undo_create()
        except PyxlsnapError as e:
            left.append(str(e))
        finally:
            strategy.close()
    return done


def _look(host: Host, entry: Entry) -> list[str]:
    guest = _find(host, entry.uuid)
    if guest and guest.domid == entry.domid and not guest.info().shutdown:
        return [f"{entry.domain} was not touched"]
    raise NeedsAttention(
        f"reverting {entry.domain} to {entry.name} was killed after the domain was destroyed; "
        f"the snapshot is whole: run the command again to finish",
        step="recover",
        left=[f"{entry.domain} is off or half restored"],
        finish=f"pyxlsnap snapshot-revert {entry.uuid} {entry.cfgfile}",
    )


def _find(host: Host, uuid: str) -> Guest | None:
    try:
        return host.find(uuid)
    except DomainNotFound:
        return None
