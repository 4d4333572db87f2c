"""Recovering a revert whose process was killed: finish it, or ask a person to decide."""

import os
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto
from pathlib import Path

from pyxlsnap.create.waiting import Reports
from pyxlsnap.disks.in_use import wait_for_qemu_img
from pyxlsnap.disks.kept import drop_kept
from pyxlsnap.disks.registry import strategies
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import DomainNotFound, NeedsAttention, PyxlsnapError
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.guest.resume import patiently
from pyxlsnap.journal import Journal, RevertEntry, boot_id
from pyxlsnap.linux.locks import RIVAL_S
from pyxlsnap.linux.processes import holders
from pyxlsnap.linux.waiting import until
from pyxlsnap.model import DomainInfo, RunState
from pyxlsnap.request import Callbacks, revert_command
from pyxlsnap.results import Recovered, Reverted
from pyxlsnap.revert.operation import revert
from pyxlsnap.revert.ready import take_back

_QUIET_S, _QUIET_POLL_S = 30.0, 0.1


class Decision(Enum):
    """The ways to handle a revert that was killed; :func:`decide` has the table."""

    #: nothing was changed: there is nothing to do
    UNTOUCHED = auto()
    #: do the revert again, from its first step
    REDO = auto()
    #: the domain is restored: do the remaining steps
    COMPLETE = auto()
    #: a user or program has started the domain since: leave it alone
    LEAVE = auto()
    #: a person must act: a domain that the journal does not know holds the name
    ASK_HELD = auto()
    #: a person must decide: the domain was started, and its disks may be reverted only in part
    ASK_STARTED = auto()
    #: a person must decide: the domain was restored, and has ended since
    ASK_ENDED = auto()
    #: a person must decide: the revert failed, and its error was reported
    ASK_FAILED = auto()


def decide(
    entry: RevertEntry, now: DomainInfo | None, *, same_boot: bool, held: bool = False
) -> Decision:
    """Decide about a revert that was killed. The first row that fits decides:

    ============= ======== ======== ==================================== ===========
    destroy begun restored informed domain now                           decision
    ============= ======== ======== ==================================== ===========
    no                                                                   UNTOUCHED
    yes           no       no       as in one of the next three rows,    ASK_HELD
                                    and a stranger holds the name
    yes           no       no       off                                  REDO
    yes           no       no       the original, not running            REDO
    yes           no       no       another, dying or never run          REDO
    yes           yes               the restored domain                  COMPLETE
    yes                             the original, running                UNTOUCHED
    yes                             another, running since this boot     LEAVE
    yes                    no       there                                ASK_STARTED
    yes           yes                                                    ASK_ENDED
    yes                    yes                                           ASK_FAILED
    ============= ======== ======== ==================================== ===========

    The original and the restored domain are known by their domids, which hold for one boot of the
    host. A revert whose error was reported to the user is not done again: the user may have worked
    in the domain since.

    :param now: the domain of the entry's uuid (or of the uuid that the revert replaces).
    :param same_boot: the host has not been rebooted since the entry was written.
    :param held: a domain with a third uuid holds the domain's name: :func:`stranger`.
    """
    if not entry.destroy_begun:
        return Decision.UNTOUCHED
    is_original = now is not None and same_boot and now.domid == entry.domid
    if not entry.user_informed and entry.restored_domid is None and _ends(now, is_original):
        return Decision.ASK_HELD if held else Decision.REDO
    if now and same_boot and now.domid == entry.restored_domid:
        return Decision.COMPLETE
    if now and same_boot and now.lives:
        return Decision.UNTOUCHED if is_original else Decision.LEAVE
    if now and not entry.user_informed:
        return Decision.ASK_STARTED
    return Decision.ASK_FAILED if entry.restored_domid is None else Decision.ASK_ENDED


def _ends(now: DomainInfo | None, is_original: bool) -> bool:
    """Whether the domain is off, or is on its way from the destroy to the restore."""
    if now is None:
        return True
    return not now.lives if is_original else now.dying or not now.has_run


def decide_now(host: Host, guest: Guest | None, entry: RevertEntry) -> Decision:
    """:func:`decide`, for the domain and the host as they are now.

    :param guest: what :func:`find_guest` found.
    """
    now = _info(guest) if entry.destroy_begun else None
    held = entry.destroy_begun and stranger(host, entry) is not None
    return decide(entry, now, same_boot=entry.boot == boot_id(), held=held)


def stranger(host: Host, entry: RevertEntry) -> Guest | None:
    """The domain that holds the name, if the journal does not know the domain's uuid.

    A user or program has started it since. It is not the domain that the revert was to destroy.
    """
    holder = host.find_if_there(entry.domain)
    if holder is None or holder.name != entry.domain:  # (a name of digits is read as a domid)
        return None
    return None if holder.uuid in (entry.uuid, entry.replaced_uuid) else holder


def carry_out(
    host: Host,
    decided: Decision,
    guest: Guest | None,
    entry: RevertEntry,
    callbacks: Callbacks,
) -> Recovered:
    """Do what was decided. (:func:`redo` handles :attr:`Decision.REDO`.)

    :param guest: the domain for which it was decided.
    :raises NeedsAttention: a person must decide.
    """
    match decided:
        case Decision.UNTOUCHED:
            if left := take_back(entry):
                raise _not_taken_back(entry, left)
            return Recovered((f"{entry.domain} was not touched",), rolled_back=True)
        case Decision.COMPLETE if guest:
            return _complete(guest, entry, Reports(callbacks))
        case Decision.LEAVE if guest:
            return _leave(guest, entry)
        case Decision.ASK_HELD if holder := stranger(host, entry):
            raise _held(holder, entry)
        case Decision.ASK_STARTED:
            why = (
                f"{guest} was started after its revert to {entry.name} was killed, and its "
                f"disks may be reverted only in part"
            )
        case Decision.ASK_ENDED:
            why = (
                f"{entry.domain} was restored to {entry.name}, and has ended or was restarted since"
            )
        case _:
            why = f"reverting {entry.domain} to {entry.name} failed, and was not finished"
    raise NeedsAttention(
        f"{why}; to go to the snapshot, run the command again; to keep the present state, remove "
        f"{Journal(entry.uuid).path}",
        step="recover",
        left=[why],
        finish=revert_command(entry.request),
    )


def _not_taken_back(entry: RevertEntry, left: list[str]) -> NeedsAttention:
    return NeedsAttention(
        f"{entry.domain} was not touched, but {'; '.join(left)}: correct the cause, then run the "
        f"command again; or remove what is left, and {Journal(entry.uuid).path}",
        step="recover",
        left=left,
        finish=f"pyxlsnap snapshot-recover {entry.uuid}",
    )


def _held(holder: Guest, entry: RevertEntry) -> NeedsAttention:
    why = (
        f"{holder}, uuid {holder.uuid}, holds the name {entry.domain} and was started after the "
        f"revert of {entry.domain} to {entry.name} was killed"
    )
    return NeedsAttention(
        f"{why}: nothing was destroyed; rename or shut down that domain, then run the command "
        f"again; or keep that domain and remove {Journal(entry.uuid).path}: its disks may be "
        f"reverted only in part",
        step="recover",
        left=[why],
        finish=f"pyxlsnap snapshot-recover {entry.uuid}",
    )


def _leave(guest: Guest, entry: RevertEntry) -> Recovered:
    line = (
        f"{guest} runs and was left alone; kept copies of its disks, from before the revert to "
        f"{entry.name}, may be left"
    )
    return Recovered((line, *take_back(entry)), rolled_back=False)


def find_guest(host: Host, entry: RevertEntry) -> Guest | None:
    """The domain of a revert: restored by the revert, or not yet destroyed."""
    return host.find_if_there(entry.uuid) or (
        host.find_if_there(entry.replaced_uuid) if entry.replaced_uuid else None
    )


def _info(guest: Guest | None) -> DomainInfo | None:
    try:
        return guest.info() if guest else None
    except DomainNotFound:
        return None  # it ended just now


def _complete(guest: Guest, entry: RevertEntry, waiting: Callable[[str], None]) -> Recovered:
    """Do the steps after the restore."""
    if not guest.info().has_run and not entry.paused:  # else the user has paused it
        patiently(guest, guest.unpause, waiting)
    return _finished(
        Reverted(
            name=entry.name,
            domain=guest.name,
            domid=guest.domid,
            uuid=guest.uuid,
            state=RunState.PAUSED if entry.paused else RunState.RUNNING,
            disks=tuple(disk.vdev for disk in entry.devices),
            warnings=tuple(_drop_kept(guest, entry, waiting)),
            kept=entry.present_cfgfile,
        )
    )


def _drop_kept(guest: Guest, entry: RevertEntry, waiting: Callable[[str], None]) -> list[str]:
    chosen = list(zip(entry.devices, entry.disks, strict=True))
    try:
        task = DiskTask(entry.name, finishes=entry.disk_state, waiting=waiting)
        found = strategies(chosen, task, entry.kinds)
    except Exception as e:
        return [f"the kept state of the disks before the revert could not be removed: {e}"]
    return drop_kept(found, guest.domid)


def redo(host: Host, entry: RevertEntry, callbacks: Callbacks) -> Recovered:
    """Do the revert again, from its first step. Takes the domain's lock.

    :raises NeedsAttention: the revert failed again, or is not to be done any more; the journal
        stays.
    """
    _wait_until_quiet(host, entry, Reports(callbacks))

    def recheck(guest: Guest | None) -> None:
        _check_redo(host, guest, entry)

    request = replace(entry.request, keep_current=False, wait_s=RIVAL_S)
    if not entry.monitor:
        callbacks = replace(callbacks, start_monitor=None)
    try:
        return _finished(revert(host, request, callbacks, recheck=recheck))
    except NeedsAttention:
        raise
    except PyxlsnapError as e:
        raise NeedsAttention(
            f"reverting {entry.domain} to {entry.name} was killed after the destroy had begun, and "
            f"finishing the revert failed: {e}; correct the cause, then run the command again",
            step="recover",
            left=[f"{entry.domain} is off or incomplete, and its disks may be reverted already"],
            finish=revert_command(entry.request),
        ) from e


def _check_redo(host: Host, guest: Guest | None, entry: RevertEntry) -> None:
    """Decide again, when the locks are held and the domain to destroy is known.

    :param guest: the domain that the revert would destroy.
    :raises NeedsAttention: the revert is not to be done any more; nothing was changed.
    """
    if holder := stranger(host, entry):
        raise _held(holder, entry)
    known = guest is None or guest.uuid in (entry.uuid, entry.replaced_uuid)
    unchanged = Journal(entry.uuid).read() == entry
    if known and unchanged and decide_now(host, guest, entry) is Decision.REDO:
        return
    why = (
        f"{guest} was started meanwhile, and was left alone"
        if unchanged
        else f"another process has worked on the revert of {entry.domain} meanwhile"
    )
    raise NeedsAttention(
        f"{why}: run the command again",
        step="recover",
        left=[why],
        finish=f"pyxlsnap snapshot-recover {entry.uuid}",
    )


def _wait_until_quiet(host: Host, entry: RevertEntry, waiting: Callable[[str], None]) -> None:
    """Wait until qemu-img, QEMU and the destroy that the dead process started have ended.

    A qemu-img does its work to the end, however long that takes.
    """
    until(lambda: _is_quiet(host, entry), within_s=_QUIET_S, poll_s=_QUIET_POLL_S)
    wait_for_qemu_img(entry.devices, waiting)


def _is_quiet(host: Host, entry: RevertEntry) -> bool:
    guest = find_guest(host, entry)
    own = guest.device_model_pid() if guest else None
    busy = any(pid != own for pid in _holders(entry))
    return not busy and not (guest and _is_dying(guest))


def _holders(entry: RevertEntry) -> list[int]:
    """The processes that have a file of the disks open."""
    targets = [Path(d.target) for d in entry.devices if os.path.exists(d.target)]
    return [pid for target in targets for pid in holders(target)]


def _is_dying(guest: Guest) -> bool:
    try:
        return guest.info().dying
    except DomainNotFound:
        return True  # the domain has ended


def _finished(reverted: Reverted) -> Recovered:
    line = f"{reverted.domain} is back at {reverted.name} and {reverted.state}"
    return Recovered((line, *reverted.warnings), rolled_back=False, reverted=reverted)
