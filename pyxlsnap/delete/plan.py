"""Planning a delete: from a cfgfile and its memory file to the parts that can be deleted.

All checks that are possible beforehand are here: nothing has been changed yet.
"""

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyxlsnap import cfgfile, paths
from pyxlsnap.cancel import Cancel
from pyxlsnap.clone_file import all_clones, unfinished_clones
from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.abilities import DeletingStrategy
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.disks.qcow2.backing import chain_files
from pyxlsnap.disks.registry import close_all, strategies
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import BadMemoryFile, ConfigError, PyxlsnapError, Refused
from pyxlsnap.guest import checks
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.guest.saved import memory_path, reading, saved_config
from pyxlsnap.journal import DeleteEntry
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.stalled import refuse_silent_file
from pyxlsnap.linux.there import names_in
from pyxlsnap.memory import read_header
from pyxlsnap.model import Disk, DiskRequest, DomainConfig, Metadata, SnapshotConfig
from pyxlsnap.request import DeleteRequest

#: errors of a file that was deleted, or whose name something else has by now
_NOT_THERE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL),
    *(errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a snapshot that its cfgfile names."""

    #: the uuid and the name of the domain, from the snapshot
    uuid: str
    domain: str
    name: str
    memory_path: Path
    #: the disk snapshots
    requests: tuple[DiskRequest, ...]
    #: the same disks, as in the saved configuration
    devices: tuple[Disk, ...]
    #: the kind of each disk's strategy, by vdev
    kinds: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletePlan:
    """A delete that can be done."""

    request: DeleteRequest
    parts: Parts
    strategies: tuple[DeletingStrategy, ...]

    @property
    def cfgfile(self) -> Path:
        """The file that names the snapshot."""
        return Path(self.request.cfgfile)

    def close(self) -> None:
        """Close the connections of the disk strategies."""
        close_all(self.strategies)


def read_parts(request: DeleteRequest) -> Parts:
    """Read what a cfgfile and its memory file say of the snapshot. The memory is not read.

    :raises ConfigError: the cfgfile names no memory file, or other parts than the snapshot has.
    :raises BadMemoryFile: the memory file is not there, or damaged.
    :raises Refused: the memory file was not made by pyxlsnap.
    """
    wanted = _config(request)
    path = memory_path(wanted, request.cfgfile)
    with reading(path) as file:
        header = read_header(file, str(path))
        config = saved_config(header)
    if header.metadata is None:
        raise Refused(
            f"{path} was not made by pyxlsnap, which deletes only what it made: delete the parts "
            f"of this snapshot by hand"
        )
    chosen = _choose_disks(request, header.metadata, config)
    return Parts(
        uuid=config.uuid,
        domain=config.name,
        name=header.metadata.name,
        memory_path=path,
        requests=tuple(request for _, request in chosen),
        devices=tuple(disk for disk, _ in chosen),
        kinds=header.metadata.kinds,
    )


def parts_of(entry: DeleteEntry) -> Parts:
    """The parts of a delete that was killed or failed: the files may be deleted already."""
    return Parts(
        uuid=entry.uuid,
        domain=entry.domain,
        name=entry.name,
        memory_path=Path(entry.memory_path),
        requests=entry.disks,
        devices=entry.devices,
        kinds=entry.kinds,
    )


def find_guest(host: Host, parts: Parts) -> Guest | None:
    """The domain of a snapshot; ``None`` if it is off.

    A domain that has got another uuid since (its configuration has none) is found by its name.
    """
    if guest := host.find_if_there(parts.uuid):
        return guest
    # (find() would read digits as a domid.)
    return None if parts.domain.isdigit() else host.find_if_there(parts.domain)


@refusing_os_errors()
def make_plan(
    host: Host, request: DeleteRequest, parts: Parts, cancel: Cancel | None = None
) -> DeletePlan:
    """Plan to delete the parts of a snapshot. Changes nothing.

    :raises Refused: a part cannot be deleted safely, or not in the present state of the domain.
    :raises Cancelled: ``cancel`` was set.
    """
    cancel = cancel or Cancel()
    guest = find_guest(host, parts)
    if guest:
        _refuse_state(guest)
    checks.refuse_shared(host, guest, parts.devices)
    _refuse_clones(parts)
    task = DiskTask(
        parts.name,
        check=cancel.check,
        looks_in=_directories(request, parts),
        attached=checks.attached(guest, parts.devices),
    )
    chosen = list(zip(parts.devices, parts.requests, strict=True))
    found = strategies(chosen, task, parts.kinds)
    plan = DeletePlan(request=request, parts=parts, strategies=tuple(map(_deleting, found)))
    try:
        for strategy in plan.strategies:
            strategy.check_delete(guest.domid if guest else None)
    except BaseException:
        plan.close()
        raise
    return plan


def _refuse_clones(parts: Parts) -> None:
    """Refuse to delete what a clone stands on, at any depth; the clone may be half made.

    Its disk need not be seen: the filesystem may not be mounted now.

    :raises Refused: a clone stands on a disk snapshot.
    """
    snapshots = {os.path.realpath(r.path) for r in parts.requests if r.path}
    # (Read before and after: a recovery that finishes a clone gives its journal another name.)
    for clone in (*all_clones(), *(half_made := unfinished_clones()), *all_clones()):
        bases = [c.stands_on for c in clone.children if c.stands_on]
        below = {os.path.realpath(p) for base in bases for p in chain_files(Path(base))}
        if found := sorted(snapshots & below):
            recover = f"run `pyxlsnap snapshot-recover {clone.uuid}` first"
            raise Refused(
                f"the clone {clone.domain} stands on {found[0]}: "
                + (recover if clone in half_made else "delete it first (pyxlsnap.delete_clone)")
            )


def _deleting(strategy: DiskStrategy) -> DeletingStrategy:
    if not isinstance(strategy, DeletingStrategy):
        raise Refused(
            f"{', '.join(strategy.vdevs)}: the disk strategy {strategy.kind!r} cannot delete disk "
            f"snapshots: use the commands that snapshot-create printed, or a newer release of the "
            f"strategy"
        )
    return strategy


def _refuse_state(guest: Guest) -> None:
    """:raises Refused: the domain's QEMU may be ending, or would not write to its disks."""
    info = guest.info()
    if info.dying:
        raise Refused(f"{guest.name} is being destroyed: run it again when the domain has ended")
    if info.suspended:
        raise Refused(f"{guest.name} is suspended: resume it, or destroy it, first")


def _choose_disks(
    request: DeleteRequest, meta: Metadata, config: DomainConfig
) -> list[tuple[Disk, DiskRequest]]:
    """The disks of the snapshot, each with its disk snapshot.

    :raises ConfigError: the cfgfile names something that is not in the snapshot.
    """
    wanted = _config(request)
    if wanted.name and wanted.name != meta.name:
        raise ConfigError(
            f"is {wanted.name!r}, but the memory file belongs to snapshot {meta.name!r}: use the "
            f"cfgfile of snapshot {meta.name!r}",
            file=request.cfgfile,
            item="name",
        )
    named = meta.disks if wanted.disks is None else wanted.disks
    by_vdev = {disk.vdev: disk for disk in config.disks}
    if strange := [r.vdev for r in named if r not in meta.disks or r.vdev not in by_vdev]:
        raise ConfigError(
            f"the snapshot {meta.name!r} has no such disk snapshot of {', '.join(strange)}: use "
            f"the cfgfile as snapshot-create wrote it",
            file=request.cfgfile,
            item="disks",
        )
    return [(by_vdev[r.vdev], r) for r in named]


def _directories(request: DeleteRequest, parts: Parts) -> tuple[Path, ...]:
    """Where other disk snapshots of the domain are, as the cfgfiles in the usual places say."""
    beside = dict.fromkeys((Path(request.cfgfile).parent, paths.SNAPSHOTS / parts.uuid))
    for directory in beside:
        refuse_silent_file(directory)
    with refusing_os_errors():
        files = [directory / name for directory in beside for name in names_in(directory)]
    cfgfiles = [file for file in files if file.name.endswith(".cfg")]
    named: Sequence[Path] = [path for file in cfgfiles for path in _paths_in(file)]
    return tuple(dict.fromkeys(path.parent for path in named))


def _paths_in(file: Path) -> list[Path]:
    """The external disk snapshots that a file names; none if it is no cfgfile of a snapshot.

    :raises ConfigError: its storage fails, so that it may name some.
    """
    try:
        return [Path(disk.path) for disk in cfgfile.read(file).disks or () if disk.path]
    except ConfigError as e:
        refuse_unread(e)
        return []


def refuse_unread(error: PyxlsnapError) -> None:
    """Raise an error that says nothing of the file: its storage has failed, and may come back."""
    cause = error.__cause__
    if isinstance(cause, BadMemoryFile):  # one error of the file, told with more words
        cause = cause.__cause__
    if isinstance(cause, OSError) and cause.errno not in _NOT_THERE:
        raise error


def _config(request: DeleteRequest) -> SnapshotConfig:
    """The content of the cfgfile."""
    assert request.config
    return request.config
