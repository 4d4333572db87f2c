"""Disk strategies of other packages: found by an entry point, and asked before our own.

A package with a strategy names a class (or a function, see :class:`pyxlsnap.DiskKind`) in its
``pyproject.toml``::

    [project.entry-points."pyxlsnap.disks"]
    zfs = "storage.snapshots:ZfsVolumes"
"""

import os
import sys
from functools import cache
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

from pyxlsnap.disks.protocol import DiskKind
from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "pyxlsnap.disks"
_INFORMATION = (".dist-info", ".egg-info", ".egg")


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
    if not _may_be_named():
        return ()
    from importlib.metadata import entry_points  # only here: this takes long to load

    return tuple((entry.name, _load(entry)) for entry in sorted(entry_points(group=GROUP)))


def _may_be_named() -> bool:
    """Whether some installed package may name a kind of storage.

    :mod:`importlib.metadata` finds the same files. It is asked where this finds one, and where
    packages may be installed in another way than in directories.
    """
    if any(hasattr(f, "find_distributions") for f in sys.meta_path if f is not PathFinder):
        return True
    return any(_may_be_named_in(entry or ".") for entry in sys.path)


def _may_be_named_in(entry: str) -> bool:
    try:
        names = os.listdir(entry)  # noqa: PTH208
    except FileNotFoundError:
        return False
    except OSError:  # a zip file
        return True
    if entry.lower().endswith(".egg"):
        return True
    files = (f"{entry}/{n}/entry_points.txt" for n in names if n.lower().endswith(_INFORMATION))
    return any(_is_named_in(file) for file in files)


def _is_named_in(file: str) -> bool:
    try:
        with open(file, "rb") as found:
            return GROUP.encode() in found.read()
    except (FileNotFoundError, NotADirectoryError):  # .egg-info may be a file, which names nothing
        return False
    except OSError:
        return True


def _load(entry: "EntryPoint") -> DiskKind:
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
