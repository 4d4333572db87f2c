"""MAC addresses: a clone must have none that another domain has on the same bridge.

A clone that is being made is no domain yet. So a clone that keeps an address of the snapshot holds
a lock on the address and its bridge until it is made.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from hashlib import sha256

from pyxlsnap.errors import Busy
from pyxlsnap.guest.protocols import Host, ListedGuest
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.model import DomainConfig

_BRIDGE = "xenbr0"  # libxl's default
#: a MAC address, and the bridge
Nic = tuple[str, str]


def other_nics(host: Host, besides: str) -> list[tuple[ListedGuest, str, str]]:
    """The network devices of all domains but one: the domain, the MAC, and the bridge.

    :param besides: the uuid of the domain that is left out.
    """
    return [
        (other, mac.lower(), bridge)
        for other in host.list_guests()
        if other.uuid != besides
        for mac, bridge in other.nics()
        if mac
    ]


def same_macs(config: DomainConfig, others: Iterable[tuple[ListedGuest, str, str]]) -> list[str]:
    """A reason for each network device whose MAC another domain has on the same bridge."""
    holders = {(mac, bridge or _BRIDGE): other for other, mac, bridge in others}
    return [
        f"{other.present_name() or other.uuid} has the MAC {mac} on the bridge {bridge}, too: "
        f"{_WAY_OUT}"
        for mac, bridge in _nics(config)
        if (other := holders.get((mac, bridge)))
    ]


def lock_macs(saved: DomainConfig, own: DomainConfig, locks: ExitStack) -> list[str]:
    """Take a lock for each address that a clone keeps of the snapshot.

    :param locks: releases the locks.
    :returns: a reason for each address with which another clone is being made on the same bridge.
    """
    kept = {mac for mac, _ in _nics(saved)}
    busy = []
    for mac, bridge in dict.fromkeys(nic for nic in _nics(own) if nic[0] in kept):
        key = sha256(f"{mac} {bridge}".encode()).hexdigest()[:32]
        try:
            lock = DomainLock(key, domain=own.name, kind="mac.lock")
        except Busy:
            what = f"another clone with the MAC {mac} on the bridge {bridge} is being made"
            busy.append(f"{what}: {_WAY_OUT}")
        else:
            locks.callback(lock.release)
    return busy


_WAY_OUT = (
    "an emulated network device keeps the address of the snapshot; choose another bridge (--bridge)"
)


def _nics(config: DomainConfig) -> list[Nic]:
    found = config.devices("nics")
    return [(str(n["mac"]).lower(), str(n.get("bridge") or _BRIDGE)) for n in found if n.get("mac")]
