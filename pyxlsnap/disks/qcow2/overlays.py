"""An overlay without data, as qemu-img makes it: the bytes of the file.

qemu-img takes long to start. So a process that is copied for each of many clones makes the overlays
once (:func:`make_ahead`): its copies write the same bytes, as long as no file below has changed.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.qcow2.backing import present_files
from pyxlsnap.disks.qcow2.killable import killable_qemu_img
from pyxlsnap.disks.qcow2.qemu import qemu_img
from pyxlsnap.disks.qcow2.tables import has_data_file
from pyxlsnap.disks.standing import backing_name
from pyxlsnap.errors import PyxlsnapError
from pyxlsnap.linux.files import file_version, is_settled, scratch_file
from pyxlsnap.linux.there import is_file
from pyxlsnap.model import Disk


@dataclass(frozen=True, slots=True)
class Overlay:
    """An overlay, and what it stands on."""

    #: :func:`versions`
    of: tuple[tuple[int, ...], ...]
    content: bytes


#: by frozen file: what :func:`make_ahead` has made
_ahead: dict[Path, Overlay] = {}


def versions(files: Sequence[Path]) -> tuple[tuple[int, ...], ...]:
    """Of each file a value that differs if the file was changed, or another one is in its place.

    It also differs if a program has set the old time of change again; :func:`file_version` does
    not.

    :raises OSError: a file is not there.
    """
    return tuple((*file_version(file), file.stat().st_ctime_ns) for file in files)


def is_whole(files: Sequence[Path]) -> bool:
    """Whether these are all the files that an overlay stands on, but for data files.

    :param files: what :func:`~pyxlsnap.disks.qcow2.backing.present_files` has found.
    """
    return is_file(files[-1]) and not backing_name(files[-1])


def make(disk: Disk, frozen: Path, of: tuple[tuple[int, ...], ...], fd: int) -> Overlay:
    """Have qemu-img make an overlay of a frozen file. qemu-img opens all that it stands on.

    :param of: the :func:`versions` of those files.
    :param fd: an empty file, open for writing, which becomes the overlay.
    :raises DiskError: a file is not of its format, or damaged.
    """
    here = f"/proc/{os.getpid()}/fd/{fd}"
    qemu_img(disk, *_words(frozen, here))
    return Overlay(of, Path(here).read_bytes())


def make_ahead(disk: Disk, frozen: Path, check: Callable[[], None]) -> bool:
    """Make an overlay now, unless it is there. Copies of this process make the clones.

    What cannot be made is left to the clone, which says what is wrong.

    :param check: called often; an exception from it ends the work, and is raised.
    :returns: whether it is there.
    """
    try:
        files = present_files(disk, frozen)
        of = versions(files)
        if made_ahead(frozen, of):
            return True
        if not is_whole(files) or any(map(has_data_file, files)):
            return False
        if not all(is_settled(file.stat().st_ctime_ns) for file in files):
            return False
        with scratch_file() as file:
            here = f"/proc/{os.getpid()}/fd/{file.fileno()}"
            killable_qemu_img(disk, _words(frozen, here), "create", check=check)
            _ahead[frozen] = Overlay(of, Path(here).read_bytes())
    except (PyxlsnapError, OSError):
        return False
    return True


def made_ahead(frozen: Path, of: tuple[tuple[int, ...], ...]) -> Overlay | None:
    """What :func:`make_ahead` has made of a frozen file, if no file below has changed since."""
    found = _ahead.get(frozen)
    return found if found and found.of == of else None


def _words(frozen: Path, here: str) -> list[str]:
    return ["create", "-q", "-f", "qcow2", "-b", str(frozen), "-F", "qcow2", here]
