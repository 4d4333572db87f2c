"""Deleting a frozen file: what stands on the file takes over the data that it needs from it.

These images may stand on it: the disk, the next frozen file, and after a revert both. Each is told
to stand on what is below the frozen file, and gets the data of the frozen file that it does not
have: by qemu-img if nobody has it open, else by the guest's QEMU (a block-stream job).
"""

import os
from pathlib import Path
from typing import Any

from pyxlsnap.disks.failures import os_errors
from pyxlsnap.disks.in_use import users
from pyxlsnap.disks.qcow2 import stream
from pyxlsnap.disks.qcow2.chain import Chain
from pyxlsnap.disks.qcow2.killable import rebase
from pyxlsnap.disks.qcow2.printed import below
from pyxlsnap.disks.qcow2.qemu import GuestQemu, image_chain, image_info
from pyxlsnap.disks.standing import has_snapshots_inside, standing_on
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.linux.files import sync_directory
from pyxlsnap.linux.there import exists, is_file, is_symlink, lexists
from pyxlsnap.text import mib


class Frozen:
    """One frozen file that is to be deleted."""

    def __init__(self, chain: Chain, task: DiskTask, qemu: GuestQemu) -> None:
        self.disk = chain.disk
        self._active, self._path = chain.active, chain.frozen
        self._task = task
        self._qemu = qemu
        self._served = False
        self._directories: list[Path] = []

    def check(self, *, served: bool) -> None:
        """Check that the file can be deleted.

        :param served: the guest's QEMU has the disk open.
        :raises Refused, DiskError, OSError: it cannot, or what stands on it is in use by others.
        """
        self._served = served
        if not lexists(self._path):
            return
        self._refuse_other_file()
        chain = [Path(image["filename"]) for image in self._chain()]
        known = (self._path, self._active, *chain)
        self._directories = list(dict.fromkeys([*(p.parent for p in known), *self._task.looks_in]))
        self._refuse_others(self._standing())
        for image in self._standing():
            self._check_image(image)
        self._refuse_no_room(self._standing())

    def _chain(self) -> list[dict[str, Any]]:
        return image_chain(self.disk, str(self._active)) if exists(self._active) else []

    def _standing(self) -> list[Path]:
        return standing_on(self._path, self._directories)

    def _refuse_other_file(self) -> None:
        vdev = self.disk.vdev
        if is_symlink(self._path) or not is_file(self._path):
            raise Refused(f"{vdev}: {self._path} is no regular file, so it is no frozen file")
        if exists(self._active) and self._path.samefile(self._active):
            raise Refused(f"{vdev}: {self._path} is the disk itself, and not a snapshot of it")
        image_info(self.disk, str(self._path))

    def _refuse_others(self, standing: list[Path]) -> None:
        """:raises Refused: somebody else than the guest's QEMU has the frozen file open."""
        found = users(self._path)
        if found and not (self._served and found == users(self._active)):
            raise Refused(
                f"{self.disk.vdev}: {self._path} is in use by {', '.join(found)}: end that first"
            )
        if found and not any(map(users, standing)) and not self._is_detached():
            raise Refused(
                f"{self.disk.vdev}: the guest's QEMU has {self._path} open, and it was not found "
                f"what stands on the file: shut down the domain first"
            )

    def _check_image(self, image: Path) -> None:
        """:raises Refused: an image that stands on the frozen file cannot be made independent."""
        vdev = self.disk.vdev
        if has_snapshots_inside(image):
            raise Refused(
                f"{vdev}: {image} stands on {self._path} and has disk snapshots inside, which need "
                f"the data of {self._path}, too: delete them first"
            )
        found = users(image)
        if not found:
            return
        if not self._served or found != users(self._active):
            raise Refused(f"{vdev}: {image} is in use by {', '.join(found)}: end that first")
        stream.find(self._qemu, self.disk, image, self._path)

    def _refuse_no_room(self, standing: list[Path]) -> None:
        """Every image may get all data of the frozen file, in the worst case."""
        size = self._path.stat().st_blocks * 512
        for directory in dict.fromkeys(image.parent for image in standing):
            need = size * sum(image.parent == directory for image in standing)
            what = f"data of {self._path} in {directory}"
            if (left := self._task.claim(what, directory, need)) < need:
                raise Refused(
                    f"{self.disk.vdev}: what stands on {self._path} takes over its data, up to "
                    f"{mib(need)}, and {directory} has {left >> 20} MiB left: "
                    f"make room there first"
                )

    def free(self) -> list[str]:
        """Make every image that stands on the frozen file independent of it.

        :returns: what was changed, a line each.
        :raises PyxlsnapError: it failed; the images still stand on the file, and are whole.
        """
        if not self._is_there():
            return []
        changed = []
        under, form = below(self.disk, self._path, image_chain(self.disk, str(self._path)))
        with os_errors(self.disk, self._path):
            for image in self._standing():
                self._task.check()
                if users(image):
                    self._check_image(image)
                    place = stream.find(self._qemu, self.disk, image, self._path)
                    stream.run(self._qemu, self.disk, place, under, check=self._task.check)
                else:
                    rebase(self.disk, image, under, form, check=self._task.check)
                changed.append(f"{image} stands on {under or 'no other file'} now")
            self._notice_users()
        return changed

    def _is_there(self) -> bool:
        with os_errors(self.disk, self._path):
            return lexists(self._path)

    def delete(self) -> list[str]:
        """Delete the frozen file.

        :raises DiskError: something stands on it, or somebody has it open.
        """
        if not self._is_there():
            return []
        with os_errors(self.disk, self._path):
            self._notice_users()
            later = " (its space is free when the guest's QEMU ends)" * bool(users(self._path))
            os.unlink(self._path)
            sync_directory(self._path.parent)
        return [f"removed {self._path}{later}"]

    def _notice_users(self) -> None:
        if images := self._standing():
            raise DiskError(f"{images[0]} stands on {self._path}", vdev=self.disk.vdev)
        if (found := users(self._path)) and not self._is_detached():
            raise DiskError(
                f"{self._path} is in use by {', '.join(found)}: end that first", vdev=self.disk.vdev
            )

    def _is_detached(self) -> bool:
        """Whether the guest's QEMU has the frozen file open, and does not use it any more.

        QEMU keeps the node that libxl has made until the disk is detached.
        """
        return (
            self._served
            and users(self._path) == users(self._active)
            and stream.is_as_the_files(self._qemu, self.disk)
        )
