"""Whether something is at a path, and what. Nothing there differs from what cannot be read.

``os.path.exists`` says of a file whose storage fails (EIO, ESTALE) that it is not there, and so
does ``Path.exists`` from Python 3.14 on. A delete would take that file for one that is deleted.
These functions raise such an error.
"""

import errno
import os
import stat
from pathlib import Path

#: what stat(2) says of a path where nothing is, or can be
_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def exists(path: str | Path) -> bool:
    """Whether there is something, at the end of all symbolic links.

    :raises OSError: that cannot be told.
    """
    return _status(path) is not None


def lexists(path: str | Path) -> bool:
    """Whether there is something; a symbolic link that leads nowhere counts, too.

    :raises OSError: that cannot be told.
    """
    return _status(path, follow=False) is not None


def may_exist(path: str | Path) -> bool:
    """Whether there is something, or that cannot be told."""
    try:
        return exists(path)
    except OSError:
        return True


def is_file(path: str | Path) -> bool:
    """Whether there is a regular file, at the end of all symbolic links.

    :raises OSError: that cannot be told.
    """
    return (found := _status(path)) is not None and stat.S_ISREG(found.st_mode)


def is_dir(path: str | Path) -> bool:
    """Whether there is a directory, at the end of all symbolic links.

    :raises OSError: that cannot be told.
    """
    return (found := _status(path)) is not None and stat.S_ISDIR(found.st_mode)


def is_block_device(path: str | Path) -> bool:
    """Whether there is a block device, at the end of all symbolic links.

    :raises OSError: that cannot be told.
    """
    return (found := _status(path)) is not None and stat.S_ISBLK(found.st_mode)


def is_symlink(path: str | Path) -> bool:
    """Whether there is a symbolic link.

    :raises OSError: that cannot be told.
    """
    return (found := _status(path, follow=False)) is not None and stat.S_ISLNK(found.st_mode)


def _status(path: str | Path, *, follow: bool = True) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=follow)  # noqa: PTH116
    except ValueError:  # a NUL: no file has such a name
        return None
    except OSError as e:
        if e.errno in _NOTHING:
            return None
        raise


def names_in(directory: Path) -> list[str]:
    """The names in a directory, sorted; none if it is not there.

    (``Path.glob`` also returns none for a directory that cannot be read.)

    :raises OSError: it cannot be read.
    """
    try:
        return sorted(os.listdir(directory))  # noqa: PTH208 - names
    except OSError as e:
        if e.errno in _NOTHING:
            return []
        raise
