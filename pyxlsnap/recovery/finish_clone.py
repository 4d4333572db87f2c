"""Recovering a clone whose process was killed: complete it, or take it back."""

from collections.abc import Callable
from enum import Enum, auto

from pyxlsnap.clone.delete import finish_delete
from pyxlsnap.clone.removal import (
    destroyed,
    info_if_there,
    remove_old_disks,
    started_by_others,
    take_back,
)
from pyxlsnap.clone.report import cloned
from pyxlsnap.clone_file import CloneFile
from pyxlsnap.errors import NeedsAttention, PyxlsnapError
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.guest.resume import patiently
from pyxlsnap.journal import CloneEntry, boot_id
from pyxlsnap.linux.waiting import until
from pyxlsnap.model import DomainInfo, RunState
from pyxlsnap.request import Callbacks
from pyxlsnap.results import Recovered

_DYING_S, _DYING_POLL_S = 30.0, 0.1


class Decision(Enum):
    """The ways to handle a clone that was killed; :func:`decide` has the table."""

    #: the clone is restored: do the remaining steps
    COMPLETE = auto()
    #: the clone was restored, may have run, and is off: its disks are kept, as those of any clone
    KEEP = auto()
    #: remove what was made; a domain of this uuid is that of the clone which was not replaced yet
    TAKE_BACK = auto()
    #: the same, and destroy the domain: it is incomplete, or was to be replaced
    DESTROY = auto()
    #: the clone was being deleted: do the remaining steps
    DELETE = auto()
    #: a person must decide: a user or program has started a domain with the clone's uuid
    ASK = auto()


def decide(entry: CloneEntry, now: DomainInfo | None, *, same_boot: bool) -> Decision:
    """Decide about a clone that was killed. The first row that fits decides:

    ======== ======== ============= ================================= =========
    deleting restored destroy begun domain now                        decision
    ======== ======== ============= ================================= =========
    yes                                                               DELETE
    no       yes                    there, and the same boot          COMPLETE
    no       yes                    any other, or none                KEEP
    no       no                     none                              TAKE_BACK
    no       no       no            there, and it replaces a clone    TAKE_BACK
    no       no                     the one to be replaced or undone  DESTROY
    no       no                     dying, or never run               DESTROY
    no       no                     any other                         ASK
    ======== ======== ============= ================================= =========

    A clone whose undo has begun does not count as restored. The domain to be replaced, and the one
    that is undone, are known by their domids, which hold for one boot of the host. Nobody
    else knows the uuid of a clone that has not been published, so a domain that has never run is
    what a restore has left.

    :param now: the domain of the entry's uuid.
    :param same_boot: the host has not been rebooted since the entry was written.
    """
    if entry.deleting:
        return Decision.DELETE
    if entry.restored_domid is not None and not entry.undo_begun:
        return Decision.COMPLETE if now and same_boot else Decision.KEEP
    if now is None or (entry.replaces and not entry.replace_begun):
        return Decision.TAKE_BACK
    ours = (entry.domid if entry.replaces else None, entry.restored_domid)
    is_ours = same_boot and now.domid in ours
    if is_ours or now.dying or not now.has_run:
        return Decision.DESTROY
    return Decision.ASK


def finish_clone(
    host: Host, entry: CloneEntry, callbacks: Callbacks, waiting: Callable[[str], None]
) -> Recovered:
    """Complete a clone that was killed, or take it back. The caller holds the clone's lock.

    :raises NeedsAttention: a person must decide; the journal stays.
    """
    # Without a replacement, the file may be that of a clone whose parts were deleted by hand.
    old = CloneFile(entry.uuid).entry() if entry.replaces else None
    guest = host.find_if_there(entry.uuid)
    now, same_boot = info_if_there(guest), entry.boot == boot_id()
    decided = decide(entry, now, same_boot=same_boot)
    what = f"the clone {entry.domain} of {entry.name}"
    match decided:
        case Decision.DELETE:
            deleted = finish_delete(host, entry, callbacks)
            return Recovered(
                (f"deleted {what}", *deleted.lines), rolled_back=False, deleted=deleted
            )
        case Decision.COMPLETE if guest:
            return _complete(guest, entry, old, waiting)
        case Decision.KEEP:
            return _keep(entry, old, waiting)
        case Decision.ASK if guest:
            raise started_by_others(guest, entry)
    lines = [f"took back {what}"] if decided is Decision.TAKE_BACK else [f"removed {what}"]
    try:
        if guest and decided is Decision.DESTROY:
            lines += destroyed(guest)
            until(
                lambda: host.find_if_there(entry.uuid) is None,
                within_s=_DYING_S,
                poll_s=_DYING_POLL_S,
            )
        removed, left = take_back(entry, old, waiting)
    except PyxlsnapError as e:
        raise NeedsAttention(
            f"taking back {what} failed: {e}",
            step="recover",
            undone=lines,
            left=[str(e)],
            finish=f"pyxlsnap snapshot-recover {entry.uuid}",
        ) from e
    return Recovered((*lines, *removed, *left), rolled_back=not entry.replace_begun)


def _complete(
    guest: Guest, entry: CloneEntry, old: CloneEntry | None, waiting: Callable[[str], None]
) -> Recovered:
    """Do the steps after the restore; the caller starts the monitor."""
    if not guest.info().has_run and not entry.paused:  # else the user has paused it
        patiently(guest, guest.unpause, waiting)
    warnings = remove_old_disks(old if entry.replace_begun else None, waiting)
    state = RunState.PAUSED if entry.paused else RunState.RUNNING
    CloneFile(entry.uuid).publish()
    made = cloned(entry, guest, state, warnings)
    line = f"{guest.name} is cloned from {entry.name} and {state}"
    return Recovered((line, *warnings), rolled_back=False, cloned=made)


def _keep(entry: CloneEntry, old: CloneEntry | None, waiting: Callable[[str], None]) -> Recovered:
    """Do the steps after the restore that need no domain. A domain that is there is left alone."""
    warnings = remove_old_disks(old if entry.replace_begun else None, waiting)
    CloneFile(entry.uuid).publish()
    line = (
        f"the clone {entry.domain} of {entry.name} was restored, and its domain has ended since: "
        f"its disks were kept, because it may have written to them; to delete the clone, call "
        f"pyxlsnap.delete_clone({entry.domain!r})"
    )
    return Recovered((line, *warnings), rolled_back=False)
