"""Destroying a domain to the end: until nothing of it can write to its disks any more."""

from pyxlsnap.errors import XenError
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.linux.processes import Process

_GONE_S = 60.0


def destroy(guest: Guest) -> None:
    """Destroy a domain; wait until its domid is gone and its QEMU has exited.

    libxl does not wait for the QEMU, and one that is dying still writes.

    :raises XenError: libxl could not, or something of it is still there after a minute.
    """
    with Process(guest.device_model_pid()) as device_model:
        guest.destroy()
        guest.wait_gone(timeout_s=_GONE_S)
        if not device_model.ended(within_s=_GONE_S):
            raise XenError(
                f"the QEMU of {guest.name} has not ended {_GONE_S:g} s after the domain was "
                f"destroyed",
                rc=-9,
                operation="libxl_domain_destroy",
            )
