"""One disk with external snapshots: the files of its chain, and what becomes of them.

See :mod:`.external` for the order in which these things happen, and why.
"""

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.copy.content import copy_attributes, new_file
from pyxlsnap.disks.failures import os_errors
from pyxlsnap.disks.qcow2.printed import way_to_delete
from pyxlsnap.disks.qcow2.qemu import NODE_PREFIX, image_chain, image_info, qemu_img
from pyxlsnap.errors import AlreadyExists, DiskError, Refused
from pyxlsnap.linux.files import file_version, hidden_name, open_regular, sync_directory
from pyxlsnap.linux.there import exists, lexists
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.results import Artefact

log = logging.getLogger(__name__)

#: the end of an overlay's name, until its rename
OVERLAY_SUFFIX = ".overlay"


@dataclass(slots=True)
class Chain:
    """The files of one disk: overlay, then frozen file, then what that stands on."""

    disk: Disk
    #: where the disk's path really leads to
    active: Path
    #: the external path
    frozen: Path
    #: the overlay's name until it is renamed over :attr:`active`; never used before
    overlay: Path
    #: the overlay's node in QEMU; ``None``: it is not known
    node: str | None
    #: what :meth:`prepare_back` made the overlay of; ``None``: nothing is prepared
    _made_of: "_MadeOf | None" = None
    #: the overlay, which QEMU does not use, could not be removed
    _is_unsettled: bool = False

    @classmethod
    def of(cls, disk: Disk, request: DiskRequest) -> "Chain":
        """The chain that a request asks for.

        :raises Refused: it asks for something else than a frozen qcow2 file.
        """
        if request.format not in ("", "qcow2"):
            raise Refused(
                f"{disk.vdev}: an external snapshot of a qcow2 disk is qcow2, not {request.format}"
            )
        frozen = Path(request.path)
        if not frozen.is_absolute():
            raise Refused(f"{disk.vdev}: the external path {request.path} must be absolute")
        active = Path(os.path.realpath(disk.target))
        node = f"{NODE_PREFIX}-{disk.vdev}-{os.urandom(4).hex()}"
        return cls(disk, active, frozen, _fresh(active), node)

    # create

    def prepare(self, size: int) -> None:
        """Give the disk's file its second name, and make an overlay of that, both durably.

        :param size: the disk's, in bytes.
        :raises AlreadyExists: the second name has been taken meanwhile.
        """
        try:
            os.link(self.active, self.frozen, follow_symlinks=False)
            sync_directory(self.frozen.parent)
        except FileExistsError as e:
            raise AlreadyExists(
                f"{self.frozen} exists: choose another name", where=str(self.frozen)
            ) from e
        except OSError as e:
            raise DiskError(f"{self.frozen}: {e.strerror}", vdev=self.disk.vdev) from e
        # -u: do not open the file, the guest's QEMU has it. So qemu-img must be told the size.
        self._make_overlay(self.overlay, "-u", size=str(size))

    def take_name(self) -> None:
        """Give the overlay the disk's name."""
        self._take_name(self.overlay)

    def protect(self) -> None:
        """Make the frozen file read-only: writing to it damages the disk."""
        with os_errors(self.disk, self.frozen), open_regular(self.frozen, follow=False) as file:
            os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(file.fileno()).st_mode) & ~0o222)

    @property
    def waiting_overlay(self) -> Path | None:
        """The overlay, under the name that it has now; ``None``: it has the disk's, or is gone.

        :raises DiskError: that cannot be told.
        """
        with os_errors(self.disk, self.overlay):
            names = (self.overlay, self._withdrawn)
            return next((name for name in names if lexists(name)), None)

    def withdraw(self) -> None:
        """Take away the overlay's name: a QEMU that comes to open it later must not find it."""
        with os_errors(self.disk, self.overlay):
            if lexists(self.overlay):
                os.rename(self.overlay, self._withdrawn)

    def settle(self, *, switched: bool) -> list[str]:
        """Give the overlay the disk's name if QEMU has switched to it, or else remove it.

        An overlay that QEMU has not switched to is of no use to the guest, which must not wait for
        it: if it cannot be removed, :meth:`undo` tries again.

        :returns: what was removed.
        """
        if switched:
            if (overlay := self.waiting_overlay) is not None:
                self._take_name(overlay)
            return []
        try:
            return self._remove_overlay()
        except DiskError as e:
            log.warning("%s; trying again later", e)
            self._is_unsettled = True
            return []

    def _remove_overlay(self) -> list[str]:
        if (overlay := self.waiting_overlay) is None:
            return []
        with os_errors(self.disk, overlay):
            overlay.unlink()
        return [f"removed {self.overlay}"]

    @property
    def images(self) -> tuple[Path, ...]:
        """All names of files that a QEMU with this disk may have open."""
        return (self.active, self.frozen, self.overlay, self._withdrawn)

    def undo(self) -> list[str]:
        """Remove the second name, if QEMU has not switched. The overlay must be settled.

        :returns: what was removed.
        :raises DiskError: QEMU has switched; the disk is whole, on its chain, and stays so.
        """
        removed = self._remove_overlay() if self._is_unsettled else []
        with os_errors(self.disk, self.frozen):
            if self.waiting_overlay or not exists(self.frozen):
                return removed
            if self.frozen.samefile(self.active):  # our second name of the disk, and nothing more
                self.frozen.unlink()
                return [*removed, f"removed {self.frozen}"]
        if self._stands_on_frozen(self.active):
            self.protect()
            chain = image_chain(self.disk, str(self.frozen))
            raise DiskError(
                f"{self.active} stands on {self.frozen} now, and is whole; to undo that: "
                f"{way_to_delete(self.disk, self.active, self.frozen, chain)}",
                vdev=self.disk.vdev,
            )
        return removed

    def artefact(self) -> Artefact:
        """The frozen file, and how to delete it.

        :raises DiskError: qemu-img cannot read the chain.
        """
        chain = image_chain(self.disk, str(self.frozen))
        depth = 1 + len(chain)
        return Artefact(
            kind="disk snapshot",
            where=f"{self.frozen} ({self.disk.vdev}; {self.active} stands on it, {depth} files "
            f"deep: never just rm it)",
            delete=way_to_delete(self.disk, self.active, self.frozen, chain),
            vdev=self.disk.vdev,
            chain_depth=depth,
        )

    # revert

    def prepare_back(self) -> None:
        """Make the overlay for :meth:`put_back` beforehand, while the guest uses the disk."""
        with os_errors(self.disk, self.overlay):
            self._make_overlay(self.overlay)
            self._made_of = self._material()

    def undo_prepared(self) -> None:
        """Remove what :meth:`prepare_back` made, here or in a process that is dead."""
        self._made_of = None
        with os_errors(self.disk, self.overlay):
            self.overlay.unlink(missing_ok=True)

    def _is_prepared(self) -> bool:
        """Whether the overlay is there, and what it was made of is as it was."""
        try:
            return self._made_of is not None and self._material() == self._made_of
        except OSError:
            return False

    def _material(self) -> "_MadeOf":
        overlay, active = self.overlay.lstat(), self.active.stat()
        return _MadeOf(
            overlay=(overlay.st_dev, overlay.st_ino),
            frozen=file_version(self.frozen),
            attributes=(active.st_mode, active.st_uid, active.st_gid),
        )

    def put_back(self, kept: Path) -> None:
        """Put a new overlay of the frozen file in the place of the disk, which is kept.

        A kept file that is there already was kept by a run of this that was interrupted, and stays.
        """
        with os_errors(self.disk, self.active):
            try:
                if not exists(kept):
                    os.link(self.active, kept, follow_symlinks=False)
                if not self._is_prepared():
                    self.overlay.unlink(missing_ok=True)
                    self._make_overlay(self.overlay)
                os.rename(self.overlay, self.active)
                sync_directory(self.active.parent)
            finally:
                self.undo_prepared()

    def rehearse(self) -> None:
        """Do what :meth:`put_back` does, to another name of the disk, and remove that.

        :raises DiskError: it fails.
        """
        overlay, second = _fresh(self.active), _fresh(self.active)
        with os_errors(self.disk, self.active):
            try:
                os.link(self.active, second, follow_symlinks=False)
                if self._is_prepared():
                    with new_file(overlay):
                        pass
                else:
                    self._make_overlay(overlay)
                os.rename(overlay, second)
                sync_directory(self.active.parent)
            finally:
                overlay.unlink(missing_ok=True)
                second.unlink(missing_ok=True)

    # for both

    @property
    def _withdrawn(self) -> Path:
        return self.overlay.with_name(f"{self.overlay.name}.withdrawn")

    def _make_overlay(self, path: Path, *options: str, size: str = "") -> None:
        """Make an empty overlay of the frozen file, with the disk's owner, mode and attributes.

        qemu-img opens the new file by our descriptor. Its name may be in a directory of a user, who
        could put a link to another file there.
        """
        with (
            os_errors(self.disk, path),
            open_regular(self.active) as active,
            new_file(path) as overlay,
        ):
            copy_attributes(active.fileno(), overlay)
            backing = ["-b", str(self.frozen), "-F", "qcow2"]
            with written_durably(self.disk, path, overlay) as here:
                words = [*options, *backing, here, *([size] if size else [])]
                qemu_img(self.disk, "create", "-q", "-f", "qcow2", *words)

    def _take_name(self, overlay: Path) -> None:
        try:
            os.rename(overlay, self.active)
            sync_directory(self.active.parent)
        except OSError as e:
            raise DiskError(
                f"{overlay} could not be renamed to {self.active}: {e.strerror}",
                vdev=self.disk.vdev,
            ) from e

    def _stands_on_frozen(self, image: Path) -> bool:
        info = image_info(self.disk, str(image))
        return bool(info.get("full-backing-filename") == str(self.frozen))


@contextmanager
def written_durably(disk: Disk, path: Path, fd: int) -> Iterator[str]:
    """While a file is written that we have open; yields a name under which qemu-img can open it.

    Afterwards the content and the name are on the disk.

    :param path: the file's name.
    :param fd: our descriptor of the file.
    :raises DiskError: another process has put another file in its place.
    """
    yield f"/proc/{os.getpid()}/fd/{fd}"
    os.fsync(fd)
    if not os.path.samestat(os.lstat(path), os.fstat(fd)):
        raise DiskError(
            f"another process replaced {path} while it was made: see who can write in "
            f"{path.parent}",
            vdev=disk.vdev,
        )
    sync_directory(path.parent)


@dataclass(frozen=True, slots=True)
class _MadeOf:
    """A prepared overlay, and the files that it depends on."""

    overlay: tuple[int, ...]
    frozen: tuple[int, ...]
    #: mode and owner of the disk's file
    attributes: tuple[int, ...]


def _fresh(active: Path) -> Path:
    """A name in a disk's directory that no file has ever had."""
    return hidden_name(active, f".{os.urandom(8).hex()}{OVERLAY_SUFFIX}")
