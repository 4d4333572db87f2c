"""The values that pyxlsnap hands around: plain, frozen, free of libxl."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

from pyxlsnap.errors import UsageError
from pyxlsnap.text import bytes_of


class GuestKind(StrEnum):
    """The three kinds of guest, in the words of xl.cfg's ``type=``."""

    #: paravirtualized
    PV = "pv"
    #: hardware virtualization without a device model
    PVH = "pvh"
    #: hardware virtualization with emulated devices, by a QEMU of its own
    HVM = "hvm"


class RunState(StrEnum):
    """The state a snapshot was taken in, and comes back in."""

    #: it runs, or would if a processor were free
    RUNNING = "running"
    #: its owner has paused it (``xl pause``)
    PAUSED = "paused"


class XenbusState(IntEnum):
    """The state of one end of a paravirtual device (``xen/io/xenbus.h``)."""

    UNKNOWN = 0
    #: no driver has taken the device yet
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8


@dataclass(frozen=True, slots=True)
class DomainInfo:
    """What the hypervisor says of a domain now (``libxl_domain_info``)."""

    #: its number, which another domain may have later
    domid: int
    #: what tells it from all others, in lower case
    uuid: str
    #: it is paused, by its owner or by libxl
    paused: bool
    #: it has shut down by itself, or was suspended
    shutdown: bool
    #: why it shut down, in libxl's words ("poweroff", "suspend", …); "" while it has not
    shutdown_reason: str
    #: it is being destroyed
    dying: bool
    #: current allocation, KiB
    memory_kb: int
    #: it has run, ever; false for one that was made and not yet unpaused
    has_run: bool = True

    @property
    def lives(self) -> bool:
        """It runs: libxl pauses a domain before it destroys it, and makes a new one paused."""
        return not (self.paused or self.shutdown or self.dying)

    @property
    def suspended(self) -> bool:
        """Suspended by a save (or by itself), and resumable."""
        return self.shutdown and self.shutdown_reason == "suspend"


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of a guest, as its configuration has it (``libxl_device_disk``)."""

    #: the guest's device, such as ``xvda``
    vdev: str
    #: host path; "" for an empty drive
    target: str
    #: raw, qcow2, vhd, qed, empty or unknown
    format: str
    #: phy, qdisk or unknown
    backend: str = "unknown"
    #: the guest may write to it
    readwrite: bool = True
    #: it is a CD-ROM drive
    cdrom: bool = False
    #: the hotplug script that attaches it, "" for libxl's own (``script=``)
    script: str = ""
    #: the domain that serves it, "" for dom0 (``backend=``)
    backend_domain: str = ""
    #: "xen", or "virtio" (Xen 4.17 and later)
    specification: str = "xen"

    @property
    def left_out(self) -> str:
        """Why this disk needs no snapshot; "" when it needs one."""
        if self.cdrom:
            return "a CD-ROM drive"
        if self.format == "empty" or not self.target:
            return "an empty drive"
        return "" if self.readwrite else "read-only"


#: of objects and lists in each other; libxl's have a few, and Python's JSON can write some hundreds
_DEPTH_LIMIT = 50


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """A domain's configuration: libxl's own JSON, and the parts of it that we look at."""

    #: libxl_domain_config as JSON, the text that goes into a memory file
    json: str
    #: the same, parsed; not to be changed
    values: Mapping[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "DomainConfig":
        """Read libxl's JSON.

        :raises ValueError: it is not a JSON object, or libxl would never have written it.
        """
        try:
            values = json.loads(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        _check_configuration(values)
        return cls(text, values)

    def section(self, name: str) -> Mapping[str, Any]:
        """A nested object such as ``c_info``; empty when it is absent."""
        found = self.values.get(name, {})
        return found if isinstance(found, dict) else {}

    @property
    def name(self) -> str:
        """The domain's name; "" if it says none."""
        return str(self.section("c_info").get("name", ""))

    @property
    def uuid(self) -> str:
        """The domain's uuid; "" if it says none."""
        return str(self.section("c_info").get("uuid", ""))

    @property
    def kind(self) -> GuestKind:
        """pv, pvh or hvm: only the configuration tells PVH from HVM.

        :raises ValueError: it says something else.
        """
        return GuestKind(str(self.section("c_info").get("type", "pv")).lower())

    @property
    def disks(self) -> tuple[Disk, ...]:
        """Its disks, in their order."""
        return tuple(map(_disk, self.devices("disks")))

    def devices(self, kind: str) -> list[Mapping[str, Any]]:
        """A list of devices, such as ``nics``; empty when it is absent."""
        return [d for d in self.values.get(kind, []) if isinstance(d, dict)]

    def action_on(self, reason: str) -> str:
        """What is to be done when it shuts down: "restart", "destroy", … (on_reboot=, …).

        :param reason: as :attr:`DomainInfo.shutdown_reason`; xl destroys what it does not know.
        """
        known = ("poweroff", "reboot", "crash", "watchdog", "soft_reset")
        # libxl leaves out what is its default.
        return str(self.values.get(f"on_{reason}", "destroy")) if reason in known else "destroy"

    def with_name(self, name: str) -> "DomainConfig":
        """The same configuration under another name."""
        values = {**self.values, "c_info": {**self.section("c_info"), "name": name}}
        return DomainConfig(json.dumps(values), values)


def _check_configuration(values: Mapping[str, Any]) -> None:
    """:raises ValueError: what comes later would stumble over something in it."""
    for key in ("disks", "nics"):
        if not isinstance(values.get(key, []), list):
            raise ValueError(f"{key} is not a list")
    level: list[object] = [values]
    for _ in range(_DEPTH_LIMIT):
        for value in level:
            if isinstance(value, str):
                check_text(value)
        level = [inner for value in level for inner in _inner(value)]
    if level:
        raise ValueError("nested too deeply")


def _inner(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return (*value.keys(), *value.values())
    return value if isinstance(value, list) else ()


def _disk(values: Mapping[str, Any]) -> Disk:
    return Disk(
        vdev=str(values.get("vdev") or ""),
        target=str(values.get("pdev_path") or ""),
        format=str(values.get("format", "unknown")),
        backend=str(values.get("backend", "unknown")),
        readwrite=bool(values.get("readwrite", 0)),
        cdrom=bool(values.get("is_cdrom", 0)),
        script=str(values.get("script") or ""),
        backend_domain=str(values.get("backend_domname") or values.get("backend_domid") or ""),
        specification=str(values.get("specification", "xen")),
    )


@dataclass(frozen=True, slots=True)
class DiskRequest:
    """One item of a cfgfile's ``disks``: which disk, and where its snapshot goes."""

    #: the guest's device, such as ``xvda``
    vdev: str
    #: external path; "" for an internal disk snapshot
    path: str = ""
    #: its format, such as ``qcow2``; "" for an internal disk snapshot
    format: str = ""

    @property
    def internal(self) -> bool:
        """It goes into the disk's own storage."""
        return not self.path and not self.format


@dataclass(frozen=True, slots=True)
class SnapshotConfig:
    """A cfgfile's content (see pyxlsnap.cfg(5)). What it leaves out is ``None``."""

    #: the snapshot's name; ``None``: it is named after the time
    name: str | None = None
    #: a text for people, kept in the cfgfile that is written and in the memory file
    description: str | None = None
    #: the memory file; ``None``: in a directory of the domain's own below
    #: ``/var/lib/xen/snapshots``
    memory_path: str | None = None
    #: the disks to snapshot; ``None``: every writable one, in its own storage
    disks: tuple[DiskRequest, ...] | None = None


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a memory file of ours says of its snapshot, beside the domain's configuration."""

    name: str
    description: str
    #: seconds since the epoch, when the operation began
    created: int
    state: RunState
    #: the disk snapshots, as a cfgfile names them
    disks: tuple[DiskRequest, ...]
    #: who made it: "pyxlsnap", "xen", "qemu" -> version
    versions: Mapping[str, str]
    #: by vdev, the kind of disk strategy that took it
    kinds: Mapping[str, str] = field(default_factory=dict)


#: what a revert keeps the disks under, put after the snapshot's name
KEPT_SUFFIX = ".pre-revert"
_NAME_LIMIT = 127  # qcow2 and QEMU take 255 bytes, LVM 127 with the volume's own name
_NAME = re.compile(r"[A-Za-z0-9_+.@:-]+")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def check_name(name: str) -> str:
    """Return ``name`` if every storage can hold it as a snapshot's name.

    It becomes a qcow2 tag, a file's name and an argument of ``qemu-img snapshot``, which takes
    an ID (digits) before a name: so digits alone will not do. :data:`KEPT_SUFFIX` is reserved, so
    that what bears it is ours to delete.

    :raises UsageError: saying what is wrong with it.
    """
    if not name:
        raise UsageError("the snapshot's name is empty: give one, or none at all")
    if len(name) > _NAME_LIMIT:
        raise UsageError(
            f"snapshot name {name[:20]!r}… is longer than {_NAME_LIMIT} characters: choose a "
            f"shorter one"
        )
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"snapshot name {name!r}: only letters, digits and _ + . @ : - can be stored everywhere"
        )
    if name.isdigit():
        raise UsageError(
            f"snapshot name {name!r}: digits alone would be taken for a qcow2 snapshot ID: add a "
            f"letter"
        )
    if name[0] in ".-":
        raise UsageError(f"snapshot name {name!r} must not start with {name[0]!r}")
    if name.endswith(KEPT_SUFFIX):
        raise UsageError(
            f"snapshot name {name!r}: under such a name a revert keeps the disks as they were, and "
            f"deletes it in the end: choose another that does not end in {KEPT_SUFFIX!r}"
        )
    return name


def check_text(text: str) -> str:
    """Return ``text`` if it can be a path: no NUL, no surrogate but those of ``os.fsdecode``.

    :raises ValueError: it cannot.
    """
    if b"\0" in bytes_of(text):
        raise ValueError("has a NUL in it")
    return text


def check_uuid(uuid: str) -> str:
    """Return ``uuid`` in lower case, as locks and journals are named.

    :raises UsageError: it is none.
    """
    if not _UUID.fullmatch(uuid.lower()):
        raise UsageError(f"{uuid!r} is not a domain's uuid (`xl list -v` shows it)")
    return uuid.lower()
