"""What the operating system says of a disk's files, as the error of that disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.linux.there import lexists
from pyxlsnap.model import Disk


@contextmanager
def os_errors(disk: Disk, path: Path, *, refuse: bool = False) -> Iterator[None]:
    """Turn an ``OSError`` into a :class:`DiskError` that names the disk and the file.

    :param path: the file to name if the ``OSError`` names none.
    :param refuse: raise :class:`Refused` instead: for checks, when nothing was tried yet.
    """
    try:
        yield
    except OSError as e:
        text = f"{e.filename if isinstance(e.filename, str) else path}: {e.strerror}"
        if refuse:
            raise Refused(f"{disk.vdev}: {text}") from e
        raise DiskError(text, vdev=disk.vdev) from e


def refuse_missing(disk: Disk, path: Path, what: str) -> None:
    """Make sure that a recovery sees the storage of a disk, and does not take it for empty.

    :param what: what may be left there, for the message.
    :raises DiskError: there is no such file or directory, or that cannot be told.
    """
    with os_errors(disk, path):
        is_there = lexists(path)
    if not is_there:
        raise DiskError(
            f"{path} is not there: mount its filesystem, then run the command again; {what} may be "
            f"left there",
            vdev=disk.vdev,
        )
