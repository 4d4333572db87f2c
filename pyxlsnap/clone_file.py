"""The file of a clone (``/var/lib/pyxlsnap/<uuid>.clone``): what the clone is made of.

The file is to a clone what a cfgfile is to a snapshot. A clone has disks of its own, and nothing
else tells whose they are when the clone is off. So the journal of a clone is not removed at the
end: it gets another name. That rename ends the operation. The file is removed with the clone.
"""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.errors import Refused
from pyxlsnap.journal import CloneEntry, Journal
from pyxlsnap.linux.files import mount_point, sync_directory
from pyxlsnap.linux.there import is_dir, lexists
from pyxlsnap.results import CloneDisk

log = logging.getLogger(__name__)

#: kind of the lock on the snapshots of a domain: clones share it, a delete of one holds it alone
IN_USE = "snapshots.lock"

_SUFFIX = ".clone"
_DEVICES = "/dev"


class CloneFile(Journal):
    """The file of one clone."""

    _WAY_OUT = "delete the clone with that release (pyxlsnap.delete_clone)"
    _LOOK = "it says which disks are the clone's: delete these by hand, then move the file away"

    def __init__(self, uuid: str) -> None:
        super().__init__(uuid)
        self._journal = self.path
        self.path = self.path.with_suffix(_SUFFIX)

    def publish(self) -> None:
        """Give the journal of the clone its final name, in the place of an older file.

        :raises OSError: that failed; the journal is as before.
        """
        os.rename(self._journal, self.path)
        sync_directory(self.path.parent)

    def entry(self) -> CloneEntry | None:
        """What the clone is made of; ``None`` if there is no such clone.

        :raises Refused: the file cannot be read.
        """
        found = self.read()
        if found is not None and not isinstance(found, CloneEntry):
            raise Refused(f"{self.path} is not the file of a clone: move it away")
        return found


def all_clones() -> list[CloneEntry]:
    """All clones on this host, also those whose domain is off.

    :raises Refused: a file cannot be read: its clone may stand on any snapshot.
    """
    uuids = sorted(path.stem for path in paths.JOURNALS.glob(f"*{_SUFFIX}"))
    return [entry for uuid in uuids if (entry := CloneFile(uuid).entry())]


def unfinished_clones() -> list[CloneEntry]:
    """The clones that are being made or deleted, or whose operation was killed.

    :raises Refused: a journal cannot be read, and may be that of a clone, which stands on any
        snapshot.
    """
    found = []
    for path in sorted(paths.JOURNALS.glob("*.journal")):
        try:
            entry = Journal(path.stem).read()
        except Refused:
            if _is_of_another(path):
                continue
            raise
        if isinstance(entry, CloneEntry):
            found.append(entry)
    return found


def _is_of_another(path: Path) -> bool:
    """Whether a journal, which cannot be read as a whole, is one of another operation."""
    try:
        operation = json.loads(path.read_bytes())["operation"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
    return isinstance(operation, str) and operation != CloneEntry.operation


def find_clone(name: str) -> CloneEntry | None:
    """The clone of this name; ``None`` if there is none.

    :raises Refused: the file of some clone cannot be read.
    """
    return next((entry for entry in all_clones() if entry.domain == name), None)


def clones_of(origin: str, name: str, created: int | None) -> list[CloneEntry]:
    """The clones of one snapshot, also those that are half made.

    :param origin: the uuid of the snapshot's domain.
    :param name: the snapshot's name.
    :param created: when the snapshot was taken; ``None``: that is not known.
    :raises Refused: the file or journal of some clone cannot be read.
    """
    listed = (*unfinished_clones(), *all_clones())
    named = [entry for entry in listed if (entry.origin, entry.name) == (origin, name)]
    found = {entry.uuid: entry for entry in named if is_of(entry, created)}
    return [found[uuid] for uuid in sorted(found)]


def is_of(entry: CloneEntry, created: int | None) -> bool:
    """Whether a clone is of the snapshot that was taken then, and not of another of its name.

    A clone may be of it if one of the times is not known.
    """
    return None in (created, entry.created) or created == entry.created


def mounts(children: Sequence[CloneDisk]) -> dict[str, str]:
    """Where the filesystem of each disk of a clone is mounted, by vdev.

    Volumes are left out: the name of one in ``/dev`` is there while the volume is active.
    """
    found = {child.vdev: Path(child.target) for child in children}
    return {
        vdev: mount_point(path.parent)
        for vdev, path in found.items()
        if path.is_absolute() and not path.is_relative_to(_DEVICES)
    }


def is_gone(entry: CloneEntry, child: CloneDisk) -> bool:
    """Whether a disk of a clone is known to be deleted: its filesystem is mounted as it was.

    :raises OSError: that cannot be told.
    """
    where = entry.mounts.get(child.vdev)
    return not _is_seen(child) and where == mount_point(Path(child.target).parent)


def has_no_place(entry: CloneEntry, child: CloneDisk) -> bool:
    """Whether a disk of a clone is known to be deleted together with its directory.

    :raises OSError: that cannot be told.
    """
    return is_gone(entry, child) and not is_dir(Path(child.target).parent)


def not_mounted(entry: CloneEntry, child: CloneDisk) -> str:
    """Where to mount the filesystem that a disk of a clone was on; "" if that is not missing.

    :raises OSError: that cannot be told.
    """
    where = entry.mounts.get(child.vdev)
    if where is None or _is_seen(child) or is_gone(entry, child):
        return ""
    return where


def _is_seen(child: CloneDisk) -> bool:
    return lexists(child.target)
