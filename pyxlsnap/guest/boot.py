"""Whether an HVM guest boots: its kernel has begun, and its PV drivers have not.

A Linux kernel lets QEMU unplug the emulated disks as one of the first steps of its boot, and its
drivers connect the PV devices much later. A guest that is suspended between them gives a complete
memory file, and does not run on after a restore: it takes the request while its own parts are not
set up yet. xenstore and QEMU's disks tell this state from two others in which no PV device is
connected either: that of a guest without PV drivers, and that of one in its firmware.
"""

import re
from collections.abc import Collection, Mapping

from pyxlsnap.errors import OperationFailed
from pyxlsnap.guest.device_model import examine_device_model
from pyxlsnap.guest.frontends import notice_devices
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.model import DomainConfig, GuestKind, XenbusState

# The disks that libxl gives to an HVM guest as emulated disks, too.
_EMULATED = re.compile(r"(xvd|hd|sd)[a-d]|d[0-3]")


def boots(
    guest: Guest, config: DomainConfig, emulated: Collection[str], states: Mapping[str, int]
) -> bool:
    """Whether an HVM guest has unplugged its emulated disks, and has connected no device yet.

    A guest that has said that it takes suspend requests is far enough in its boot.

    :param emulated: the disks that its QEMU still emulates.
    :param states: the xenbus state of each device.
    """
    return _has_unplugged(config, emulated) and _has_no_drivers_yet(guest, states)


def boots_now(guest: Guest, config: DomainConfig, states: Mapping[str, int]) -> bool:
    """The same, of a QEMU that is asked for its emulated disks if the guest has connected nothing.

    Nothing else may be connected to QEMU's monitor.

    :raises Refused: QEMU does not answer.
    """
    unknown = bool(states) and _has_no_drivers_yet(guest, states)
    return unknown and _has_unplugged(config, examine_device_model(guest, config).emulated)


def _has_unplugged(config: DomainConfig, emulated: Collection[str]) -> bool:
    had = any(_EMULATED.fullmatch(d.vdev) and not d.left_out for d in config.disks)
    return config.kind is GuestKind.HVM and had and not emulated


def _has_no_drivers_yet(guest: Guest, states: Mapping[str, int]) -> bool:
    return XenbusState.CONNECTED not in states.values() and not guest.takes_requests()


def notice_unready(guest: Guest, config: DomainConfig, before: Mapping[str, int]) -> None:
    """Make sure that a suspended guest can be restored as it is.

    QEMU's monitor is free if it is needed: a qcow2 disk that is emulated is in no snapshot.

    :param before: the state of each device before the guest was suspended.
    :raises OperationFailed: a device has changed (:func:`~pyxlsnap.guest.frontends.notice_devices`)
        or an HVM guest has begun to boot its kernel.
    :raises Refused: QEMU does not answer.
    """
    if boots_now(guest, config, notice_devices(guest, before)):
        raise OperationFailed(
            f"{guest.name} boots (its kernel has unplugged the emulated disks, and no PV device is "
            f"connected yet), and the snapshot could not be restored: try again when the guest has "
            f"booted",
            step="check",
        )
