"""The disks of a clone whose disk snapshots are copies in files: reflinks of them, or copies again.

A copy takes long, so it is made only of a disk that the user has named with a path.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyxlsnap.disks.copy.child import ChildFile, children
from pyxlsnap.disks.copy.content import (
    Space,
    can_reflink,
    copy_attributes,
    copy_file,
    refuse_no_room,
    trial_file,
)
from pyxlsnap.disks.failures import os_errors
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import undo_each
from pyxlsnap.errors import Refused
from pyxlsnap.linux.files import open_regular
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.results import CloneDisk
from pyxlsnap.text import command


class CopyClones:
    """The clone's side of a :class:`~.snapshot_file.CopyStrategy`."""

    def __init__(self, disks: Sequence[tuple[Disk, DiskRequest]], task: DiskTask) -> None:
        self._disks, self._task = tuple(disks), task
        self._files: dict[str, ChildFile] = {}
        self._reflinks: set[str] = set()

    def check(self, name: str, wanted: Mapping[str, DiskRequest]) -> list[CloneDisk]:
        """See :meth:`pyxlsnap.disks.abilities.CloningStrategy.check_clone`."""
        found, spaces = [], []
        for disk, request in self._disks:
            asked = wanted.get(disk.vdev)
            refuse_format(disk, asked, "raw")
            file = self._file(disk, Path(asked.path if asked else f"{request.path}.{name}"))
            file.check()
            space = self._look(disk, Path(request.path), file, asked=asked is not None)
            spaces += [space] if space.size else []
            how = "reflink copy" if disk.vdev in self._reflinks else "copy"
            delete = command(["rm", str(file.path)])
            found.append(CloneDisk(disk.vdev, str(file.path), "raw", how, delete))
        refuse_no_room(spaces, self._task.claim)
        return found

    def _file(self, disk: Disk, path: Path) -> ChildFile:
        """The same object when it is asked for again: its token is in the journal."""
        return self._files.setdefault(disk.vdev, ChildFile(disk, path))

    def _look(self, disk: Disk, snapshot: Path, file: ChildFile, *, asked: bool) -> Space:
        """Try whether a reflink works; if not, how much is to be copied."""
        with os_errors(disk, snapshot, refuse=True), open_regular(snapshot) as source:
            size = os.fstat(source.fileno()).st_blocks * 512
            if not os.fstat(source.fileno()).st_size:
                raise Refused(f"{disk.vdev}: the disk snapshot {snapshot} is empty")
            with trial_file(file.path) as probe:
                copy_attributes(source.fileno(), probe)
                if can_reflink(source.fileno(), probe):
                    self._reflinks.add(disk.vdev)
                    size = 0
        if size and not asked:
            raise refused_copy(
                disk, f"{snapshot} cannot share blocks with {file.path}", str(file.path)
            )
        return Space(disk, snapshot, size, file.path.parent)

    def make(self) -> None:
        """See :meth:`pyxlsnap.disks.abilities.CloningStrategy.clone`."""
        for disk, request in self._disks:
            file, snapshot = self._files[disk.vdev], Path(request.path)
            with os_errors(disk, snapshot), open_regular(snapshot) as source:
                file.make(like=source.fileno())
                reflink = disk.vdev in self._reflinks
                copy_file(source.fileno(), file.fd, reflink=reflink, check=self._task.check)
                file.finish()

    def delete(self, disks: Sequence[CloneDisk], state: Mapping[str, str]) -> list[str]:
        """See :meth:`pyxlsnap.disks.abilities.CloningStrategy.delete_clone`."""
        return delete_files([disk for disk, _ in self._disks], disks, state)

    def state(self) -> dict[str, str]:
        """What tells the clone's files from others; nothing before :meth:`check`."""
        return {k: v for file in self._files.values() for k, v in file.state().items()}

    def close(self) -> None:
        """Close the files. Idempotent."""
        for file in self._files.values():
            file.close()


def delete_files(
    disks: Sequence[Disk], found: Sequence[CloneDisk], state: Mapping[str, str]
) -> list[str]:
    """Delete the files of a clone.

    :param disks: the disks that they were made from.
    """
    files = children(disks, found)
    for file in files:
        file.adopt(state)
    return undo_each(file.delete for file in files)


def refuse_format(disk: Disk, asked: DiskRequest | None, form: str) -> None:
    """:raises Refused: the user wants the disk in another format, or as an internal snapshot."""
    if asked and (not asked.path or asked.format != form):
        raise Refused(
            f"{disk.vdev}: the clone's disk is a file in the format {form}: write "
            f"'{asked.path or '/path'},{form},{disk.vdev}'"
        )


def refused_copy(disk: Disk, why: str, path: str, form: str = "raw") -> Refused:
    """Make (not raise) the error for a disk that could only be copied."""
    return Refused(
        f"{disk.vdev}: {why}, so it would have to be copied: to have that done, name the disk with "
        f"a path ('{path},{form},{disk.vdev}')"
    )
