"""The disks of a clone whose disk snapshots are qcow2: overlays of frozen files, or copies.

An overlay names the frozen file by its absolute path, and depends on it. A disk snapshot inside an
image has no file of its own that an overlay could stand on: its content is copied, only where the
user has named the disk with a path, and while nobody has the image open.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from pyxlsnap.disks.copy.child import ChildFile
from pyxlsnap.disks.copy.clones import delete_files, refuse_format, refused_copy
from pyxlsnap.disks.copy.content import Space, copy_attributes, refuse_no_room, trial_file
from pyxlsnap.disks.failures import os_errors
from pyxlsnap.disks.in_use import users
from pyxlsnap.disks.qcow2.backing import present_files, refuse_broken, refuse_writers
from pyxlsnap.disks.qcow2.chain import written_durably
from pyxlsnap.disks.qcow2.killable import killable_qemu_img
from pyxlsnap.disks.qcow2.overlays import Overlay, is_whole, made_ahead, make, versions
from pyxlsnap.disks.qcow2.qemu import checked_tags
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.linux.files import open_regular, refusing_os_errors
from pyxlsnap.linux.there import is_file
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.results import CloneDisk
from pyxlsnap.text import command

_BLOCK = 4096


class Qcow2Clones:
    """The clone's side of :class:`~.strategy.Qcow2`."""

    def __init__(self, disks: Sequence[tuple[Disk, DiskRequest]], task: DiskTask) -> None:
        self._disks, self._task = tuple(disks), task
        self._files: dict[str, ChildFile] = {}
        #: by vdev: an overlay without data, as the plan has made it
        self._overlays: dict[str, Overlay] = {}

    def check(self, name: str, wanted: Mapping[str, DiskRequest]) -> list[CloneDisk]:
        """See :meth:`pyxlsnap.disks.abilities.CloningStrategy.check_clone`."""
        return [self._check(d, r, wanted.get(d.vdev), name) for d, r in self._disks]

    def _check(
        self, disk: Disk, request: DiskRequest, asked: DiskRequest | None, name: str
    ) -> CloneDisk:
        refuse_format(disk, asked, "qcow2")
        if request.internal and asked is None:
            raise refused_copy(
                disk,
                f"the disk snapshot {self._task.name!r} is inside {disk.target}",
                f"{disk.target}.{name}",
                "qcow2",
            )
        base = disk.target if request.internal else request.path
        file = self._file(disk, Path(asked.path if asked else f"{base}.{name}"))
        file.check()
        delete = command(["rm", str(file.path)])
        if request.internal:
            self._check_copy(disk, file)
            return CloneDisk(disk.vdev, str(file.path), "qcow2", "copy", delete)
        with refusing_os_errors():
            self._try_overlay(disk, Path(request.path), file)
        return CloneDisk(disk.vdev, str(file.path), "qcow2", "overlay", delete, request.path)

    def _file(self, disk: Disk, path: Path) -> ChildFile:
        """The same object when it is asked for again: its token is in the journal."""
        return self._files.setdefault(disk.vdev, ChildFile(disk, path))

    def _try_overlay(self, disk: Disk, frozen: Path, file: ChildFile) -> None:
        """Open the frozen file with all that it stands on, and make an overlay without a name."""
        if not is_file(frozen):
            raise Refused(
                f"{disk.vdev}: there is no file {frozen}, the disk snapshot: without it no clone "
                f"can be made"
            )
        if os.path.exists(disk.target) and frozen.samefile(disk.target):
            raise Refused(f"{disk.vdev}: {frozen} is the disk, not a snapshot of it")
        files, made = present_files(disk, frozen), self._overlays.get(disk.vdev)
        standing = versions(files)
        if is_whole(files):
            refuse_writers(disk, files)
            if made and made.of == standing:
                return
        else:
            refuse_broken(disk, frozen)  # more than the names tell; or it is a loop
        with (
            os_errors(disk, file.path, refuse=True),
            open_regular(frozen) as like,
            trial_file(file.path) as fd,
        ):
            copy_attributes(like.fileno(), fd)
            if ahead := made_ahead(frozen, standing):
                _write(fd, ahead.content)
            self._overlays[disk.vdev] = ahead or self._make_overlay(disk, frozen, standing, fd)

    @staticmethod
    def _make_overlay(
        disk: Disk, frozen: Path, standing: tuple[tuple[int, ...], ...], fd: int
    ) -> Overlay:
        try:
            return make(disk, frozen, standing, fd)
        except DiskError:
            refuse_broken(disk, frozen)  # tells which of them
            raise

    def _check_copy(self, disk: Disk, file: ChildFile) -> None:
        """:raises Refused: the disk snapshot is not there, or its image is in use."""
        with refusing_os_errors():
            _refuse_open(disk)
            if self._task.name not in [tag.name for tag in checked_tags(disk)]:
                raise Refused(
                    f"{disk.vdev}: {disk.target} has no disk snapshot {self._task.name!r} inside"
                )
            size = Path(disk.target).stat().st_blocks * 512
        space = Space(disk, Path(disk.target), size, file.path.parent)
        refuse_no_room([space], self._task.claim)

    def make(self) -> None:
        """See :meth:`pyxlsnap.disks.abilities.CloningStrategy.clone`."""
        for disk, request in self._disks:
            base = Path(disk.target if request.internal else request.path)
            file = self._files[disk.vdev]
            with os_errors(disk, file.path):
                with open_regular(base) as like:
                    file.make(like=like.fileno())
                if request.internal:
                    self._copy(disk, file)
                else:
                    with written_durably(disk, file.path, file.fd):
                        _write(file.fd, self._overlays[disk.vdev].content)
                file.finish()

    def _copy(self, disk: Disk, file: ChildFile) -> None:
        """Copy a disk snapshot; if it is cut off, the undo deletes the new file."""
        _refuse_open(disk)
        tell: Callable[[], None] = partial(self._task.waiting, f"qemu-img to copy {disk.vdev}")
        with written_durably(disk, file.path, file.fd) as here:
            source = ["-l", f"snapshot.name={self._task.name}", disk.target]
            words = ["convert", "-f", "qcow2", "-O", "qcow2", *source, here]
            killable_qemu_img(disk, words, "convert", check=self._task.check, waiting=tell)

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


def _refuse_open(disk: Disk) -> None:
    """:raises DiskError: somebody has the image open: what qemu-img reads of it may be old."""
    target = Path(disk.target)
    with os_errors(disk, target):
        found = users(target)
    if found:
        raise DiskError(
            f"{target} is in use by {', '.join(found)}, and a disk snapshot inside an image can be "
            f"copied only while nobody uses it: shut the domain down first, or take an external "
            f"snapshot",
            vdev=disk.vdev,
        )


def _write(fd: int, content: bytes) -> None:
    """Write an empty file, without the blocks of zeros."""
    with open(fd, "wb", closefd=False) as file:
        for at in range(0, len(content), _BLOCK):
            if (piece := content[at : at + _BLOCK]).strip(b"\0"):
                file.seek(at)
                file.write(piece)
        file.truncate(len(content))
