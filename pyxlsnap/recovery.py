"""Finishing what an operation that was killed had begun, by its journal.

An unfinished create is rolled back: guest first, then disk snapshots and files. An unfinished
revert that had begun to destroy the domain goes forward, to its end.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pyxlsnap.disks import drop_kept, strategies
from pyxlsnap.errors import (
    BadMemoryFile,
    Busy,
    DomainNotFound,
    GuestTimeout,
    NeedsAttention,
    PyxlsnapError,
    UsageError,
)
from pyxlsnap.files import holders, open_regular, remove_directories
from pyxlsnap.journal import DomainLock, Entry, Journal, ShareLock, boot_id, unfinished
from pyxlsnap.memory import read_header
from pyxlsnap.model import DomainConfig, Recovered, Reverted, RunState, check_uuid
from pyxlsnap.ports import DiskStrategy, DiskTask, Guest, Host, StartMonitor
from pyxlsnap.processes import xl_monitor
from pyxlsnap.watched import keep_watched
from pyxlsnap.wording import command

log = logging.getLogger(__name__)

_QUIET_S, _QUIET_POLL_S = 30.0, 0.1

Adopted = Mapping[DiskStrategy, Exception | None]
#: does again, from the top, the revert that a journal tells of
Redo = Callable[[Entry], Reverted]


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
        if not _must_go_forward(host, entry):
            try:
                undo = _undo_create if entry.operation == "create" else _leave_revert
                recovered = undo(host, entry)
            finally:
                unwatched = _keep_watched(host, entry, start_monitor)
            journal.clear()
            return _with_lines(recovered, unwatched)
    finally:
        lock.release()
    _wait_until_quiet(host, entry)
    return _go_forward(entry, redo)


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
        except PyxlsnapError as e:
            failed.append(NeedsAttention(str(e), step="recover", left=[f"the journal of {uuid}"]))
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


def _undo_create(host: Host, entry: Entry) -> Recovered:
    done: list[str] = []
    left: list[str] = []
    guest = _find(host, entry.uuid)
    adopted = _adopt(guest.domid if guest else entry.domid, entry)
    try:
        if guest and _resume(guest, entry, adopted):
            done.append(f"resumed {guest.name}")
        complete = _is_ours(Path(entry.memory_path), entry)
        if complete and Path(entry.cfgfile).exists():
            done.append(f"the snapshot {entry.name} is complete: see {entry.cfgfile}")
            return Recovered(tuple(done), rolled_back=False)
        done += _undo_disks(adopted, left)
    finally:
        for strategy in adopted:
            strategy.close()
    if left and not guest:
        left.insert(0, f"{entry.domain} is gone, and a disk snapshot {entry.name} may be left")
    ours = [*entry.temporary, *([entry.memory_path] if complete else [])]
    done += _remove_files(ours, left)
    done += remove_directories([Path(d) for d in entry.directories])
    if left:
        raise NeedsAttention(
            "; ".join(left),
            step="recover",
            undone=done,
            left=left,
            finish=f"when you have looked at it: rm {Journal(entry.uuid).path}",
        )
    return Recovered(tuple(done), rolled_back=True)


def _adopt(domid: int, entry: Entry) -> Adopted:
    """The disk strategies of the dead process; each with why it may not reach all its disks."""
    chosen = list(zip(entry.devices, entry.disks, strict=True))
    adopted: dict[DiskStrategy, Exception | None] = {}
    for strategy in strategies(chosen, DiskTask(entry.name)):
        _refuse_other_kind(strategy, entry)
        adopted[strategy] = None
        try:
            strategy.adopt_create(domid, began=entry.started, state=entry.disk_state)
        except Exception as e:
            adopted[strategy] = e
    return adopted


def _refuse_other_kind(strategy: DiskStrategy, entry: Entry) -> None:
    """Another strategy would not know what the dead process had begun."""
    for vdev in strategy.vdevs:
        if (kind := entry.kinds[vdev]) != strategy.kind:
            raise NeedsAttention(
                f"{vdev} was in the hands of the disk strategy {kind}, which is not installed any "
                f"more: install it again, and recover then",
                step="recover",
                left=[f"{entry.domain} may be suspended; a disk snapshot of {vdev} may be there"],
                finish=f"pyxlsnap snapshot-recover {entry.uuid}",
            )


def _undo_disks(adopted: Adopted, left: list[str]) -> list[str]:
    done = []
    for strategy, hindrance in adopted.items():
        try:
            done += strategy.undo_create()
        except Exception as e:
            left.append(str(hindrance or e) or type(e).__name__)
    return done


def _remove_files(names: Sequence[str], left: list[str]) -> list[str]:
    done = []
    for name in names:
        try:
            Path(name).unlink()
            done.append(f"removed {name}")
        except FileNotFoundError:
            pass
        except OSError as e:
            left.append(f"{name}: {e.strerror}")
    return done


def _resume(guest: Guest, entry: Entry, adopted: Adopted) -> bool:
    try:
        for strategy in adopted:
            strategy.settle()
        return guest.ensure_running(paused=entry.paused)
    except GuestTimeout as e:
        raise NeedsAttention(
            str(e),
            step="recover",
            left=[str(e)],
            finish=f"pyxlsnap snapshot-recover {entry.uuid}",
        ) from e
    except DomainNotFound:
        return False  # it has gone just now
    except Exception as e:
        left = [f"{guest} is suspended and cannot be resumed ({e})"]
        left += [f"its memory may be in {t}" for t in entry.temporary if Path(t).exists()]
        raise NeedsAttention(
            f"{'; '.join(left)}; nothing was deleted",
            step="recover",
            left=left,
            finish=f"pyxlsnap snapshot-recover {entry.uuid}",
        ) from e


def _is_ours(memory: Path, entry: Entry) -> bool:
    """Whether a memory file is that snapshot's: its name may be somebody else's by now."""
    try:
        with open_regular(memory) as file:
            header = read_header(file, str(memory))
        uuid = DomainConfig.parse(header.config_json).uuid
    except (OSError, BadMemoryFile, ValueError):
        return False
    name = header.metadata and header.metadata.name
    return (name, uuid) == (entry.name, entry.uuid)


def _must_go_forward(host: Host, entry: Entry) -> bool:
    """Whether it is a revert whose domain is off, or is half destroyed or half restored.

    Not one that nobody was to finish any more: then somebody may have worked in the domain since.
    """
    if entry.operation == "create" or not entry.begun or entry.told or entry.restored >= 0:
        return False
    guest = _guest(host, entry)
    if guest is None:
        return True
    info = guest.info()
    if entry.boot == boot_id() and guest.domid == entry.domid:
        return not info.lives
    return info.dying or not info.has_run


def _leave_revert(host: Host, entry: Entry) -> Recovered:
    """A revert that needs nothing more, or a person."""
    guest = _guest(host, entry)
    untouched = Recovered((f"{entry.domain} was not touched",), rolled_back=True)
    if not entry.begun:
        return untouched
    if guest and entry.boot == boot_id():
        if guest.domid == entry.restored:
            return _complete(guest, entry)
        if guest.info().lives:
            return untouched if guest.domid == entry.domid else _others(guest, entry)
    if guest and not entry.told:
        why = f"{guest} was started since, and its disks may be half-reverted"
    elif entry.restored >= 0:
        why = f"{entry.domain} was brought back to {entry.name} and has gone since, or goes on"
    else:
        why = f"reverting {entry.domain} to {entry.name} has failed, and was not finished"
    raise NeedsAttention(
        f"{why}; to go to the snapshot run the command again, else remove "
        f"{Journal(entry.uuid).path}",
        step="recover",
        left=[why],
        finish=command(entry.words),
    )


def _others(guest: Guest, entry: Entry) -> Recovered:
    since = (
        f"{guest} runs and was left alone; what was kept of its disks before the revert to "
        f"{entry.name} may still be there"
    )
    return Recovered((since,), rolled_back=False)


def _guest(host: Host, entry: Entry) -> Guest | None:
    """The domain of a revert: made by it, or not yet destroyed by it."""
    return _find(host, entry.uuid) or (_find(host, entry.replaced) if entry.replaced else None)


def _wait_until_quiet(host: Host, entry: Entry) -> None:
    """What the dead process had started ends by itself: qemu-img, a QEMU, the end of a domain."""
    end = time.monotonic() + _QUIET_S
    while time.monotonic() < end:
        guest = _guest(host, entry)
        own = guest.device_model_pid() if guest else None
        targets = [Path(d.target) for d in entry.devices if os.path.exists(d.target)]
        busy = [pid for target in targets for pid in holders(target) if pid != own]
        if not busy and not (guest and _is_dying(guest)):
            return
        time.sleep(_QUIET_POLL_S)


def _is_dying(guest: Guest) -> bool:
    try:
        return guest.info().dying
    except DomainNotFound:
        return True  # the next look will not find it


def _with_lines(recovered: Recovered, more: list[str]) -> Recovered:
    back = recovered.reverted
    if back:
        back = replace(back, warnings=(*back.warnings, *more))
    return replace(recovered, lines=(*recovered.lines, *more), reverted=back)


def _complete(guest: Guest, entry: Entry) -> Recovered:
    """It had restored the domain: what follows that is done."""
    if not guest.info().has_run and not entry.paused:  # else it was its owner who has paused it
        guest.unpause()
    chosen = list(zip(entry.devices, entry.disks, strict=True))
    warnings = drop_kept(strategies(chosen, DiskTask(entry.name)), guest.domid)
    return _finished(
        Reverted(
            name=entry.name,
            domain=guest.name,
            domid=guest.domid,
            uuid=guest.uuid,
            state=RunState.PAUSED if entry.paused else RunState.RUNNING,
            disks=tuple(disk.vdev for disk in entry.devices),
            warnings=tuple(warnings),
            kept=entry.kept,
        )
    )


def _go_forward(entry: Entry, redo: Redo) -> Recovered:
    try:
        return _finished(redo(entry))
    except NeedsAttention:
        raise
    except PyxlsnapError as e:
        raise NeedsAttention(
            f"reverting {entry.domain} to {entry.name} was killed once the destroy had begun, and "
            f"finishing it failed: {e}; run the command again when that is mended",
            step="recover",
            left=[f"{entry.domain} is off or half restored, its disks may be reverted"],
            finish=command(entry.words),
        ) from e


def _finished(reverted: Reverted) -> Recovered:
    line = f"{reverted.domain} is back at {reverted.name} and {reverted.state}"
    return Recovered((line, *reverted.warnings), rolled_back=False, reverted=reverted)


def _keep_watched(host: Host, entry: Entry, start_monitor: StartMonitor | None) -> list[str]:
    guest = _find(host, entry.uuid) if entry.monitor and start_monitor else None
    if guest is None or xl_monitor(guest.name):
        return []
    return keep_watched(start_monitor, guest.name, guest.uuid)


def _find(host: Host, uuid: str) -> Guest | None:
    try:
        return host.find(uuid)
    except DomainNotFound:
        return None
