"""What is in a snapshot, for the operations that restore one: from its cfgfile and memory file."""

from collections.abc import Callable
from pathlib import Path

from pyxlsnap.dataclass import dataclass
from pyxlsnap.errors import ConfigError
from pyxlsnap.guest.saved import memory_path, reading, saved_config
from pyxlsnap.linux.files import file_version
from pyxlsnap.memory import Header, read_header, walk
from pyxlsnap.model import (
    Disk,
    DiskRequest,
    DomainConfig,
    Metadata,
    RunState,
    SnapshotConfig,
    check_name,
)


@dataclass(frozen=True, slots=True)
class Saved:
    """The content of a memory file, without the memory."""

    path: Path
    #: the file as it was when it was read: :func:`pyxlsnap.linux.files.file_version`
    version: tuple[int, ...]
    header: Header
    config: DomainConfig
    #: the release of Xen that saved the memory
    xen: tuple[int, int]
    #: memory that the domain held, KiB
    memory_kb: int

    @property
    def metadata(self) -> Metadata | None:
        """What pyxlsnap wrote into the file; ``None``: another program made the file."""
        return self.header.metadata

    @property
    def created(self) -> int | None:
        """When the snapshot was taken, seconds since the epoch; ``None``: by another program."""
        return self.metadata.created if self.metadata else None

    @property
    def qemu(self) -> str:
        """The version of the QEMU that saved the domain; "" if the memory file has none."""
        return self.metadata.versions.get("qemu", "") if self.metadata else ""


def state_after(running: bool, paused: bool, meta: Metadata | None) -> RunState:
    """The state of a domain after its restore: that of the snapshot, unless the user wants another.

    :param meta: what the memory file says; ``None``: another program made the file.
    """
    if paused:
        return RunState.PAUSED
    return RunState.RUNNING if running or meta is None else meta.state


def read_memory(wanted: SnapshotConfig, cfgfile: str, check: Callable[[], None]) -> Saved:
    """Read the memory file that a cfgfile names, from its header to its END.

    :param wanted: the content of the cfgfile.
    :param check: called often; an exception from it ends the reading.
    :raises ConfigError: the cfgfile names no memory file.
    :raises BadMemoryFile: the memory file is not there, or damaged.
    """
    path = memory_path(wanted, cfgfile)
    with reading(path) as file:
        version = file_version(file.fileno())
        header = read_header(file, str(path))
        file.seek(header.stream_offset)
        summary = walk(file, str(path), on_bytes=lambda _: check())
        config = saved_config(header)
    xen = (summary.xen_major, summary.xen_minor)
    return Saved(path, version, header, config, xen, summary.memory_kb)


def saved_uuid(wanted: SnapshotConfig, cfgfile: str) -> str:
    """The uuid of the domain in a memory file. Reads the header only, not the memory.

    :raises ConfigError, BadMemoryFile: as :func:`read_memory`.
    """
    return saved_origin(wanted, cfgfile)[0]


def saved_origin(wanted: SnapshotConfig, cfgfile: str) -> tuple[str, int | None]:
    """The uuid of the domain in a memory file, and :attr:`Saved.created`. Reads the header only.

    :raises ConfigError, BadMemoryFile: as :func:`read_memory`.
    """
    path = memory_path(wanted, cfgfile)
    with reading(path) as file:
        header = read_header(file, str(path))
        return saved_config(header).uuid, header.metadata.created if header.metadata else None


def snapshot_name(wanted: SnapshotConfig, cfgfile: str, meta: Metadata | None) -> str:
    """The name of a snapshot, from its cfgfile or its memory file.

    :raises ConfigError: neither has a name, or they differ.
    """
    said = wanted.name
    if said and meta and said != meta.name:
        raise ConfigError(
            f"is {said!r}, but the memory file belongs to snapshot {meta.name!r}: memory and "
            f"disks would not match; use the cfgfile of snapshot {meta.name!r}",
            file=cfgfile,
            item="name",
        )
    name = said or (meta.name if meta else None)
    if not name:
        raise ConfigError(
            "is missing, and the memory file (made by another program) contains no name "
            "either: add the name of the disk snapshots",
            file=cfgfile,
            item="name",
        )
    return check_name(name)


def choose_disks(
    wanted: SnapshotConfig, cfgfile: str, meta: Metadata | None, config: DomainConfig
) -> list[tuple[Disk, DiskRequest]]:
    """The disks of a snapshot, each with its disk snapshot.

    The list is in the cfgfile, or else in the memory file. Without a list: all writable disks.

    :raises ConfigError: the saved configuration has no such disk.
    """
    by_vdev = {d.vdev: d for d in config.disks}
    named = wanted.disks
    if named is None and meta is not None:
        named = meta.disks
    if named is None:
        named = tuple(DiskRequest(d.vdev) for d in config.disks if not d.left_out)
    if unknown := [r.vdev for r in named if r.vdev not in by_vdev]:
        raise ConfigError(
            f"the saved configuration of {config.name} has no disk {', '.join(unknown)} "
            f"(its disks: {', '.join(by_vdev) or 'none'})",
            file=cfgfile,
            item="disks",
        )
    return [(by_vdev[r.vdev], r) for r in named]
