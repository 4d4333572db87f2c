"""What the user sees of an operation that must wait for another program."""

import logging
import time
from collections.abc import Callable

from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import NeedsAttention
from pyxlsnap.request import Callbacks
from pyxlsnap.results import Progress

log = logging.getLogger(__name__)

_REPORT_EVERY_S = 5.0


class Reports:
    """Called again and again while something is waited for; it raises nothing."""

    def __init__(self, callbacks: Callbacks) -> None:
        self._callbacks = callbacks
        self._next_report: float | None = None

    def __call__(self, what: str) -> None:
        """Report the wait as progress, every five seconds.

        :param what: what is waited for, such as "QEMU to answer".
        """
        now = time.monotonic()
        if self._next_report is not None and now < self._next_report:
            return
        self._next_report = now + _REPORT_EVERY_S
        try:
            self._callbacks.on_progress(Progress(f"waiting for {what}"))
        except Exception:
            log.exception("the progress callback failed")


def heard(cancel: Cancel, waiting: Callable[[str], None]) -> Callable[[str], None]:
    """Make ``waiting`` end a wait if ``cancel`` is set: it raises :class:`Cancelled` then."""

    def tell(what: str) -> None:
        cancel.check()
        waiting(what)

    return tell


class Waiting:
    """The same for a create, or its recovery, that must wait with the guest suspended.

    A cancel does not end the wait, because the guest may not run yet. It ends the wait of the
    caller, which gets an error at once.

    :param suspended: the guest is suspended for certain; if false, it may be.
    """

    def __init__(
        self,
        domain: str,
        uuid: str,
        callbacks: Callbacks,
        cancel: Cancel,
        *,
        suspended: bool = True,
    ) -> None:
        self._domain = domain
        self._stays = f"{domain} {'stays' if suspended else 'may be'} suspended"
        self._is = f"{domain} {'is' if suspended else 'may be'} suspended"
        self._uuid = uuid
        self._callbacks = callbacks
        self._cancel = cancel
        self._report = Reports(callbacks)
        self._began = self._left = False

    def __call__(self, what: str) -> None:
        """Report the wait every five seconds; let the caller go when it has cancelled.

        :param what: what is waited for, such as "QEMU to answer".
        """
        if not self._began:
            self._began = True
            log.warning(
                "%s, waiting for %s: see whether the storage of its disks is well",
                self._stays,
                what,
            )
        self._report(what)
        if self._cancel.is_set() and not self._left:
            self._left = True
            self._callbacks.leave(self._error(what))

    def _error(self, what: str) -> NeedsAttention:
        return NeedsAttention(
            f"{self._stays}, waiting for {what}: a process goes on waiting, and "
            f"then resumes {self._domain} and undoes the snapshot",
            step="waiting",
            left=[self._is],
            finish=f"pyxlsnap snapshot-recover {self._uuid}",
        )
