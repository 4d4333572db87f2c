"""The last look at a guest, which is suspended: can it be restored as it is?

The guest waits for the look. So its devices are looked at once before, while it runs, and xenstore
is asked to report each change since. If there was none, one request to xenstore is the last look.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.errors import OperationFailed, PyxlsnapError
from pyxlsnap.guest import checks
from pyxlsnap.guest.boot import notice_unready
from pyxlsnap.guest.frontends import notice_devices
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.model import XenbusState


@contextmanager
def looking(guest: Guest, plan: CreatePlan) -> Iterator[Callable[[], None]]:
    """Look at a guest that runs; gives the last look, which raises what :func:`look_at` raises.

    :param guest: with a context of its own: the calling thread is not the one that suspends it.
    :raises XenError: xenstore cannot be watched.
    """
    with guest.watching_devices() as devices:
        ready = _is_ready(guest, plan)

        def look() -> None:
            if ready and not devices.changed():
                plan.served.notice_replaced(plan.beside)
            else:
                look_at(guest, plan)

        yield look


def _is_ready(guest: Guest, plan: CreatePlan) -> bool:
    """Whether :func:`look_at` finds the devices to be right until one changes in xenstore.

    It may find a guest without any connected device to be booting: this is seen in its QEMU alone.
    """
    try:
        checks.notice_disks(guest, plan.examined.targets)
        states = notice_devices(guest, plan.frontends)
    except PyxlsnapError:  # it may be over when the guest is suspended
        return False
    return XenbusState.CONNECTED in states.values()


def look_at(guest: Guest, plan: CreatePlan) -> None:
    """Make sure that a suspended guest can be restored with its devices as they are.

    And that its disks, and what their paths lead to, are those of the plan.

    :raises OperationFailed, DiskError, Refused: it cannot, or they are not.
    """
    notice_unready(guest, plan.examined.config, plan.frontends)
    checks.notice_disks(guest, plan.examined.targets)
    plan.served.notice_replaced(plan.beside)


def notice_resumed(guest: Guest) -> None:
    """Make sure that the guest is still suspended: else it may have written to its disks.

    :raises OperationFailed: another program has resumed it.
    :raises DomainNotFound: it is gone.
    """
    if not guest.check_same().suspended:
        what = f"another program has resumed {guest.name}"
        raise OperationFailed(f"{what}: memory and disks do not match", step="suspended")
