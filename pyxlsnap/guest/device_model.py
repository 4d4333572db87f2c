"""What the guest's QEMU has that a snapshot would not hold, or that a restore could not take.

A restore starts QEMU from the saved configuration: a device that was added to the running QEMU is
not there, and QEMU refuses the state in the memory file. A disk that only QEMU knows is in no list
of disks: the memory would go back, and this disk would not.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from pyxlsnap import paths
from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.in_use import Servers
from pyxlsnap.disks.qcow2.qemu import NODE_PREFIX
from pyxlsnap.errors import QmpError, Refused
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.linux.there import is_block_device
from pyxlsnap.model import Disk, DomainConfig, GuestKind
from pyxlsnap.text import one_line, quote

# The lists of device_model_args, device_model_args_pv and device_model_args_hvm in libxl's JSON.
_ARGUMENTS = ("extra", "extra_pv", "extra_hvm")
# QEMU's options that give a guest a disk, or a directory of the host.
_DISK_OPTION = re.compile(r"--?(drive|blockdev|hd[abcd]|fd[ab]|sd|mtdblock|pflash|virtfs|fsdev)")
# QEMU's devices that are a disk, a directory of the host, or a device of the host.
_DISK_DEVICE = re.compile(
    r"nvme|virtio-blk|vhost-user-(blk|fs|scsi)|vhost-scsi|scsi-(hd|block|generic|disk|cd)|"
    r"ide-(hd|drive|cd)|usb-(storage|bot|uas|host|redir)|sd-card|floppy|virtio-9p|nvdimm|"
    r"virtio-pmem|vfio-|xen-pci-passthrough"
)
# A drive that the guest cannot write to needs no disk snapshot.
_READ_ONLY = re.compile(r"(^|,)(read-?only(=on|=true|=yes)?|media=cdrom)(,|$)")
# (usbdevice= of the configuration; QEMU took such values until release 4)
_USB_OF_THE_HOST = ("disk:", "host:")
_ID = re.compile(r'(?:^|,)id=([^,]*)|"id": *"([^"]*)"')


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """What the QEMU of an HVM guest says."""

    #: its version; "" for another kind of guest
    version: str = ""
    #: the disks that it emulates, by vdev: PV drivers unplug them when they begin
    emulated: frozenset[str] = frozenset()


def not_saved(config: DomainConfig, name: str = "") -> list[str]:
    """The items of a configuration that QEMU serves, and that a snapshot would not hold.

    :param name: the domain's name, to say how an item is removed.
    """
    build = config.section("b_info")
    found = []
    for controller in config.devices("usbctrls"):
        if _is_emulated(config, controller):
            command = f"xl usbctrl-detach {quote(name)} {controller.get('devid', 0)}"
            way_out = f" (to remove it: {command})" if name else ""
            found.append(f"an emulated USB controller{way_out}")
    for key in _ARGUMENTS:
        arguments = build.get(key, [])
        found += [
            f"`{one_line(words)}` in device_model_args"
            for words in _disks_in(arguments if isinstance(arguments, list) else [])
        ]
    hvm = build.get("type.hvm", {})
    return found + [f"usbdevice={device}" for device in _usb_devices(hvm)]


def _is_emulated(config: DomainConfig, controller: Mapping[str, Any]) -> bool:
    """libxl chooses an emulated controller for an HVM guest if the type is "auto"."""
    kind = str(controller.get("type", "auto"))
    return kind == "devicemodel" or (kind == "auto" and config.kind is GuestKind.HVM)


def _disks_in(arguments: list[object]) -> Iterator[str]:
    """The arguments of QEMU that give the guest a disk."""
    words = [str(a) for a in arguments]
    for option, value in pairwise([*words, ""]):
        if _DISK_OPTION.fullmatch(option):
            if not _READ_ONLY.search(value):
                yield f"{option} {value}"
        elif option in ("-device", "--device") and _DISK_DEVICE.match(_driver(value)):
            yield f"{option} {value}"


def _driver(device: str) -> str:
    """The driver in a value of -device: its first word, or a member of JSON."""
    named = re.search(r'driver=([^,]*)|"driver": *"([^"]*)"', device)
    return (named[1] or named[2]) if named else device.partition(",")[0]


def _usb_devices(hvm: object) -> Iterator[str]:
    if not isinstance(hvm, Mapping):
        return
    several = hvm.get("usbdevice_list", [])
    for device in (hvm.get("usbdevice"), *(several if isinstance(several, list) else [])):
        if str(device or "").startswith(_USB_OF_THE_HOST):
            yield str(device)


def servers(guest: Guest | None) -> Servers:
    """What serves a guest its disks: nothing if it is off (``None``)."""
    return Servers(guest.domid, guest.device_model_pid()) if guest else Servers()


def examine_device_model(guest: Guest, config: DomainConfig) -> DeviceModel:
    """Compare what the QEMU of an HVM guest has with the domain's configuration.

    Nothing else may be connected to QEMU's monitor meanwhile: the disk strategies connect later.

    :raises Refused: QEMU has a disk that is none of the domain's, or a device that a restored
        domain would not have; or QEMU does not answer.
    """
    pid = guest.device_model_pid()
    if config.kind is not GuestKind.HVM or pid is None:
        return DeviceModel()  # the QEMU of another kind of guest serves only what is in xenstore
    from pyxlsnap.disks.qcow2.qmp import QmpConnection, socket_path  # asyncio takes long to load

    try:
        connection = QmpConnection(socket_path(guest.domid))
        try:
            version = connection.execute("query-version")["qemu"]
            blocks = _writable(connection.execute("query-block"))
            devices = connection.execute("qom-list", {"path": "/machine/peripheral"})
        finally:
            connection.close()
    except QmpError as e:
        raise Refused(
            f"{guest.name}: cannot talk to the guest's QEMU ({e}): is another program (xentop?) "
            f"connected to its QMP socket?"
        ) from e
    _refuse_strange_disks(guest.name, config.disks, blocks)
    _refuse_added(guest.name, devices, _command_line(guest.name, pid))
    return DeviceModel("{major}.{minor}.{micro}".format(**version), _emulated(config.disks, blocks))


def _writable(blocks: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """QEMU's drives, but for empty ones, CD-ROM drives, and what the guest cannot write to."""
    return [b for b in blocks if b.get("inserted") and not b["inserted"]["ro"]]


def _emulated(disks: Iterable[Disk], blocks: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The disks that QEMU emulates: only libxl's options for these give a drive a name."""
    nodes = [b["inserted"] for b in blocks if b.get("device")]
    return frozenset(d.vdev for d in disks if any(_serves(node, d) for node in nodes))


def _refuse_strange_disks(
    name: str, disks: Iterable[Disk], blocks: Iterable[Mapping[str, Any]]
) -> None:
    disks = list(disks)
    for block in blocks:
        inserted = block["inserted"]
        if any(_serves(inserted, disk) for disk in disks):
            continue
        device = block.get("qdev") or block.get("device") or inserted["node-name"]
        raise Refused(
            f"the QEMU of {name} has a disk that is none of the domain's, and would not be in the "
            f"snapshot ({device}: {one_line(str(inserted['file']))}): remove the disk from QEMU "
            f"(xl qemu-monitor-command), and attach it with xl block-attach"
        )


def _serves(inserted: Mapping[str, Any], disk: Disk) -> bool:
    """Whether a node of QEMU's is a disk of the domain: by its name, or by its file."""
    node = str(inserted["node-name"])
    if node == f"{disk.vdev}-{inserted['drv']}" or node.startswith(f"{NODE_PREFIX}-{disk.vdev}-"):
        return True
    file = str(inserted["file"])
    if disk.script:  # it names the block device for QEMU
        return is_block_device(file)
    if not disk.target.startswith("/"):  # libxl's text, or JSON of QEMU's
        return bool(disk.target) and not file.startswith("/")
    try:
        return file == disk.target or Path(file).samefile(disk.target)
    except OSError:
        return False


def _refuse_added(name: str, devices: Iterable[Mapping[str, str]], words: list[str]) -> None:
    """The devices with an id that are not on QEMU's command line were added later."""
    known = {a or b for word in words for a, b in _ID.findall(word)}
    for device in devices:
        driver = device["type"].removeprefix("child<").removesuffix(">")
        if driver == device["type"] or device["name"] in known or driver.endswith("-cpu"):
            continue  # (libxl starts QEMU with the processors that the guest had)
        if driver.startswith("xen-"):
            continue  # QEMU makes these itself, for the backends that xenstore asks for
        raise Refused(
            f"a device was added to the running QEMU of {name} ({device['name']}, {driver}), and "
            f"a restored domain would not have the device: remove it (xl qemu-monitor-command "
            f"{quote(name)} 'device_del {device['name']}')"
        )


def _command_line(name: str, pid: int) -> list[str]:
    try:
        data = (paths.PROC / f"{pid}/cmdline").read_bytes()
    except OSError as e:
        raise Refused(f"the QEMU of {name} (pid {pid}) has ended: start the domain again") from e
    return os.fsdecode(data).split("\0")
