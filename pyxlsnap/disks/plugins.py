"""Disk strategies of other packages: found by an entry point, and asked before our own.

A package with a strategy names a class (or a function, see :class:`pyxlsnap.DiskKind`) in its
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
    """The other package's kind of storage that claims this disk; ``None`` if none does.

    :raises Refused: a kind cannot be loaded, or more than one claims the disk. Our own strategies
        are not tried then: they might damage the disk.
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
    """All kinds of storage of other packages, with the names of their entry points.

    :raises Refused: a kind cannot be loaded.
    """
    return tuple((entry.name, _load(entry)) for entry in sorted(entry_points(group=GROUP)))


def _load(entry: EntryPoint) -> DiskKind:
    try:
        kind: DiskKind = entry.load()
    except Exception as e:
        package = entry.dist.name if entry.dist else entry.value
        raise Refused(
            f"the disk strategy {entry.name} cannot be loaded ({type(e).__name__}: {e}), so "
            f"pyxlsnap cannot tell which disks it is for: repair or uninstall {package}"
        ) from e
    return kind


def _claims(name: str, kind: DiskKind, disk: Disk) -> bool:
    try:
        return kind.claims(disk)
    except Exception as e:
        raise Refused(
            f"{disk.vdev}: the disk strategy {name} failed to say whether it claims the "
            f"disk ({type(e).__name__}: {e}): repair or uninstall it"
        ) from e
