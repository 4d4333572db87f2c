"""Disk strategies of others: what is installed under an entry point, asked before ours.

A package that has one names a class (or a function, see :class:`pyxlsnap.DiskKind`) in its
``pyproject.toml``::

    [project.entry-points."pyxlsnap.disks"]
    zfs = "storage.snapshots:ZfsVolumes"
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk
from pyxlsnap.ports import DiskKind

GROUP = "pyxlsnap.disks"


def claiming(disk: Disk) -> DiskKind | None:
    """The strategy of somebody else that stands for this disk; ``None`` if there is none.

    :raises Refused: one cannot be loaded, or more than one wants the disk: ours might do what
        nobody wants.
    """
    found = {name: kind for name, kind in installed().items() if _claims(name, kind, disk)}
    if len(found) > 1:
        raise Refused(
            f"{disk.vdev}: the disk strategies {' and '.join(found)} both claim {disk.target}: "
            f"uninstall one of them"
        )
    return next(iter(found.values()), None)


@cache
def installed() -> dict[str, DiskKind]:
    """All that are installed, by name.

    :raises Refused: one cannot be loaded.
    """
    return {entry.name: _load(entry) for entry in sorted(entry_points(group=GROUP))}


def _load(entry: EntryPoint) -> DiskKind:
    try:
        kind: DiskKind = entry.load()
    except Exception as e:
        package = entry.dist.name if entry.dist else entry.value
        raise Refused(
            f"the disk strategy {entry.name} cannot be loaded ({type(e).__name__}: {e}), and "
            f"without it nobody knows whose disks are whose: mend or uninstall {package}"
        ) from e
    return kind


def _claims(name: str, kind: DiskKind, disk: Disk) -> bool:
    try:
        return kind.claims(disk)
    except Exception as e:
        raise Refused(
            f"{disk.vdev}: the disk strategy {name} failed to say whether the disk is its own "
            f"({type(e).__name__}: {e}): mend or uninstall it"
        ) from e
