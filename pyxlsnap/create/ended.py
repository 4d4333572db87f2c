"""A guest that reboots, powers off or crashes by itself while its snapshot is taken.

xl's process, which acts on that, knows of no snapshot: it destroys the domain at once, and may
start it again under another domid. The monitor of pyxlsnap waits only while the guest may be
suspended. So a create must end soon, and find its guest's disks in another QEMU.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.disks.registry import close_all, strategies
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import undo_each
from pyxlsnap.errors import DomainNotFound, GuestEnded, OperationFailed, PyxlsnapError, XenError
from pyxlsnap.guest.checks import attached
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.journal import CreateEntry
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.linux.waiting import until
from pyxlsnap.model import DomainInfo
from pyxlsnap.monitor.steady import is_steady, may_start

log = logging.getLogger(__name__)

_POLL_S = 0.05
# A monitor that has seen the guest's end acts for some seconds.
_ACTING_S, _ACTING_POLL_S = 60.0, 0.1
# How often an undo begins, if the guest ends during the undo.
_ATTEMPTS = 3

_WORDS = {
    "poweroff": "powered off by itself",
    "reboot": "rebooted by itself",
    "crash": "crashed",
    "watchdog": "was stopped by its watchdog",
    "soft_reset": "reset itself",
}


def how_ended(guest: Guest) -> str | None:
    """Why a guest has ended by itself, as in :attr:`DomainInfo.shutdown_reason`.

    :returns: ``None``: it has not, and runs or is suspended (or Xen does not tell); "": its domain
        is gone.
    """
    try:
        return _reason(guest.check_same())
    except DomainNotFound:
        return ""
    except XenError:
        return None


def _reason(info: DomainInfo) -> str | None:
    if info.suspended or not info.shutdown:
        return None
    return info.shutdown_reason or "unknown"  # a guest may give Xen any number


def describe_end(name: str, reason: str, step: str) -> str:
    """What happened to the guest, as the beginning of a message."""
    how = _WORDS.get(reason, f"shut down by itself ({reason})") if reason else "was destroyed"
    meanwhile = "" if reason else ", after it had shut down by itself, or by another program"
    return f"{name} {how} while its snapshot was taken ({step}){meanwhile}"


def guest_ended(name: str, reason: str, step: str, undone: list[str], but: str = "") -> GuestEnded:
    """Make (not raise) the error for a guest that ended before its snapshot was complete."""
    return GuestEnded(
        f"{describe_end(name, reason, step)}; there is no snapshot, and nothing is left of it{but}",
        reason=reason,
        step=step,
        undone=undone,
    )


@dataclass(slots=True)
class Noticed:
    """The end of a guest for which a call of libxl was aborted."""

    #: see :func:`how_ended`; ``None``: the guest has not ended. It may run again by now: a soft
    #: reset leaves it its domid
    reason: str | None = None


@contextmanager
def noticing_end(
    guest: Guest,
    noticed: Noticed,
    *,
    over: Callable[[], None] = lambda: None,
    unhurried: threading.Event | None = None,
) -> Iterator[None]:
    """Abort the call of libxl that runs inside, if the guest ends by itself meanwhile.

    libxl waits up to a minute for a guest that will never answer its suspend request. A suspended
    guest cannot end by itself, so the watch ends at the suspend: the window need not wait for it.

    :param over: called when the watch ends, on another thread, once or twice. (libxl's own report
        of the suspend may come late, or be lost.)
    :param unhurried: set when the context of the watch may be closed, which takes a moment.
    """
    left, unwatched = threading.Event(), threading.Event()

    def run() -> None:
        try:
            with guest.on_its_own() as own:
                noticed.reason = _end(own, left)
                if noticed.reason is None:
                    over()
                    unwatched.set()
                    if unhurried:
                        unhurried.wait()
                    return
            while not left.wait(_POLL_S) and not guest.abort():
                pass
        except PyxlsnapError as e:  # libxl's own limits hold
            log.warning("it is not noticed if %s ends by itself: %s", guest, e)
        finally:
            over()
            unwatched.set()

    threading.Thread(target=run, name="pyxlsnap-end", daemon=True).start()
    try:
        yield
    finally:
        left.set()
        unwatched.wait()


def _end(guest: Guest, left: threading.Event) -> str | None:
    """Why a guest ends by itself before it is suspended, and before ``left`` is set."""
    while not left.wait(_POLL_S):
        try:
            info = guest.check_same()
        except DomainNotFound:
            return ""
        except XenError:
            continue  # the next look tells
        if info.suspended:
            return None
        if (reason := _reason(info)) is not None:
            return reason
    return None


class Window:
    """The time in which the guest may be suspended, and its monitor may not act.

    :param lock: the lock of the operation; ``None``: this create is a part of an operation that
        keeps the monitor away for all its time.
    """

    def __init__(self, guest: Guest, lock: DomainLock | None) -> None:
        self._guest = guest
        self._lock = lock

    def begin(self, check: Callable[[], None] = lambda: None) -> None:
        """Keep the monitor of pyxlsnap away; wait if it looks, or acts, just now.

        :param check: called again and again meanwhile; an exception from it ends the wait.
        :raises OperationFailed: it is still acting after a minute.
        """
        if self._lock is None:
            return
        lock = self._lock

        def closed() -> bool:
            check()
            return lock.close_to_monitor()

        if not until(closed, within_s=_ACTING_S, poll_s=_ACTING_POLL_S):
            raise OperationFailed(
                f"{self._guest.name} has shut down, and its monitor is still acting on that",
                step="check",
            )

    def end(self) -> None:
        """The guest runs, or has ended: its monitor may act. Idempotent."""
        if self._lock:
            self._lock.open_to_monitor()


def undo_disks(plan: CreatePlan, strategy: DiskStrategy, entry: CreateEntry) -> list[str]:
    """Undo disk snapshots after the suspend; the guest may end meanwhile, and begin anew.

    :raises PyxlsnapError: something is left; or the guest is just being started again.
    """
    guest = plan.guest
    for attempt in range(_ATTEMPTS):
        domid = _wait_until_steady(guest, strategy)
        try:
            if domid == guest.domid:
                return strategy.undo_create()
            return _undo_anew(plan, strategy, entry, domid)
        except PyxlsnapError as e:
            now = guest.present_info()
            same = is_steady(guest) and domid == (now.domid if now else None)
            if same or attempt == _ATTEMPTS - 1:
                raise
            log.info("%s; trying again, because the guest has ended", e)
    raise AssertionError("unreachable: the last attempt raises")


def _wait_until_steady(guest: Guest, strategy: DiskStrategy) -> int | None:
    """Wait while the guest is being started again; returns the domid that it has now.

    :raises OperationFailed: xl may start it at any time.
    """
    steady = until(lambda: is_steady(guest), within_s=_ACTING_S, poll_s=_ACTING_POLL_S)
    now = guest.present_info()
    if steady or (now and now.domid != guest.domid):  # one that its owner keeps paused
        return now.domid if now else None
    raise OperationFailed(
        f"xl may start {guest.name} again at any time, so its disk snapshots "
        f"({', '.join(strategy.vdevs)}) were not deleted",
        step="undo",
    )


def _undo_anew(
    plan: CreatePlan, strategy: DiskStrategy, entry: CreateEntry, domid: int | None
) -> list[str]:
    """Undo with new strategies: the disks are in another QEMU, or in none."""
    now = plan.host.find_if_there(plan.guest.uuid) if domid is not None else None
    chosen = [
        (disk, request)
        for disk, request in zip(entry.devices, entry.disks, strict=True)
        if disk.vdev in strategy.vdevs
    ]
    task = DiskTask(
        entry.name,
        started_anew=domid is not None,
        attached=attached(now, entry.devices),
        may_start=partial(may_start, plan.guest),
        gone=lambda: not _runs(plan.guest, domid),
    )
    found = strategies(chosen, task, entry.kinds, trusted=True)
    try:
        return undo_each([_adopting(one, domid, entry) for one in found])
    finally:
        close_all(found)


def _runs(guest: Guest, domid: int | None) -> bool:
    now = guest.present_info()
    return now is not None and now.domid == domid and not now.shutdown


def _adopting(
    strategy: DiskStrategy, domid: int | None, entry: CreateEntry
) -> Callable[[], list[str]]:
    def undo() -> list[str]:
        strategy.adopt_create(domid, began=entry.started, state=entry.disk_state)
        return strategy.undo_create()

    return undo


def plan_unless_ended(guest: Guest, make: Callable[[], CreatePlan]) -> CreatePlan:
    """Make a plan. If that fails because the guest ends meanwhile, say this.

    :raises GuestEnded: the guest was there at first, and has ended.
    """
    was_there = how_ended(guest) is None
    try:
        return make()
    except PyxlsnapError as e:
        if was_there and (reason := how_ended(guest)) is not None:
            raise guest_ended(guest.name, reason, "plan", []) from e
        raise
