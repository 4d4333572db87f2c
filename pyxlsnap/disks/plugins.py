"""Disk strategies of others: what is installed under an entry point, asked before ours.

A package that has one names a class (or a function, see :class:`pyxlsnap.DiskKind`) in its
``pyproject.toml``::

    [project.entry-points."pyxlsnap.disks"]
    zfs = "storage.snapshots:ZfsVolumes"
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from pyxlsnap.disks.protocol import DiskKind
from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk

GROUP = "pyxlsnap.disks"


def find(disk: Disk) -> DiskKind | None:
    """The strategy of somebody else that stands for this disk; ``None`` if there is none.

    :raises Refused: one cannot be loaded, or more than one wants the disk: ours might do what
        nobody wants.
    """
    found = [(name, kind) for name, kind in installed() if _claims(name, kind, disk)]
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise Refused(
            f"{disk.vdev}: the disk strategies {names} both claim {disk.target}: uninstall one of "
            f"them"
        )
    return found[0][1] if found else None


@cache
def installed() -> tuple[tuple[str, DiskKind], ...]:
    """All that are installed, with their names.

    :raises Refused: one cannot be loaded.
    """
    return tuple((entry.name, _load(entry)) for entry in sorted(entry_points(group=GROUP)))


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
