"""What becomes of a revert whose process is dead: it is brought to its end, or left to a person."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from pyxlsnap.disks.kept import drop_kept
from pyxlsnap.disks.protocol import DiskTask
from pyxlsnap.disks.registry import strategies
from pyxlsnap.errors import DomainNotFound, NeedsAttention, PyxlsnapError
from pyxlsnap.guest.protocols import Guest, Host, find_if_there
from pyxlsnap.journal import Entry, Journal, boot_id
from pyxlsnap.linux.processes import holders
from pyxlsnap.model import RunState
from pyxlsnap.results import Recovered, Reverted
from pyxlsnap.text import command

_QUIET_S, _QUIET_POLL_S = 30.0, 0.1

#: does again, from the top, the revert that a journal tells of
Redo = Callable[[Entry], Reverted]


def must_go_forward(host: Host, entry: Entry) -> bool:
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


def leave(host: Host, entry: Entry) -> Recovered:
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
    return find_if_there(host, entry.uuid) or (
        find_if_there(host, entry.replaced) if entry.replaced else None
    )


def wait_until_quiet(host: Host, entry: Entry) -> None:
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


def _complete(guest: Guest, entry: Entry) -> Recovered:
    """It had restored the domain: what follows that is done."""
    if not guest.info().has_run and not entry.paused:  # else it was its owner who has paused it
        guest.unpause()
    warnings = _drop_kept(guest, entry)
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


def _drop_kept(guest: Guest, entry: Entry) -> list[str]:
    chosen = list(zip(entry.devices, entry.disks, strict=True))
    try:
        found = strategies(chosen, DiskTask(entry.name), entry.kinds)
    except Exception as e:
        return [f"what was kept of the disks could not be removed: {e}"]
    return drop_kept(found, guest.domid)


def go_forward(entry: Entry, redo: Redo) -> Recovered:
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
