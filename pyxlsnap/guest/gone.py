"""Whether the domain of an operation is gone: a person may destroy it at any moment."""

from pyxlsnap.errors import DomainNotFound, XenError
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.linux.waiting import until

# libxl ends the QEMU first, then the devices, which takes some seconds, and at last the domain.
_DESTROY_S, _DESTROY_POLL_S = 10.0, 0.1


def is_gone(guest: Guest) -> bool:
    """Whether the domain is gone, or is dying; another may have its uuid, or its domid, by now."""
    try:
        guest.check_same()
    except DomainNotFound:
        return True
    except XenError:
        return False  # the next look tells
    return False


def is_gone_soon(guest: Guest) -> bool:
    """The same for a domain that may have lost its QEMU because it is being destroyed."""
    return until(lambda: is_gone(guest), within_s=_DESTROY_S, poll_s=_DESTROY_POLL_S)
