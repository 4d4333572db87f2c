"""What a cfgfile stands for, as a value: for programs that show snapshots, or rotate them.

Needs no running Xen. Takes no lock: an operation that is under way may change what is found.
"""

from collections.abc import Sequence
from pathlib import Path

from pyxlsnap import cfgfile
from pyxlsnap.cancel import Cancel
from pyxlsnap.clone_file import clones_of
from pyxlsnap.disks import contents
from pyxlsnap.errors import BadMemoryFile
from pyxlsnap.guest.saved import memory_path
from pyxlsnap.guest.snapshot import Saved, choose_disks, read_memory, snapshot_name
from pyxlsnap.journal import CloneEntry
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.model import Disk, DiskRequest, SnapshotConfig
from pyxlsnap.request import ReadRequest
from pyxlsnap.snapshot_info import CloneInfo, SnapshotDisk, SnapshotInfo

_BLOCK = 512  # bytes: the unit of st_blocks


@refusing_os_errors()
def read(request: ReadRequest, cancel: Cancel | None = None) -> SnapshotInfo:
    """Find what a cfgfile stands for. Changes nothing.

    :raises ConfigError: the cfgfile is wrong, or is not that of its memory file.
    :raises Refused: the file of some clone, or a journal, cannot be read, so it is not known what
        the clone stands on.
    :raises Cancelled: ``cancel`` was set.
    """
    cancel = cancel or Cancel()
    wanted = cfgfile.read(Path(request.cfgfile))
    path = memory_path(wanted, request.cfgfile)
    try:
        saved = read_memory(wanted, request.cfgfile, cancel.check)
    except BadMemoryFile as e:
        return _without_memory(request, wanted, path, str(e))
    return _Reading(request, wanted, saved, cancel).info()


class _Reading:
    """The look at one snapshot whose memory file can be read."""

    def __init__(
        self, request: ReadRequest, wanted: SnapshotConfig, saved: Saved, cancel: Cancel
    ) -> None:
        self._request, self._wanted, self._saved, self._cancel = request, wanted, saved, cancel
        meta = saved.metadata
        self._name = snapshot_name(wanted, request.cfgfile, meta)
        self._chosen = choose_disks(wanted, request.cfgfile, meta, saved.config)
        self._clones = clones_of(saved.config.uuid, self._name, saved.created)

    def info(self) -> SnapshotInfo:
        """Look at the disks, and put all together."""
        saved, meta, config = self._saved, self._saved.metadata, self._saved.config
        found = [self._look(disk, request) for disk, request in self._chosen]
        xen = {"xen": "{}.{}".format(*saved.xen)}
        vdevs = {disk.vdev for disk, _ in self._chosen}
        return SnapshotInfo(
            name=self._name,
            description=(meta.description if meta else None) or self._wanted.description or "",
            cfgfile=self._request.cfgfile,
            memory_path=str(saved.path),
            domain=config.name,
            uuid=config.uuid,
            guest_kind=str(config.kind),
            created=float(meta.created) if meta else None,
            state=meta.state if meta else None,
            versions=xen | dict(meta.versions if meta else {}),
            memory_kb=saved.memory_kb,
            size_bytes=_size(saved.path),
            disks=tuple(disk for disk, _ in found),
            left_out={
                d.vdev: d.left_out or "not in the snapshot"
                for d in config.disks
                if d.vdev not in vdevs
            },
            clones=tuple(map(clone_info, self._clones)),
            missing=tuple(lost for _, lost in found if lost),
        )

    def _look(self, disk: Disk, request: DiskRequest) -> tuple[SnapshotDisk, str]:
        self._cancel.check()
        meta = self._saved.metadata
        kind = meta.kinds.get(disk.vdev, "") if meta else ""
        looks_in = [Path(child.target).parent for c in self._clones for child in c.children]
        found = contents.look(disk, request, kind, self._name, looks_in)
        shown = SnapshotDisk(
            disk.vdev,
            disk.target,
            kind,
            found.where,
            found.size_bytes,
            found.stands_on,
            found.supports,
        )
        return shown, found.missing


def clone_info(entry: CloneEntry) -> CloneInfo:
    """A clone as a plain value."""
    return CloneInfo(entry.domain, entry.uuid, {c.vdev: c.target for c in entry.children})


def _without_memory(
    request: ReadRequest, wanted: SnapshotConfig, path: Path, why: str
) -> SnapshotInfo:
    """What the cfgfile alone tells."""
    named: Sequence[DiskRequest] = wanted.disks or ()
    return SnapshotInfo(
        name=wanted.name or "",
        description=wanted.description or "",
        cfgfile=request.cfgfile,
        memory_path=str(path),
        domain="",
        uuid="",
        guest_kind="",
        created=None,
        state=None,
        versions={},
        memory_kb=None,
        size_bytes=_size(path),
        disks=tuple(SnapshotDisk(r.vdev, "", "", r.path, None, (), ()) for r in named),
        left_out={},
        clones=(),
        missing=(why,),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_blocks * _BLOCK
    except OSError:
        return 0
