"""What the QEMU of an HVM guest goes on recording after a save of the guest that failed.

For a save, libxl has QEMU record which pages of the guest it changes. libxl switches this off at
the end, but not if the save was aborted (then it sends QEMU no more commands), or if libxl's helper
was killed. QEMU would record for as long as the guest lives, which makes its disks and network
slower.
"""

import logging

from pyxlsnap.errors import PyxlsnapError
from pyxlsnap.guest.protocols import Guest

log = logging.getLogger(__name__)

_COMMAND = "xen-set-global-dirty-log"
_ANSWER_S = 5.0
#: this QEMU ends when it is told what is so already, in both directions
_DELICATE = (6, 2)


def switch_off(guest: Guest) -> None:
    """Let the QEMU of an HVM guest that runs record no more. A failure is only logged.

    Nothing else may be connected to QEMU's monitor meanwhile. QEMU does not tell whether it
    records. From release 6.2 on it ends (an assertion) when it is told to stop and does not record;
    from 7.0 on it may be told to begin at any time. So it is told to begin, and then to stop.
    """
    try:
        if guest.device_model_pid() is not None:
            _switch_off(guest)
    except PyxlsnapError as e:
        log.warning(
            "the QEMU of %s may go on recording the guest's changes of memory, which makes it "
            "slower, until the next snapshot: %s",
            guest.name,
            e,
        )


def _switch_off(guest: Guest) -> None:
    from pyxlsnap.disks.qcow2.qmp import QmpConnection, socket_path  # asyncio takes long to load

    connection = QmpConnection(socket_path(guest.domid), timeout_s=_ANSWER_S)
    try:
        if connection.version() == _DELICATE:
            log.info("the QEMU of %s is of release 6.2, and cannot be told safely", guest.name)
            return
        for enable in (True, False):
            connection.execute(_COMMAND, {"enable": enable}, timeout_s=_ANSWER_S)
    finally:
        connection.close()
