"""The configuration of a clone: that of the saved domain, but for what two domains cannot share.

What can be the clone's own is made its own here: name, uuid, disks, MAC addresses, the names of
network interfaces, VNC displays, sockets and files of serial lines and channels. A restore makes a
new VM generation ID, so it is only reported here. :mod:`.shared` refuses the rest.
"""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from hashlib import sha256
from typing import Any

from pyxlsnap.dataclass import dataclass
from pyxlsnap.model import DomainConfig, GuestKind
from pyxlsnap.results import CloneDisk

_Values = dict[str, Any]

_XEN_MAC = "00:16:3e"  # Xen's own prefix, as libxl uses it
#: characters in the path of a socket: the kernel's limit, without the NUL
SOCKET_LIMIT = 107
_WITH_PATH = ("unix:", "file:")
_DEFAULT_VNC = "127.0.0.1"
#: where a VNC server listens: a name, an IPv4 address or an IPv6 address in brackets; its display
_VNC = re.compile(r"(\[[^]]*\]|[^:]*)(?::(\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be the clone's own."""

    name: str
    uuid: str
    #: its disks
    disks: Sequence[CloneDisk]
    #: the bridge of all its network devices; "": that of each in the snapshot
    bridge: str = ""
    #: the MAC addresses that other domains have now
    macs: Collection[str] = ()


def own(saved: DomainConfig, wanted: Wanted) -> tuple[DomainConfig, list[str]]:
    """Make the configuration of a clone.

    :returns: the configuration, and what was made its own, one line each.
    """
    values: _Values = json.loads(saved.json)
    values["c_info"] = {**saved.section("c_info"), "name": wanted.name, "uuid": wanted.uuid}
    _set_disks(values, wanted.disks)
    changes = [
        *_network(values, saved, wanted),
        *_displays(values, saved),
        *_lines(values, wanted.name),
        *_generation(values, saved.kind),
    ]
    return DomainConfig.parse(json.dumps(values)), changes


def emulated(nic: Any, kind: GuestKind) -> bool:
    """Whether QEMU emulates a network device: its MAC address is in the saved state of QEMU."""
    return kind is GuestKind.HVM and nic.get("nictype", "vif_ioemu") != "vif"


def _set_disks(values: _Values, disks: Sequence[CloneDisk]) -> None:
    by_vdev = {disk.vdev: disk for disk in disks}
    for disk in values.get("disks", []):
        if own := by_vdev.get(str(disk.get("vdev", ""))):
            disk["pdev_path"], disk["format"] = own.target, own.format


def _network(values: _Values, saved: DomainConfig, wanted: Wanted) -> Iterator[str]:
    for number, nic in enumerate(values.get("nics", [])):
        which = f"network device {nic.get('devid', number)}"
        if wanted.bridge:
            nic["bridge"] = wanted.bridge
            yield f"{which}: bridge {wanted.bridge}"
        if not emulated(nic, saved.kind):
            nic["mac"] = _new_mac(wanted, number)
            yield f"{which}: MAC {nic['mac']}"
        if name := nic.pop("ifname", None):
            yield f"{which}: no fixed name of its interface (vifname={name} in the snapshot)"


def _new_mac(wanted: Wanted, number: int) -> str:
    """A MAC address that is the same for the same uuid, unless another domain has it."""
    for attempt in range(1 << 16):
        digest = sha256(f"{wanted.uuid} {number} {attempt}".encode()).digest()
        mac = f"{_XEN_MAC}:{digest[0] & 0x7F:02x}:{digest[1]:02x}:{digest[2]:02x}"
        if mac not in wanted.macs:
            return mac
    raise AssertionError("unreachable: there are not so many domains")


def _displays(values: _Values, saved: DomainConfig) -> Iterator[str]:
    """Let QEMU look for a free VNC display, where the configuration fixes one.

    What is no address (a socket, for one) stays, and :mod:`.shared` refuses it.
    """
    for device in _with_vnc(values, saved.kind):
        vnc = device.get("vnc")
        if not isinstance(vnc, dict) or vnc.get("enable") == "False":
            continue
        found = _VNC.fullmatch(str(vnc.get("listen") or _DEFAULT_VNC))
        if not found or (vnc.get("findunused") != "False" and not found[2]):
            continue
        address = found[1]
        vnc.pop("display", None)
        # libxl adds no display to what has a colon in it, and QEMU needs one.
        vnc["listen"] = f"{address}:0" if ":" in address else address
        vnc["findunused"] = "True"
        yield f"VNC: a free display of {address or 'every address'}"


def _with_vnc(values: _Values, kind: GuestKind) -> list[_Values]:
    hvm = values.get("b_info", {}).get("type.hvm")
    found = [hvm] if kind is GuestKind.HVM else values.get("vfbs", [])
    return [device for device in found if isinstance(device, dict)]


def _lines(values: _Values, name: str) -> Iterator[str]:
    """Serial lines and channels that lead to a path: to the same path with the clone's name."""
    hvm = values.get("b_info", {}).get("type.hvm", {})
    if isinstance(hvm.get("serial"), str) and (own := _own_line(hvm["serial"], name)):
        hvm["serial"] = own
        yield f"serial line: {own}"
    lines = hvm.get("serial_list") or []
    for number, line in enumerate(lines):
        if own := _own_line(str(line), name):
            lines[number] = own
            yield f"serial line {number}: {own}"
    for channel in values.get("channels", []):
        socket = channel.get("connection.socket")
        if isinstance(socket, dict) and socket.get("path"):
            socket["path"] = f"{socket['path']}.{name}"
            yield f"channel {channel.get('name', '')}: {socket['path']}"


def _generation(values: _Values, kind: GuestKind) -> Iterator[str]:
    """The VM generation ID: the restore of the clone makes a new one.

    See :meth:`pyxlsnap.xen.toolstack.Toolstack.restore`. An ID of zeros is none.
    """
    found = values.get("b_info", {}).get("type.hvm", {}).get("ms_vm_genid")
    if kind is GuestKind.HVM and isinstance(found, list) and any(found):
        yield "VM generation ID: a new one"


def _own_line(line: str, name: str) -> str:
    """A serial line with a path of the clone's own; "" if it leads to no path."""
    for kind in _WITH_PATH:
        if line.startswith(kind):
            rest = line.removeprefix(kind)
            # QEMU reads no options after the path of a file.
            path, comma, options = (rest, "", "") if kind == "file:" else rest.partition(",")
            return f"{kind}{path}.{name}{comma}{options}"
    return ""
