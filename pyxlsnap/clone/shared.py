"""What a clone would still share with the saved domain, and cannot: each is refused by name.

Also: what the caller may not change in the configuration (``edit``).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from pyxlsnap.clone.identity import SOCKET_LIMIT
from pyxlsnap.errors import DomainNotFound, Refused, UsageError
from pyxlsnap.guest.protocols import Host
from pyxlsnap.model import Disk, DomainConfig
from pyxlsnap.text import shortened

#: serial lines of QEMU that any number of domains can have
_HARMLESS = ("pty", "null", "none", "vc", "stdio", "ringbuf")
_OWN_PATH = ("unix:", "file:")
_ARGUMENTS = ("extra", "extra_pv", "extra_hvm")
#: what the memory file fixes: a restore of another value would fail, or harm the guest
_FIXED = (
    *(("c_info", key) for key in ("name", "uuid", "type")),
    *(("b_info", key) for key in ("max_vcpus", "max_memkb", "target_memkb", "video_memkb")),
)


def refuse_still_shared(saved: DomainConfig, own: DomainConfig, made: Collection[str]) -> None:
    """Refuse what two domains cannot share, and is the same in both configurations.

    :param made: the vdevs of the disks that are the clone's own.
    :raises Refused: the message names each, and what to do.
    """
    shared = [*_disks(saved, own, made), *_lines(saved, own), *_arguments(saved, own)]
    shared += _spice(saved, own)
    if shared:
        raise Refused(
            f"the clone {own.name} would share with {saved.name}: {'; '.join(shared)}: change that "
            f"in its configuration (`edit` of pyxlsnap.clone_snapshot)"
        )


def _disks(saved: DomainConfig, own: DomainConfig, made: Collection[str]) -> Iterator[str]:
    then = {_place(disk) for disk in saved.disks if not disk.left_out}
    for disk in own.disks:
        if not disk.left_out and disk.vdev not in made and _place(disk) in then:
            yield f"the writable disk {disk.vdev} ({disk.target}), which is not in the snapshot"


def _place(disk: Disk) -> tuple[str, str]:
    return (disk.backend_domain, disk.target)


def _lines(saved: DomainConfig, own: DomainConfig) -> Iterator[str]:
    then = set(_serial(saved))
    for line in _serial(own):
        if line.startswith(_OWN_PATH):
            path = line.partition(":")[2].partition(",")[0]
            if line.startswith("unix:") and len(path) > SOCKET_LIMIT:
                yield f"nothing, but the path of its serial line is too long for a socket ({path})"
        elif line.partition(":")[0] not in _HARMLESS and line in then:
            yield f"the serial line {shortened(line)}"


def _serial(config: DomainConfig) -> list[str]:
    hvm = _hvm(config)
    lines = hvm.get("serial_list")
    return [str(line) for line in (hvm.get("serial"), *(lines or ())) if line]


def _arguments(saved: DomainConfig, own: DomainConfig) -> Iterator[str]:
    """Arguments of QEMU that have a path in them."""
    then, now = (
        {str(a) for key in _ARGUMENTS for a in c.section("b_info").get(key) or ()}
        for c in (saved, own)
    )
    for argument in sorted(then & now):
        if "/" in argument:
            yield f"the path in device_model_args ({shortened(argument)})"


def _spice(saved: DomainConfig, own: DomainConfig) -> list[str]:
    then, now = (_hvm(c).get("spice") for c in (saved, own))
    if not isinstance(now, Mapping) or not isinstance(then, Mapping):
        return []
    ports = [key for key in ("port", "tls_port") if now.get(key) and now[key] == then.get(key)]
    return [f"the SPICE {key} {now[key]}" for key in ports if now.get("enable") == "True"]


def _hvm(config: DomainConfig) -> Mapping[str, Any]:
    found = config.section("b_info").get("type.hvm")
    return found if isinstance(found, Mapping) else {}


def check_edited(own: DomainConfig, edited: DomainConfig, made: Collection[str]) -> None:
    """Check what the caller has made of the configuration of a clone.

    :param made: the vdevs of the disks that are the clone's own.
    :raises UsageError: something was changed that the memory file or the clone's disks fix.
    """
    wrong = [f"{s}.{k}" for s, k in _FIXED if own.section(s).get(k) != edited.section(s).get(k)]
    for kind in ("disks", "nics", "vfbs", "vkbs", "channels"):
        if len(own.devices(kind)) != len(edited.devices(kind)):
            wrong.append(f"the number of {kind}")
    if [_fixed(disk, made) for disk in own.disks] != [_fixed(disk, made) for disk in edited.disks]:
        wrong.append("vdev, format or mode of a disk, or the path of one that is the clone's own")
    if wrong:
        raise UsageError(
            f"the configuration of the clone {own.name} was edited, and cannot be changed in: "
            f"{', '.join(wrong)}"
        )


def _fixed(disk: Disk, made: Collection[str]) -> tuple[str, str, bool, str]:
    target = disk.target if disk.vdev in made else ""
    return (disk.vdev, disk.format, disk.readwrite, target)


def other_nics(host: Host, besides: str) -> list[tuple[str, str, str]]:
    """The network devices of all domains but one: the domain's name, the MAC, and the bridge.

    :param besides: the uuid of the domain that is left out.
    """
    found = []
    for info in host.domains():
        if info.domid == 0 or info.uuid == besides:
            continue
        try:
            other = host.find(str(info.domid))
            found += [(other.name, mac.lower(), bridge) for mac, bridge in other.nics() if mac]
        except DomainNotFound:
            continue  # it ended after the list was made
    return found


def same_macs(config: DomainConfig, others: Iterable[tuple[str, str, str]]) -> list[str]:
    """A reason for each network device whose MAC another domain has on the same bridge."""
    holders = {(mac, bridge): name for name, mac, bridge in others}
    reasons = []
    for nic in config.devices("nics"):
        key = (str(nic.get("mac") or "").lower(), str(nic.get("bridge") or "xenbr0"))
        if name := holders.get(key):
            reasons.append(
                f"{name} has the MAC {key[0]} on the bridge {key[1]}, too: an emulated network "
                f"device keeps the address of the snapshot; choose another bridge (--bridge)"
            )
    return reasons
