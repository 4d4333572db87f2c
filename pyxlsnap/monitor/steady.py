"""Whether a guest may be started again at any moment, which opens its disks.

xl destroys a guest that reboots, waits for two seconds, and starts the guest under another domid.
Between the two QEMUs nobody has the disks open, and yet nobody else may write to them.
"""

from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.model import DomainInfo
from pyxlsnap.monitor.xl import xl_monitor


def is_steady(guest: Guest) -> bool:
    """Whether the guest runs or is suspended, or is off, and xl does not act on it.

    A guest that is being started is not steady: its QEMU may not answer yet. Neither is one that
    its owner starts paused, so do not wait for ever.

    :raises XenError: libxl could not list the domains.
    """
    return _is_steady(guest.present_info(), name=guest.name, domid=guest.domid)


def may_start(guest: Guest) -> bool:
    """Whether the disks may be opened at any moment, for a guest that has ended."""
    return not is_steady(guest)


def is_steady_on(host: Host, uuid: str, *, name: str, domid: int) -> bool:
    """:func:`is_steady`, for a guest that may be gone.

    :param domid: the domid that it had.
    """
    there = [d for d in host.domains() if d.uuid == uuid and not d.dying]
    return _is_steady(there[0] if there else None, name=name, domid=domid)


def _is_steady(now: DomainInfo | None, *, name: str, domid: int) -> bool:
    if now is None:
        return xl_monitor(name) is None
    if now.domid != domid:
        return now.has_run
    return now.suspended or not now.shutdown or xl_monitor(name, domid) is None
