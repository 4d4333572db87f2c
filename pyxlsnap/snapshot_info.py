"""What a cfgfile stands for, as values: see :func:`pyxlsnap.read_snapshot`."""

from collections.abc import Mapping

from pyxlsnap.dataclass import dataclass
from pyxlsnap.model import RunState


@dataclass(frozen=True, slots=True)
class SnapshotDisk:
    """One disk of a snapshot, as :func:`pyxlsnap.read_snapshot` finds it."""

    #: the guest's device
    vdev: str
    #: path of the disk on the host, when the snapshot was taken
    target: str
    #: the kind of storage, which is that of the disk strategy; "" if it is not known
    kind: str
    #: the disk snapshot: its path, its volume ("group/volume"), or its name and the image that
    #: holds it
    where: str
    #: space that the disk snapshot takes, bytes; ``None`` if it is not known
    size_bytes: int | None
    #: the files that the disk snapshot depends on, the nearest first
    stands_on: tuple[str, ...]
    #: the files that depend directly on the disk snapshot: the disk, later disk snapshots, the
    #: disks of clones; those in other directories are found only if they are the disks of clones
    supports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CloneInfo:
    """A clone that was made from a snapshot and not deleted since."""

    #: the clone's name
    domain: str
    #: the clone's uuid
    uuid: str
    #: the paths of its own disks, by vdev
    disks: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """What a cfgfile stands for, as :func:`pyxlsnap.read_snapshot` finds it.

    If the memory file cannot be read, only the fields from the cfgfile have a value.
    """

    #: the snapshot's name; "" if neither file has one
    name: str
    #: a text for people; "" if there is none
    description: str
    #: path of the cfgfile
    cfgfile: str
    #: path of the memory file
    memory_path: str
    #: the domain's name
    domain: str
    #: the domain's uuid
    uuid: str
    #: pv, pvh or hvm; "" if it is not known
    guest_kind: str
    #: when the snapshot was begun, seconds since the epoch; ``None`` if it is not known
    created: float | None
    #: the state of the domain in the snapshot; ``None`` if it is not known
    state: RunState | None
    #: versions of the programs that made the snapshot, by name: "pyxlsnap", "xen", "qemu"
    versions: Mapping[str, str]
    #: memory of the domain in the snapshot, KiB; ``None`` if it is not known
    memory_kb: int | None
    #: space that the memory file takes, bytes
    size_bytes: int
    #: the disks in the snapshot
    disks: tuple[SnapshotDisk, ...]
    #: disks that are not in the snapshot: the reason for each, by vdev
    left_out: Mapping[str, str]
    #: the clones that were made from the snapshot, or are being made; and those whose process was
    #: killed, until ``snapshot-recover`` has finished or removed them
    clones: tuple[CloneInfo, ...]
    #: what is missing or damaged, one line each; empty if the snapshot looks whole
    missing: tuple[str, ...]
