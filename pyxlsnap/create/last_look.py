"""The last look at a guest, which is suspended: can it be restored as it is?

The guest waits for the look. So its devices are looked at once before, while it runs, and xenstore
is asked to report each change since. If there was none, one request to xenstore is the last look at
them. If there was one, or the first look did not find all to be right, they are looked at again.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.errors import PyxlsnapError, XenError
from pyxlsnap.guest import checks
from pyxlsnap.guest.boot import notice_unready
from pyxlsnap.guest.frontends import notice_devices
from pyxlsnap.guest.protocols import DeviceChanges, Guest
from pyxlsnap.model import XenbusState

log = logging.getLogger(__name__)


class LastLook:
    """Looks for the first time when it is made; for one thread.

    :param guest: with a context of its own: the calling thread is not the one that suspends it.
    :param watch: gets what must be closed at the end.
    """

    def __init__(self, guest: Guest, plan: CreatePlan, watch: ExitStack) -> None:
        self._guest = guest
        self._plan = plan
        self._watch = watch
        #: ``None``: the devices must be looked at again, whatever xenstore reports
        self._devices: DeviceChanges | None = None
        try:
            self._devices = watch.enter_context(guest.watching_devices())
        except XenError as e:
            log.info("changes of the devices of %s are not reported: %s", guest, e)
        if not self._is_right():
            self._report_no_more()

    def take_reports(self) -> None:
        """To be called every second or so: reports wait in memory, and a guest can cause many."""
        if self._devices and _says_yes(self._devices.reported):
            self._report_no_more()

    def look(self) -> None:
        """Look for the last time; raises what :func:`look_at` raises."""
        if self._devices and not _says_yes(self._devices.changed):
            self._plan.served.notice_replaced(self._plan.beside)
        else:
            look_at(self._guest, self._plan)

    def _is_right(self) -> bool:
        """Whether :func:`look_at` would find nothing wrong until a device changes.

        Never without a connected device: only QEMU tells then whether the guest boots.
        """
        try:
            checks.notice_disks(self._guest, self._plan.examined.targets)
            states = notice_devices(self._guest, self._plan.frontends)
        except PyxlsnapError:  # it may be over when the guest is suspended
            return False
        return XenbusState.CONNECTED in states.values()

    def _report_no_more(self) -> None:
        self._devices = None
        self._watch.close()


@contextmanager
def looking(guest: Guest, plan: CreatePlan) -> Iterator[LastLook]:
    """Look for the first time; see :class:`LastLook`."""
    with ExitStack() as watch:
        yield LastLook(guest, plan, watch)


def _says_yes(question: Callable[[], bool]) -> bool:
    """The answer of xenstore; without one a device may have changed."""
    try:
        return question()
    except XenError as e:  # of this connection: the thorough look has another
        log.info("it is not known whether a device has changed: %s", e)
        return True


def look_at(guest: Guest, plan: CreatePlan) -> None:
    """Make sure that a suspended guest can be restored with its devices as they are.

    And that its disks, and what their paths lead to, are those of the plan.

    :raises OperationFailed, DiskError, Refused: it cannot, or they are not.
    """
    notice_unready(guest, plan.examined.config, plan.frontends)
    checks.notice_disks(guest, plan.examined.targets)
    plan.served.notice_replaced(plan.beside)
