"""What the host must have for the network devices of a domain to be restored.

libxl starts a script for each network device of dom0's, and a restore fails if the script fails.
Each script reads ``bridge=`` in its own way (tools/hotplug/Linux in Xen): for vif-bridge it is a
network interface, for vif-openvswitch a bridge with VLANs, and vif-route and vif-nat ignore it.
"""

import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pyxlsnap import paths
from pyxlsnap.guest.findings import Finding, refused, risky
from pyxlsnap.text import quote, readable, shortened

Nic = Mapping[str, Any]

_SCRIPT = "vif-bridge"  # libxl's defaults
_BRIDGE = "xenbr0"
_GATEWAY = "eth0"  # vif-route's default
_VLANS = re.compile(r"([^.:]+)(\.[0-9]+)?(:[0-9]+(:[0-9]+)*)?")
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_COMMAND_S = 10
_NO_BRIDGE = 2  # the status of `ovs-vsctl br-exists`
_SIOCGIFADDR = 0x8915
_IFREQ = struct.Struct("16s24x")


def examine_nic(nic: Nic, domid: int | None) -> Iterator[Finding]:
    """Find what would let libxl fail to add a network device that dom0 serves.

    :param nic: the device in libxl's JSON.
    :param domid: the domain that is destroyed before: its interfaces will be gone; ``None``: none.
    """
    script = str(nic.get("script") or _SCRIPT)
    if (missing := missing_script(script)) is not None:
        yield missing
        return
    known = _SCRIPTS.get(Path(script).name)
    if known is None:
        yield from _by_unknown_script(nic, script)
        return
    yield from known(nic)
    yield from _taken_name(nic, domid)


def missing_script(script: str) -> Finding | None:
    """A finding, if a hotplug script is not there or not executable.

    The directory for a relative path is compiled into libxl, so it is only supposed here.
    """
    path = Path(paths.XEN_SCRIPTS, script)
    if os.access(path, os.X_OK):
        return None
    if not script.startswith("/") and not os.path.exists(path.parent):
        return None
    text = (
        f"the script {shortened(str(path))}, which libxl would start, is missing or not "
        f"executable: put the script back"
    )
    return refused(text) if script.startswith("/") else risky(text)


def _linux_bridge(nic: Nic) -> Iterator[Finding]:
    """vif-bridge. A name xenbrN may also lead to a bridge called ethN."""
    bridge = _bridge(nic)
    if bridge.startswith("xenbr") and not _exists(bridge):
        bridge = f"eth{bridge.removeprefix('xenbr')}"
        if _exists(bridge, "bridge"):
            return
    if not bridge:
        return  # the script takes the first one of the host
    if not _exists(bridge):
        yield refused(
            f"the domain needs bridge {shortened(_bridge(nic))}, which does not exist: create the "
            f"bridge"
        )
    elif not _exists(bridge, "bridge"):
        yield risky(f"{bridge} is not a Linux bridge, and vif-bridge may fail to use it")


def _open_vswitch(nic: Nic) -> Iterator[Finding]:
    """vif-openvswitch."""
    bridge = _bridge(nic)
    found = _VLANS.fullmatch(bridge)
    if not found:
        yield refused(f"vif-openvswitch cannot read bridge={shortened(bridge)}: it fits no bridge")
        return
    tool = shutil.which("ovs-vsctl", path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")
    if tool is None:
        yield refused("vif-openvswitch needs ovs-vsctl, which is missing: install Open vSwitch")
        return
    if problem := _ask_open_vswitch(tool, found[1]):
        yield refused(problem)


def _ask_open_vswitch(tool: str, bridge: str) -> str:
    """Why Open vSwitch would not take a port on a bridge; "" if it would."""
    command = [tool, f"--timeout={_COMMAND_S}", "--", "br-exists", bridge]
    try:
        run = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=2 * _COMMAND_S
        )
        status, said = run.returncode, readable(run.stderr)
    except (OSError, subprocess.TimeoutExpired) as e:
        status, said = -1, str(e)
    if status == 0:
        return ""
    if status == _NO_BRIDGE:
        return (
            f"Open vSwitch has no bridge {shortened(bridge)}, which the domain needs: create the "
            f"bridge (ovs-vsctl add-br {quote(bridge)})"
        )
    return f"ovs-vsctl failed ({shortened(said.strip())}): start Open vSwitch"


def _routed(nic: Nic) -> Iterator[Finding]:
    """vif-route: it gives the device the address of another interface."""
    gateway = str(nic.get("gatewaydev") or _GATEWAY)
    if not _exists(gateway):
        yield refused(
            f"vif-route needs the network interface {shortened(gateway)} (gatewaydev), which does "
            f"not exist: create the interface"
        )
    elif not _has_ipv4(gateway):
        yield risky(f"{gateway} has no IPv4 address, and vif-route may fail without one")


def _by_itself(_: Nic) -> Iterator[Finding]:
    """vif-nat: it needs no other interface."""
    yield from ()


_SCRIPTS: dict[str, Callable[[Nic], Iterator[Finding]]] = {
    "vif-bridge": _linux_bridge,
    "vif-openvswitch": _open_vswitch,
    "vif-route": _routed,
    "vif-nat": _by_itself,
}


def _by_unknown_script(nic: Nic, script: str) -> Iterator[Finding]:
    """Only the script knows what it does with ``bridge=``; many take a VLAN after the name."""
    bridge = str(nic.get("bridge") or "")
    if bridge and not _exists(bridge) and not _exists(re.split("[.:]", bridge)[0]):
        yield risky(
            f"no network interface is called {shortened(bridge)}, the domain's bridge, and the "
            f"script {shortened(script)} may need it"
        )


def _taken_name(nic: Nic, domid: int | None) -> Iterator[Finding]:
    """The scripts do not rename a device (``vifname=``) if an interface has the name already."""
    name = str(nic.get("ifname") or "")
    if name and _exists(name) and (domid is None or _owner(name) != domid):
        yield refused(
            f"a network interface has the name {name} (vifname) already: rename that interface"
        )


def _owner(interface: str) -> int | None:
    """The domid of the domain that a backend's interface belongs to; ``None`` if to none."""
    device = Path(os.path.realpath(paths.NETWORK / interface / "device")).name
    found = re.fullmatch(r"vif-([0-9]+)-[0-9]+", device)
    return int(found[1]) if found else None


def _bridge(nic: Nic) -> str:
    bridge = nic.get("bridge")
    return _BRIDGE if bridge is None else str(bridge)


def _exists(interface: str, below: str = "") -> bool:
    """Whether there is such a network interface, or an entry below it."""
    if "/" in interface or interface in ("", ".", ".."):
        return False
    # (os.path, because Path.exists raises an error for a name that is too long.)
    return os.path.exists(paths.NETWORK / interface / below)


def _has_ipv4(interface: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            fcntl.ioctl(any_socket, _SIOCGIFADDR, _IFREQ.pack(os.fsencode(interface)))
        except OSError:
            return False
    return True
