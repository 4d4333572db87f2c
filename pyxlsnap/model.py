"""Values about domains, disks and snapshots: frozen dataclasses that do not need libxl."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import field
from enum import IntEnum, StrEnum
from typing import Any

from pyxlsnap.dataclass import dataclass
from pyxlsnap.errors import UsageError
from pyxlsnap.text import bytes_of


class GuestKind(StrEnum):
    """The three kinds of guest, with the names of ``type=`` in xl.cfg(5)."""

    #: paravirtualized
    PV = "pv"
    #: hardware virtualization without a device model
    PVH = "pvh"
    #: hardware virtualization with a QEMU that emulates devices
    HVM = "hvm"


class RunState(StrEnum):
    """The state of a domain in a snapshot, which a revert restores."""

    #: the domain runs, or waits for a free processor
    RUNNING = "running"
    #: the owner of the domain has paused it (``xl pause``)
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
    """The current state of a domain in the hypervisor (``libxl_domain_info``)."""

    #: the domain id; another domain may get the same number later
    domid: int
    #: the uuid, in lower case
    uuid: str
    #: the domain is paused, by its owner or by libxl
    paused: bool
    #: the domain shut down by itself, or was suspended
    shutdown: bool
    #: why the domain shut down, in libxl's words ("poweroff", "suspend", …); "" if it did not
    shutdown_reason: str
    #: the domain is being destroyed
    dying: bool
    #: memory that the domain has now, in KiB
    memory_kb: int
    #: the domain has run; false for a new domain that was never unpaused
    has_run: bool = True
    #: processor time that the domain has used since its start or restore, in seconds
    cpu_seconds: float = 0.0

    @property
    def lives(self) -> bool:
        """Whether the domain runs; false also for a new domain, and for one being destroyed."""
        return not (self.paused or self.shutdown or self.dying)

    @property
    def suspended(self) -> bool:
        """Whether the domain was suspended, by a save or by itself, and can be resumed."""
        return self.shutdown and self.shutdown_reason == "suspend"


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk in the configuration of a guest (``libxl_device_disk``)."""

    #: the guest's device, such as ``xvda``
    vdev: str
    #: path on the host; "" for an empty drive
    target: str
    #: raw, qcow2, vhd, qed, empty or unknown
    format: str
    #: phy, qdisk or unknown
    backend: str = "unknown"
    #: the guest may write to the disk
    readwrite: bool = True
    #: the disk is a CD-ROM drive
    cdrom: bool = False
    #: the hotplug script of the disk (``script=``); "" for libxl's default
    script: str = ""
    #: the domain that provides the disk (``backend=``); "" for dom0
    backend_domain: str = ""
    #: "xen", or "virtio" (Xen 4.17 and later)
    specification: str = "xen"

    @property
    def left_out(self) -> str:
        """Why this disk needs no disk snapshot; "" if it needs one."""
        if self.cdrom:
            return "a CD-ROM drive"
        if self.format == "empty" or not self.target:
            return "an empty drive"
        return "" if self.readwrite else "read-only"

    @property
    def for_qemu(self) -> bool:
        """Whether a QEMU serves the disk: libxl tries dom0's kernel first, if nothing is chosen."""
        left_to_libxl = self.backend == "unknown" and self.format not in ("raw", "empty")
        return self.backend == "qdisk" or left_to_libxl


#: levels of nested objects and lists; libxl writes a few, Python's JSON some hundreds
_DEPTH_LIMIT = 50


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """A domain's configuration: libxl's JSON, and the parts that pyxlsnap needs."""

    #: libxl_domain_config as JSON; a memory file contains this text
    json: str
    #: the parsed JSON; must not be changed
    values: Mapping[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "DomainConfig":
        """Read libxl's JSON.

        :raises ValueError: the text is not a JSON object, or libxl cannot have written it.
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
        """A nested object such as ``c_info``; empty if there is none."""
        found = self.values.get(name, {})
        return found if isinstance(found, dict) else {}

    @property
    def name(self) -> str:
        """The domain's name; "" if the configuration has none."""
        return str(self.section("c_info").get("name", ""))

    @property
    def uuid(self) -> str:
        """The domain's uuid; "" if the configuration has none."""
        return str(self.section("c_info").get("uuid", ""))

    @property
    def kind(self) -> GuestKind:
        """pv, pvh or hvm. Only the configuration distinguishes PVH and HVM.

        :raises ValueError: the configuration has another type.
        """
        return GuestKind(str(self.section("c_info").get("type", "pv")).lower())

    @property
    def vcpus(self) -> int:
        """The number of virtual processors at most."""
        return int(self.section("b_info").get("max_vcpus") or 1)

    @property
    def disks(self) -> tuple[Disk, ...]:
        """The disks, in the order of the configuration."""
        return tuple(_disk(d, hvm=self.kind is GuestKind.HVM) for d in self.devices("disks"))

    def devices(self, kind: str) -> list[Mapping[str, Any]]:
        """A list of devices such as ``nics``; empty if there is none."""
        return [d for d in self.values.get(kind, []) if isinstance(d, dict)]

    def action_on(self, reason: str) -> str:
        """The action for a shutdown: "restart", "destroy", … (``on_reboot`` and the others).

        :param reason: as in :attr:`DomainInfo.shutdown_reason`. For an unknown reason the action is
            "destroy", as in xl.
        """
        known = ("poweroff", "reboot", "crash", "watchdog", "soft_reset")
        # libxl does not write a value that is the default.
        return str(self.values.get(f"on_{reason}", "destroy")) if reason in known else "destroy"

    def with_name(self, name: str) -> "DomainConfig":
        """The same configuration under another name."""
        values = {**self.values, "c_info": {**self.section("c_info"), "name": name}}
        return DomainConfig(json.dumps(values), values)


def _check_configuration(values: Mapping[str, Any]) -> None:
    """:raises ValueError: a value has a wrong type, a bad string, or too many nested levels."""
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


def _disk(values: Mapping[str, Any], *, hvm: bool) -> Disk:
    usual = "qdisk" if hvm and values.get("is_cdrom") else "unknown"  # as libxl has it
    return Disk(
        vdev=str(values.get("vdev") or ""),
        target=str(values.get("pdev_path") or ""),
        format=str(values.get("format", "unknown")),
        backend=str(values.get("backend", usual)),
        readwrite=bool(values.get("readwrite", 0)),
        cdrom=bool(values.get("is_cdrom", 0)),
        script=str(values.get("script") or ""),
        backend_domain=str(values.get("backend_domname") or values.get("backend_domid") or ""),
        specification=str(values.get("specification", "xen")),
    )


@dataclass(frozen=True, slots=True)
class DiskRequest:
    """One item of a cfgfile's ``disks``: a disk, and where its disk snapshot is stored."""

    #: the guest's device, such as ``xvda``
    vdev: str
    #: path of an external disk snapshot; "" for an internal one
    path: str = ""
    #: format of an external disk snapshot, such as ``qcow2``; "" for an internal one
    format: str = ""

    @property
    def internal(self) -> bool:
        """Whether the disk snapshot is stored in the disk's own storage."""
        return not self.path and not self.format


@dataclass(frozen=True, slots=True)
class SnapshotConfig:
    """The content of a cfgfile (see pyxlsnap.cfg(5)). A missing setting is ``None``."""

    #: the snapshot's name; ``None``: the name is made from the date and time
    name: str | None = None
    #: a text for people, stored in the new cfgfile and in the memory file
    description: str | None = None
    #: path of the memory file; ``None``: in the domain's directory below ``/var/lib/xen/snapshots``
    memory_path: str | None = None
    #: the disks to snapshot; ``None``: all writable disks, each in its own storage
    disks: tuple[DiskRequest, ...] | None = None


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a memory file of pyxlsnap says about its snapshot, besides the configuration."""

    #: the snapshot's name
    name: str
    #: a text for people
    description: str
    #: when the operation began, in seconds since the epoch
    created: int
    #: the state of the domain in the snapshot
    state: RunState
    #: the disk snapshots, in the form of a cfgfile
    disks: tuple[DiskRequest, ...]
    #: versions of the programs that made the snapshot, by name: "pyxlsnap", "xen", "qemu"
    versions: Mapping[str, str]
    #: kind of disk strategy that made each disk snapshot, by vdev
    kinds: Mapping[str, str] = field(default_factory=dict)


#: A revert keeps the old content of the disks under the snapshot's name with this suffix.
KEPT_SUFFIX = ".pre-revert"
_NAME_LIMIT = 127  # qcow2 and QEMU allow 255 bytes, LVM 127 including the name of the volume
_NAME = re.compile(r"[A-Za-z0-9_+.@:-]+")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def check_name(name: str) -> str:
    """Return ``name`` if it can be the name of a snapshot in every kind of storage.

    The name becomes a qcow2 tag, a file's name and an argument of ``qemu-img snapshot``, where
    digits alone are an ID. :data:`KEPT_SUFFIX` is reserved: pyxlsnap deletes what has this suffix.

    :raises UsageError: the name is not allowed; the message says why.
    """
    if not name:
        raise UsageError("the snapshot's name is empty: give a name, or leave the setting out")
    if len(name) > _NAME_LIMIT:
        raise UsageError(
            f"snapshot name {name[:20]!r}… is longer than {_NAME_LIMIT} characters: choose a "
            f"shorter one"
        )
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"snapshot name {name!r}: only letters, digits and _ + . @ : - are allowed"
        )
    if name.isdigit():
        raise UsageError(
            f"snapshot name {name!r}: qemu-img takes digits alone for a snapshot ID: add a letter"
        )
    if name[0] in ".-":
        raise UsageError(
            f"snapshot name {name!r} must not start with {name[0]!r}: choose another name"
        )
    if name.endswith(KEPT_SUFFIX):
        raise UsageError(
            f"snapshot name {name!r}: names that end in {KEPT_SUFFIX!r} are reserved for the disks "
            f"that a revert keeps until its end: choose another name"
        )
    return name


def check_text(text: str) -> str:
    """Return ``text`` if it can be a path: no NUL, and no surrogates except from ``os.fsdecode``.

    :raises ValueError: the text cannot be a path.
    """
    if b"\0" in bytes_of(text):
        raise ValueError("has a NUL character")
    return text


def check_uuid(uuid: str) -> str:
    """Return ``uuid`` in lower case, as in the names of locks and journals.

    :raises UsageError: the text is not a uuid.
    """
    if not _UUID.fullmatch(uuid.lower()):
        raise UsageError(f"{uuid!r} is not a domain's uuid (`xl list -v` shows it)")
    return uuid.lower()
