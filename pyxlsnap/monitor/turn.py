"""Which process of pyxlsnap watches which domain.

A process that watches a domain holds a lock on one byte of ``/run/pyxlsnap/<uuid>.watch``: the byte
whose number is the domid. So a process that still watches the domain before a revert or a reboot,
or has not noticed yet that this domain is gone, is not taken for one that watches the present one.
"""

from pyxlsnap.errors import Busy
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.linux.waiting import until

#: seconds to wait for the process of an earlier release, which holds the whole lock, to end
_EARLIER_S = 10.0
_POLL_S = 0.1
# A byte that stands for no domain: domids are smaller.
_NO_DOMID = 1 << 40


class Turn:
    """The right to watch the domain of a uuid, for this process alone."""

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._held: DomainLock | None = None

    def take(self, domid: int) -> bool:
        """Take the right to watch a domain, and give back that for the domain before.

        Where a process of an earlier release watches some domain of this uuid, this process watches
        as well: both hold the domain's own lock while they act.

        :returns: false if another process watches this domain.
        :raises Refused: the lock's file cannot be made or opened.
        """
        self.release()
        until(
            lambda: self._try(domid) or not self._is_all_held(), within_s=_EARLIER_S, poll_s=_POLL_S
        )
        return self._held is not None or self._try(domid) or self._is_all_held()

    def _try(self, domid: int) -> bool:
        try:
            self._held = self._lock(domid)
        except Busy:
            return False
        return True

    def _is_all_held(self) -> bool:
        """Whether a process of an earlier release holds the lock: on the whole file."""
        try:
            self._lock(_NO_DOMID).release()
        except Busy:
            return True
        return False

    def _lock(self, byte: int) -> DomainLock:
        return DomainLock(self._uuid, domain=self._uuid, kind="watch", part=(byte, 1))

    def release(self) -> None:
        """Give back the right. Idempotent."""
        if self._held:
            self._held.release()
            self._held = None
