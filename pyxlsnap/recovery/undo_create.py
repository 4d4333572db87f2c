"""Rolling back a create whose process was killed: the guest first, then disks and files."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pyxlsnap.create.way_back import finish
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.disks.registry import close_all, strategies
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import LeftOver
from pyxlsnap.errors import DomainNotFound, GuestTimeout, NeedsAttention
from pyxlsnap.guest import dirty_log
from pyxlsnap.guest.checks import attached
from pyxlsnap.guest.gone import is_gone, is_gone_soon
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.guest.resume import patiently
from pyxlsnap.journal import CreateEntry, Journal, boot_id, way_back_command
from pyxlsnap.linux.files import remove_directories
from pyxlsnap.linux.stalled import answer_within, stat_within
from pyxlsnap.linux.there import exists, may_exist
from pyxlsnap.linux.waiting import until
from pyxlsnap.monitor.steady import is_steady_on
from pyxlsnap.recovery import kept
from pyxlsnap.results import Recovered
from pyxlsnap.text import paused_again

log = logging.getLogger(__name__)

# A guest that has rebooted is started again within seconds.
_STARTING_S, _STARTING_POLL_S = 60.0, 0.1
# A big file takes some time.
_REMOVED_S = 60.0

Adopted = Sequence[tuple[DiskStrategy, Exception | None]]


class _Outcome(NamedTuple):
    """Lines for the user: the work undone, and the things left."""

    done: list[str]
    left: list[str]
    #: things left that another recovery cannot delete either
    leftovers: list[str]


def undo_create(
    host: Host, entry: CreateEntry, waiting: Callable[[str], None] = lambda _: None
) -> Recovered:
    """Roll a create back; if its snapshot is complete, keep the snapshot.

    :param waiting: :attr:`pyxlsnap.disks.task.DiskTask.waiting`.
    :raises NeedsAttention: the guest could not be resumed, or its disks could not be opened, or
        its only copy is out of reach, and nothing was deleted; or some disk snapshots or files
        could not be removed, and the others were.
    """
    may_start = _wait_until_started(host, entry)
    guest = host.find_if_there(entry.uuid)
    anew = guest is not None and not _is_same_run(guest, entry)
    ran_s = _pause_again(guest, entry) if guest and not anew else 0.0
    task = DiskTask(
        entry.name,
        started_anew=anew,
        attached=attached(guest, entry.devices) if anew else frozenset(),
        may_start=may_start,
        gone=partial(is_gone, guest) if guest else lambda: True,
        waiting=waiting,
    )
    adopted = _adopt(guest.domid if guest else None, entry, task)
    try:
        done = [paused_again(entry.domain, ran_s, "at most ")] if ran_s else []
        if guest and _resume(guest, entry, adopted, waiting):
            done.insert(0, f"resumed {guest.name}")
            entry = _without_way_back(entry)
        _notice_silent(entry, done)
        whole = _is_whole(entry, done)
        if entry.way_back and not whole:
            raise kept.out_of_reach(entry)
        if whole and entry.has_disks:
            done.append(f"the snapshot {entry.name} is complete: see {entry.cfgfile}")
            unfinished = finish(strategy for strategy, _ in adopted)
            return Recovered((*done, *unfinished), rolled_back=False)
        disks = _undo_disks(adopted)
    finally:
        close_all(strategy for strategy, _ in adopted)
    if guest and not anew and entry.hvm:
        dirty_log.switch_off(guest)
    if disks.left and not guest:
        disks.left.insert(0, f"{entry.domain} ended, and a disk snapshot {entry.name} may be left")
    keep = whole and bool(entry.way_back)  # its only copy, or of no use: nobody knows
    return _remove_all_files(entry, done, disks, keep=keep, ran_s=ran_s)


def _remove_all_files(
    entry: CreateEntry, done: Sequence[str], disks: _Outcome, *, keep: bool, ran_s: float
) -> Recovered:
    """The end of the undo, after the disks.

    :param done: what was done before the disks.
    :param keep: keep the memory file and the cfgfile.
    :param ran_s: for how long a paused guest ran at most, seconds.
    """
    stays = [f"the memory of {entry.domain} stays: see {entry.cfgfile}"] if keep else []
    ours = [] if keep else kept.published(entry)
    names = [*entry.temporary, *ours]
    files = answer_within(lambda: _remove_all(names, entry.directories), within_s=_REMOVED_S)
    if files is None:
        raise _silent(entry, [*done, *disks.done], "does not let a file be removed")
    removed = files.done
    done = [*done, *disks.done, *stays, *removed]
    if left := disks.left + files.left:
        raise _left_over(entry, done, [*left, *disks.leftovers])
    as_before = not (keep or disks.leftovers)
    return Recovered((*done, *disks.leftovers), rolled_back=as_before, seconds_unpaused=ran_s)


def _notice_silent(entry: CreateEntry, done: Sequence[str]) -> None:
    """:raises NeedsAttention: the storage of the memory file does not answer; the guest runs."""
    try:
        stat_within(Path(entry.memory_path).parent)
    except TimeoutError:
        raise _silent(entry, done, "does not answer") from None
    except OSError:
        pass  # what is missing is told by file


def _is_whole(entry: CreateEntry, done: Sequence[str]) -> bool:
    """Whether the snapshot is complete.

    :raises NeedsAttention: that cannot be told, and nothing was deleted.
    """
    try:
        return kept.is_whole(entry)
    except OSError as e:
        if entry.way_back:
            raise kept.out_of_reach(entry, e) from e
        raise _silent(entry, done, f"cannot be read ({e.strerror})") from e


def _silent(entry: CreateEntry, done: Sequence[str], how: str) -> NeedsAttention:
    """Make (not raise) the error for storage that stalls: another recovery does the rest."""
    what = f"the storage of {entry.memory_path} {how}: files and disk snapshots may be left there"
    finish = f"pyxlsnap snapshot-recover {entry.uuid}"
    return NeedsAttention(what, step="recover", undone=done, left=[what], finish=finish)


def _wait_until_started(host: Host, entry: CreateEntry) -> Callable[[], bool]:
    """Wait while xl starts a guest that has ended; returns whether xl may still do that."""

    def may_start() -> bool:
        return not is_steady_on(host, entry.uuid, name=entry.domain, domid=entry.domid)

    until(lambda: not may_start(), within_s=_STARTING_S, poll_s=_STARTING_POLL_S)
    return may_start


def _left_over(entry: CreateEntry, done: Sequence[str], left: Sequence[str]) -> NeedsAttention:
    """Make (not raise) the error for what could not be removed."""
    return NeedsAttention(
        "; ".join(left),
        step="recover",
        undone=done,
        left=left,
        finish=f"check what is left, then run: rm {Journal(entry.uuid).path}",
    )


def _without_way_back(entry: CreateEntry) -> CreateEntry:
    """Note that the guest runs again: what was kept is not its only copy any more."""
    if not entry.way_back:
        return entry
    entry = replace(entry, way_back="")
    try:
        Journal(entry.uuid).rewrite(entry)
    except OSError as e:  # another recovery deletes less then
        log.warning("%s: %s", Journal(entry.uuid).path, e.strerror)
    return entry


def _adopt(domid: int | None, entry: CreateEntry, task: DiskTask) -> Adopted:
    """The disk strategies of the killed process, each with the error of its adoption, if any."""
    chosen = list(zip(entry.devices, entry.disks, strict=True))
    try:
        found = strategies(chosen, task, entry.kinds, trusted=True)
    except Exception as e:  # without them it is unknown whether the guest may run
        raise NeedsAttention(
            f"{e}",
            step="recover",
            left=[f"{entry.domain} may be suspended, and disk snapshots {entry.name} may exist"],
            finish=f"pyxlsnap snapshot-recover {entry.uuid}",
        ) from e
    return [(strategy, _hindrance(strategy, domid, entry)) for strategy in found]


def _hindrance(strategy: DiskStrategy, domid: int | None, entry: CreateEntry) -> Exception | None:
    try:
        strategy.adopt_create(domid, began=entry.started, state=entry.disk_state)
        return None
    except Exception as e:
        return e


def _undo_disks(adopted: Adopted) -> _Outcome:
    outcome = _Outcome([], [], [])
    for strategy, hindrance in adopted:
        try:
            outcome.done.extend(strategy.undo_create())
        except LeftOver as e:
            outcome.leftovers.append(str(e))
        except Exception as e:
            outcome.left.append(_with_hindrance(str(e) or type(e).__name__, hindrance))
    return outcome


def _with_hindrance(why: str, hindrance: Exception | None) -> str:
    """Why an undo failed, first of all: QEMU may have answered since the adoption failed."""
    at_first = str(hindrance) or type(hindrance).__name__ if hindrance else why
    return why if at_first == why else f"{why} (when the recovery began: {at_first})"


def _remove_all(names: Sequence[str], made: Sequence[str]) -> _Outcome:
    """Remove files, and the directories that the create was to make."""
    files = _remove_files(names, made)
    files.done.extend(remove_directories([Path(d) for d in made]))
    return files


def _remove_files(names: Sequence[str], made: Sequence[str]) -> _Outcome:
    """Remove files.

    :param made: directories that the create was to make. If another directory is missing, its
        filesystem is not mounted.
    """
    outcome = _Outcome([], [], [])
    for name in names:
        try:
            Path(name).unlink()
            outcome.done.append(f"removed {name}")
        except FileNotFoundError:
            parent = Path(name).parent
            if str(parent) not in made and not exists(parent):
                outcome.left.append(
                    f"{parent} is not there: mount its filesystem; {name} may be left there"
                )
        except OSError as e:
            outcome.left.append(f"{name}: {e.strerror}")
    return outcome


def _pause_again(guest: Guest, entry: CreateEntry) -> float:
    """Pause a guest again that its owner had paused, before its disks: they may take long.

    :returns: for how long it ran at most, seconds.
    """
    if not entry.paused:
        return 0.0
    try:
        guest.pause_again()
    except DomainNotFound:
        return 0.0  # the guest has just ended
    except Exception as e:
        raise _not_back(f"{guest} had been paused, and cannot be paused again ({e})", entry) from e
    return max(time.time() - entry.unpaused_at, 0.001) if entry.unpaused_at is not None else 0.0


def _resume(
    guest: Guest, entry: CreateEntry, adopted: Adopted, waiting: Callable[[str], None]
) -> bool:
    try:
        for strategy, _ in adopted:
            strategy.settle()
        if not _is_same_run(guest, entry):
            return False
        ensure = partial(guest.ensure_running, paused=entry.paused)
        return patiently(guest, ensure, waiting, at_once=False)
    except GuestTimeout as e:
        raise NeedsAttention(
            str(e),
            step="recover",
            left=[str(e)],
            finish=f"pyxlsnap snapshot-recover {entry.uuid}",
        ) from e
    except DomainNotFound:
        return False  # the guest has just ended
    except Exception as e:
        if is_gone_soon(guest):
            return False
        raise _not_back(f"{guest} is suspended and cannot be resumed ({e})", entry) from e


def _not_back(what: str, entry: CreateEntry) -> NeedsAttention:
    """Make (not raise) the error for a guest that is not as it was; nothing was deleted."""
    left = [what, *(f"its memory may be in {t}" for t in entry.temporary if may_exist(t))]
    said, finish = "", f"pyxlsnap snapshot-recover {entry.uuid}"
    if entry.way_back and may_exist(entry.cfgfile) and not kept.why_unreadable(entry):
        finish = way_back_command(entry)
        said = f"; `{finish}` restores {entry.domain} from what was kept"
    return NeedsAttention(
        f"{'; '.join(left)}; nothing was deleted{said}", step="recover", left=left, finish=finish
    )


def _is_same_run(guest: Guest, entry: CreateEntry) -> bool:
    """Whether the domain has not been started anew since: else its state is not ours to change.

    (An entry of version 1 has no boot.)
    """
    return guest.domid == entry.domid and entry.boot in ("", boot_id())
