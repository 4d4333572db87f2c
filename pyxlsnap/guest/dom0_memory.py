"""Memory for a domain to be restored, made as xl makes it: dom0 is shrunk, under xl's lock."""

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyxlsnap.errors import Refused, XenError
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.linux.locks import FileLock
from pyxlsnap.linux.processes import process_text
from pyxlsnap.model import DomainConfig

log = logging.getLogger(__name__)

#: seconds for which a program may hold xl's lock: xl holds it while it starts a domain
LOCK_S = 60.0
#: the same for ours, which take turns and cannot be told apart
OURS_S = 600.0
_LOOK_S = 0.5
#: seconds after which the disks of a revert take so long that xl may start domains meanwhile
LONG_S = 30.0

_DOM0_MEM = re.compile(r"(^|\s)dom0_mem=((min:|max:)?\d+[bkmg]?,?)+(\s|$)", re.IGNORECASE)
_STALLED_S = 10
_PATIENCE_S = 30.0
_DOM0_LEAST_KB = 128 * 1024  # libxl refuses a lower target (LIBXL_MIN_DOM0_MEM)


def may_shrink_dom0(host: Host) -> bool:
    """Whether xl would shrink dom0: ``autoballoon`` of xl.conf(5).

    "auto" means: unless Xen's command line fixes dom0's memory.
    """
    setting = host.autoballoon()
    if setting == "auto":
        return not _DOM0_MEM.search(host.xen_command_line())
    return setting in ("on", "1")


def spare_dom0_kb(host: Host) -> int:
    """The most that :meth:`Room.make` can take from dom0, KiB."""
    if not may_shrink_dom0(host):
        return 0
    return sum(max(0, d.memory_kb - _DOM0_LEAST_KB) for d in host.domains() if d.domid == 0)


class Room:
    """The memory for a domain to be started, and xl's lock, so that xl gives it to no other.

    xl takes its lock only where it may shrink dom0. Elsewhere, and from other programs, nothing
    protects free memory: it can only be looked at.

    :param config: the domain to be started.
    """

    def __init__(self, host: Host, config: DomainConfig) -> None:
        self._host = host
        self._config = config
        self._shrinks = may_shrink_dom0(host)
        self._lock = FileLock(host.xl_lock())
        self._taken_kb = 0

    def lock(self, *, within_s: float, check: Callable[[], None] = lambda: None) -> bool:
        """Take xl's lock, where xl uses it; false: another program holds it.

        :raises Refused: the lock's file cannot be opened.
        """
        return not self._shrinks or self._lock.take(within_s=within_s, check=check)

    def make(self, *, coming_kb: int = 0) -> None:
        """Make sure that Xen has the memory. Shrink dom0 if necessary and if xl would.

        :param coming_kb: memory that will be free when another domain is destroyed, KiB.
        :raises Refused: there is not enough.
        """
        need = max(0, self._host.needed_memory_kb(self._config) - coming_kb)
        if self._shrinks:
            self._shrink_dom0(need)
        free = self._host.free_memory_kb()
        if free < need:
            raise Refused(
                f"not enough memory for {self._config.name}: {(need + coming_kb) // 1024} MiB "
                f"needed, {(free + coming_kb) // 1024} MiB free: shut down another domain, or make "
                f"it smaller (xl mem-set)"
            )

    def prepare(self, guest: Guest | None, check: Callable[[], None]) -> None:
        """Lock, and make all the memory that the destroy of a domain will not set free.

        :param guest: the domain that will be destroyed; ``None``: none.
        :param check: called often; an exception from it ends the wait.
        :raises Refused: another program holds the lock for too long, or there is not enough.
        """
        self._wait_for_lock(check)
        self.make(coming_kb=guest.info().memory_kb if guest else 0)

    def _wait_for_lock(self, check: Callable[[], None]) -> None:
        """:raises Refused: one program has held the lock for too long."""
        holder, since = None, time.monotonic()
        while not self.lock(within_s=_LOOK_S, check=check):
            if (found := self._lock.holder()) != holder:
                holder, since = found, time.monotonic()
            limit_s = LOCK_S if holder else OURS_S
            if time.monotonic() - since >= limit_s:
                who = process_text(holder) if holder else "pyxlsnap for other domains"
                raise Refused(
                    f"{who} has held xl's lock {self._lock.path} for {limit_s:g} s, so it is "
                    f"starting a domain: wait until it has started, then run the command again"
                )

    @contextmanager
    def lent(self) -> Iterator[None]:
        """During work that may be slow: release the lock if the work takes long."""
        if not self._lock.held:
            yield
            return
        timer = threading.Timer(LONG_S, self._lock.release)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def confirm(self) -> list[str]:
        """Look again, just before the memory is used; the domain to destroy is gone.

        :returns: a warning, if the lock was released meanwhile.
        :raises Refused: another program has taken the memory.
        """
        warnings = []
        if self._shrinks and not self._lock.held:
            warnings.append(
                f"the disks took more than {LONG_S:g} s, and xl could start other domains meanwhile"
            )
            self._lock_again()
        self.make()
        return warnings

    def _lock_again(self) -> None:
        """Take the lock if possible. The domain is off: what counts is the memory."""
        try:
            why = "" if self.lock(within_s=LOCK_S) else "another program holds it"
        except Refused as e:
            why = str(e)
        if why:
            log.warning("%s: going on without xl's lock: %s", self._config.name, why)

    def give_back(self) -> None:
        """Give dom0 back what :meth:`make` has taken: the domain will not be started."""
        taken, self._taken_kb = self._taken_kb, 0
        if not taken:
            return
        try:
            self._host.shrink_dom0(-taken)
        except XenError as e:
            log.warning("dom0 has %d MiB less memory than before (xl mem-set): %s", taken >> 10, e)

    def release(self) -> None:
        """Release the lock. Idempotent."""
        self._lock.release()

    def _shrink_dom0(self, need_kb: int) -> None:
        """Shrink dom0 until this much memory is free, or until dom0 gives no more.

        libxl lowers dom0's memory target relative to the old target, not to the memory that dom0
        has. So each round waits until dom0 has reached its target: otherwise the next round would
        ask for the same memory again. If the old target was above dom0's memory, the first rounds
        free nothing, and more rounds follow.
        """
        end = time.monotonic() + _PATIENCE_S
        while (short := need_kb - self._host.free_memory_kb()) > 0 and time.monotonic() < end:
            self._host.shrink_dom0(short)
            self._taken_kb += short
            if not self._host.wait_for_dom0(stalled_s=_STALLED_S):
                return


@contextmanager
def room_for(host: Host, config: DomainConfig) -> Iterator[None]:
    """Start a domain as xl does: wait for xl's lock, make room, and hold the lock meanwhile.

    Too little memory is only logged: libxl reports the error.
    """
    room = Room(host, config)
    try:
        room.lock(within_s=math.inf)
        try:
            room.make()
        except Refused as e:
            log.warning("%s", e)
        yield
    finally:
        room.release()
