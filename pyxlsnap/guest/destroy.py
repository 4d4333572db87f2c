"""Destroying a domain, and waiting until nothing can write to its disks."""

from pyxlsnap.errors import XenError
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.linux.processes import Process

_GONE_S = 60.0


def destroy(guest: Guest) -> None:
    """Destroy a domain; wait until it no longer exists and its QEMU has exited.

    libxl does not wait for the QEMU, which may still write until it exits.

    :raises XenError: libxl could not, or the domain or its QEMU still exists after a minute.
    """
    pid = guest.device_model_pid()
    with Process(pid) as device_model:
        guest.destroy()
        guest.wait_gone(timeout_s=_GONE_S)
        if not device_model.ended(within_s=_GONE_S):
            raise XenError(
                f"the QEMU of {guest.name} (pid {pid}) has not exited {_GONE_S:g} s after the "
                f"domain was destroyed: end it",
                domain=guest.name,
            )
