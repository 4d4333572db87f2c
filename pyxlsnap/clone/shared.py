"""What a clone would still share with the saved domain, and cannot: each is refused by name.

Also: what the caller may not change in the configuration (``edit``).
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pyxlsnap.clone.lines import shared_lines
from pyxlsnap.errors import Refused, UsageError
from pyxlsnap.model import Disk, DomainConfig
from pyxlsnap.text import shortened

#: the scripts of Xen that put a network device on no bridge
_UNBRIDGED = ("vif-route", "vif-nat")
#: addresses in arguments of QEMU, and what listens or forwards
_NETWORK = re.compile(r"(?:^|[,=:])(?:tcp|udp|telnet|tn3270|websocket|hostfwd|guestfwd)[:=]")
_PORT = re.compile(r"(?:^|[,.])(?:tls-)?port=\d")
_PORT_OPTIONS = ("-s", "--s")  # QEMU listens for a debugger
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
    shared = [*_disks(saved, own, made), *shared_lines(saved, own), *_arguments(saved, own)]
    shared += [*_spice(saved, own), *_vnc(saved, own)]
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


def _arguments(saved: DomainConfig, own: DomainConfig) -> Iterator[str]:
    """Arguments of QEMU that have a path or a port in them."""
    then = {argument for _, argument in _given(saved)}
    now = {argument: option for option, argument in _given(own)}
    for argument in sorted(then & now.keys()):
        if "/" in argument:
            yield f"the path in device_model_args ({shortened(argument)})"
        elif _has_port(now[argument], argument):
            yield f"the port in device_model_args ({shortened(argument)})"


def _given(config: DomainConfig) -> Iterator[tuple[str, str]]:
    """The arguments of QEMU, each with the argument before it."""
    for key in _ARGUMENTS:
        words = [str(word) for word in config.section("b_info").get(key) or ()]
        yield from zip(["", *words], words, strict=False)


def _has_port(option: str, argument: str) -> bool:
    if argument in _PORT_OPTIONS or _NETWORK.search(argument):
        return True
    if option.lstrip("-") == "device":  # ports of a USB hub or of PCI Express have numbers, too
        return False
    return bool(_PORT.search(argument)) or (option.lstrip("-") == "vnc" and ":" in argument)


def _spice(saved: DomainConfig, own: DomainConfig) -> list[str]:
    then, now = (_hvm(c).get("spice") for c in (saved, own))
    if not isinstance(now, Mapping) or not isinstance(then, Mapping):
        return []
    ports = [key for key in ("port", "tls_port") if now.get(key) and now[key] == then.get(key)]
    return [f"the SPICE {key} {now[key]}" for key in ports if now.get("enable") == "True"]


def _vnc(saved: DomainConfig, own: DomainConfig) -> Iterator[str]:
    """Sockets of VNC servers: there is no free display to look for."""
    then = set(_vnc_places(saved))
    for place in _vnc_places(own):
        if place in then and place.startswith("unix:"):
            yield f"the VNC display {shortened(place)}"


def _vnc_places(config: DomainConfig) -> list[str]:
    found = [d.get("vnc") for d in (_hvm(config), *config.devices("vfbs"))]
    on = [vnc for vnc in found if isinstance(vnc, Mapping) and vnc.get("enable") != "False"]
    return [str(vnc.get("listen") or "") for vnc in on]


def _hvm(config: DomainConfig) -> Mapping[str, Any]:
    found = config.section("b_info").get("type.hvm")
    return found if isinstance(found, Mapping) else {}


def refuse_unbridged(bridge: str, own: DomainConfig) -> None:
    """Refuse a bridge that the script of a network device does not look at.

    :param bridge: the bridge that was asked for; "": none.
    :raises Refused: the device would be where the snapshot's domain has it.
    """
    for number, nic in enumerate(own.devices("nics") if bridge else ()):
        script = str(nic.get("script", "")).rpartition("/")[2]
        if script.startswith(_UNBRIDGED):
            raise Refused(
                f"the clone {own.name} cannot be put on the bridge {bridge}: the script {script} "
                f"of its network device {nic.get('devid', number)} looks at no bridge: leave "
                f"--bridge out, or change the script (`edit` of pyxlsnap.clone_snapshot)"
            )


def check_edited(own: DomainConfig, edited: DomainConfig, made: Collection[str]) -> None:
    """Check what the caller has made of the configuration of a clone.

    :param made: the vdevs of the disks that are the clone's own.
    :raises UsageError: something was changed that the memory file or the clone's disks fix.
    """
    wrong = [f"{s}.{k}" for s, k in _FIXED if own.section(s).get(k) != edited.section(s).get(k)]
    for kind in sorted(_kinds(own) | _kinds(edited)):
        if len(own.devices(kind)) != len(edited.devices(kind)):
            wrong.append(f"the number of {kind}")
    # (The type fits, so that the disks can be read.)
    if not wrong and _all_fixed(own, made) != _all_fixed(edited, made):
        wrong.append(
            "vdev, format or mode of a disk, or the path, backend or script of one that is the "
            "clone's own"
        )
    if wrong:
        raise UsageError(
            f"the configuration of the clone {own.name} was edited, and cannot be changed in: "
            f"{', '.join(wrong)}"
        )


def _kinds(config: DomainConfig) -> set[str]:
    """The kinds of devices, as libxl's JSON names them."""
    return {key for key, value in config.values.items() if isinstance(value, list)}


def _all_fixed(config: DomainConfig, made: Collection[str]) -> list[tuple[object, ...]]:
    return [_fixed(disk, made) for disk in config.disks]


def _fixed(disk: Disk, made: Collection[str]) -> tuple[object, ...]:
    own = (disk.target, disk.script, disk.backend_domain, disk.specification)
    return (disk.vdev, disk.format, disk.readwrite, own if disk.vdev in made else ())
