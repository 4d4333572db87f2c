"""The disks of a clone whose disk snapshots are LVM volumes.

Thin: a snapshot of the snapshot, which shares its blocks and depends on nothing. Thick: a snapshot
can have no snapshot, so its content is copied into a file, only where the user has named the disk
with a path. The volume of a clone has a tag with a token, by which it is known again.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pyxlsnap.disks.copy.block_device import copy_device, opened_device
from pyxlsnap.disks.copy.child import ChildFile
from pyxlsnap.disks.copy.clones import delete_files, refuse_format, refused_copy
from pyxlsnap.disks.copy.content import Space, refuse_no_room
from pyxlsnap.disks.failures import os_errors
from pyxlsnap.disks.lvm.base import TAG, remove, wait_until_closed
from pyxlsnap.disks.lvm.commands import lvm, volumes, wait_for_lvcreate, wait_for_path
from pyxlsnap.disks.lvm.names import Place, check_volume_name, device_path
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import LeftOver, undo_each
from pyxlsnap.errors import AlreadyExists, Refused
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.results import CloneDisk
from pyxlsnap.text import command

#: followed by the token of the clone's volume
CLONE_TAG = f"{TAG}.clone="


class ThinClones:
    """The clone's side of :class:`~.thin.LvmThin`."""

    def __init__(self, places: Sequence[Place], task: DiskTask) -> None:
        self._places, self._waiting = places, task.waiting
        self._tokens = {at.vdev: os.urandom(8).hex() for at in places}
        self._names: dict[str, str] = {}

    def choose(
        self, at: Place, name: str, asked: DiskRequest | None, there: Collection[str]
    ) -> CloneDisk:
        """Choose the volume for a disk.

        :param there: the volumes of the disk's group.
        :raises Refused: LVM does not allow the name, or it is taken.
        """
        volume = f"{at.snapshot}.{name}"
        if asked:
            path = Path(asked.path)
            if asked.format not in ("", "raw") or path.parent != device_path(at.vg, at.lv).parent:
                raise Refused(
                    f"{at.vdev}: the clone's disk is a thin volume of {at.vg}: write "
                    f"'{device_path(at.vg, 'NAME')},raw,{at.vdev}'"
                )
            volume = path.name
        check_volume_name(at, volume)
        if volume in there:
            where = at.full(volume)
            raise AlreadyExists(f"the volume {where} exists: choose another name", where=where)
        self._names[at.vdev] = volume
        delete = command(["lvremove", at.full(volume)])
        path = device_path(at.vg, volume)
        return CloneDisk(at.vdev, str(path), "raw", "thin snapshot", delete)

    def make(self) -> None:
        """See :meth:`pyxlsnap.disks.abilities.CloningStrategy.clone`."""
        for at in self._places:
            name = self._names[at.vdev]
            tags = [w for tag in (TAG, self._tag(at)) for w in ("--addtag", tag)]
            # -kn: activated at every start of the host, like a disk and unlike the snapshot.
            options = ["-kn", "-ay", *tags, "-n", name, at.full(at.snapshot)]
            lvm(at.vdev, "lvcreate", "-s", *options)
            wait_for_path(at.vdev, at.vg, name)

    def _tag(self, at: Place) -> str:
        return f"{CLONE_TAG}{self._tokens[at.vdev]}"

    def state(self) -> dict[str, str]:
        """What tells the clone's volumes from others; nothing before a clone is checked."""
        return {f"{vdev} clone": self._tokens[vdev] for vdev in self._names}

    def delete(self, disks: Sequence[CloneDisk], state: Mapping[str, str]) -> list[str]:
        """See :meth:`pyxlsnap.disks.abilities.CloningStrategy.delete_clone`."""
        found = {disk.vdev: Path(disk.target).name for disk in disks}
        places = [at for at in self._places if at.vdev in found]
        tags = {at.vdev: f"{CLONE_TAG}{state.get(f'{at.vdev} clone', '')}" for at in places}
        return undo_each(
            partial(_remove, at, found[at.vdev], tags[at.vdev], self._waiting) for at in places
        )


class ThickClones:
    """The clone's side of :class:`~.thick.LvmThick`."""

    def __init__(self, disks: Sequence[Disk], places: Sequence[Place], task: DiskTask) -> None:
        self._disks = {disk.vdev: disk for disk in disks}
        self._places, self._task = places, task
        self._files: dict[str, ChildFile] = {}

    def check(
        self,
        name: str,
        wanted: Mapping[str, DiskRequest],
        refuse_lost: Callable[[Place], None],
    ) -> list[CloneDisk]:
        """See :meth:`pyxlsnap.disks.abilities.CloningStrategy.check_clone`.

        :param refuse_lost: refuses a disk snapshot that is not there, or has lost its content.
        """
        found, spaces = [], []
        for at in self._places:
            disk, asked = self._disks[at.vdev], wanted.get(at.vdev)
            if asked is None:
                raise refused_copy(
                    disk,
                    f"a snapshot of the thick volume {at.full(at.snapshot)} is not possible",
                    "/path",
                )
            refuse_format(disk, asked, "raw")
            refuse_lost(at)
            file = self._files.setdefault(at.vdev, ChildFile(disk, Path(asked.path)))
            file.check()
            source = device_path(at.vg, at.snapshot)
            with os_errors(disk, source, refuse=True), opened_device(source) as device:
                size = os.lseek(device, 0, os.SEEK_END)
            spaces.append(Space(disk, source, size, file.path.parent))
            delete = command(["rm", str(file.path)])
            found.append(CloneDisk(at.vdev, str(file.path), "raw", "copy", delete))
        refuse_no_room(spaces, self._task.claim)
        return found

    def make(self) -> None:
        """See :meth:`pyxlsnap.disks.abilities.CloningStrategy.clone`."""
        for at in self._places:
            disk, file = self._disks[at.vdev], self._files[at.vdev]
            source = device_path(at.vg, at.snapshot)
            with os_errors(disk, source), opened_device(source) as device:
                file.make()
                copy_device(device, file.fd, check=self._task.check)
                file.finish()

    def state(self) -> dict[str, str]:
        """What tells the clone's files from others; nothing before :meth:`check`."""
        return {k: v for file in self._files.values() for k, v in file.state().items()}

    def delete(self, disks: Sequence[CloneDisk], state: Mapping[str, str]) -> list[str]:
        """See :meth:`pyxlsnap.disks.abilities.CloningStrategy.delete_clone`."""
        return delete_files([*self._disks.values()], disks, state)

    def close(self) -> None:
        """Close the files. Idempotent."""
        for file in self._files.values():
            file.close()


def _remove(at: Place, name: str, tag: str, waiting: Callable[[str], None]) -> list[str]:
    """Remove the volume of a clone, if it is there.

    :raises DiskError: it is in use, or an lvcreate may yet make it.
    :raises LeftOver: another volume has its name.
    """
    wait_for_lvcreate(at.vdev, tag, waiting)
    volume = volumes(at.vdev, at.vg).get(name)
    if volume is None:
        return []
    if tag not in volume.tags:
        raise LeftOver(
            f"{at.full(name)} is not known as the volume that was made for the clone (has a revert "
            f"of the clone replaced it?), and was left as it is",
            vdev=at.vdev,
            finish=command(["lvremove", at.full(name)]),
        )
    wait_until_closed(replace(at, lv=name))
    remove(at, volume)
    return [f"removed the volume {at.full(name)}"]
