"""The names of a snapshot and of its files: those that the user gave, and the defaults."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from pyxlsnap import cfgfile, paths
from pyxlsnap.dataclass import dataclass
from pyxlsnap.errors import AlreadyExists, Refused, UsageError
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.linux.files import refuse_existing
from pyxlsnap.linux.there import is_dir
from pyxlsnap.model import DiskRequest, SnapshotConfig

_MEMORY_SUFFIX = ".save"


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of the snapshot's files."""

    memory: Path
    cfgfile: Path
    cfgfile_text: str


def generated_name(created: float) -> str:
    """The name of a snapshot for which the user chose no name: the time."""
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(created))


def choose_places(
    guest: Guest, wanted: SnapshotConfig, name: str, requests: Sequence[DiskRequest]
) -> Places:
    """Where a snapshot's files will be, and what its cfgfile will say.

    :param wanted: the user's cfgfile.
    :param requests: the disks, with all that the cfgfile leaves out.
    :raises Refused, UsageError: a file cannot be made at its path.
    """
    memory = _memory_path(wanted, paths.SNAPSHOTS / guest.uuid, name)
    cfg = cfgfile_path(memory)
    try:
        refuse_existing(cfg)
    except AlreadyExists:
        raise AlreadyExists(
            f"{cfg} exists already, and the snapshot's cfgfile, which is named after the memory "
            f"file, would have the same path: choose another name, or another memory_path",
            where=str(cfg),
        ) from None
    _refuse_same_place(requests, memory, cfg)
    complete = SnapshotConfig(name, wanted.description, str(memory), tuple(requests))
    return Places(memory, cfg, cfgfile.render(complete))


def cfgfile_path(memory: Path) -> Path:
    """The cfgfile of a snapshot: beside the memory file, with ``.cfg`` in the place of ``.save``.

    So the snapshots of several domains can have one name, and be in one directory.
    """
    return memory.with_name(f"{memory.name.removesuffix(_MEMORY_SUFFIX)}.cfg")


def _refuse_same_place(requests: Sequence[DiskRequest], memory_path: Path, cfg: Path) -> None:
    """:raises UsageError: two files or disks of the snapshot would have the same path."""
    places: dict[str, list[str]] = {}
    for request in requests:
        if request.path:
            places.setdefault(os.path.realpath(request.path), []).append(request.vdev)
    for path, what in ((memory_path, "the memory file"), (cfg, "the cfgfile")):
        places.setdefault(os.path.realpath(path), []).append(what)
    for place, found in places.items():
        if len(found) > 1:
            raise UsageError(
                f"{' and '.join(found)} would have the same path {place}: give each its own path"
            )


def _memory_path(wanted: SnapshotConfig, directory: Path, name: str) -> Path:
    path = Path(wanted.memory_path) if wanted.memory_path else directory / f"{name}{_MEMORY_SUFFIX}"
    if not path.is_absolute():
        path = Path.cwd() / path
    refuse_existing(path)
    if wanted.memory_path and not is_dir(path.parent):
        raise Refused(f"memory_path {path}: there is no directory {path.parent}: make it first")
    return path
