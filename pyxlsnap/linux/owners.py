"""Who besides root, and the user who runs this process, can change a file."""

import os
import stat
from pathlib import Path


def who_can_change(path: Path) -> str | None:
    """Who else can write to a file, or put another file in its place; ``None``: nobody.

    An ACL counts, too: the mode's bits for the group have the most that it grants.

    :returns: the file or the directory on the way to it, and whose it is, as text.
    :raises OSError: the file is not there.
    """
    ways = (Path(os.path.abspath(path)), Path(os.path.realpath(path)))  # noqa: PTH100
    return next((found for way in ways if (found := _on_the_way(way))), None)


def _on_the_way(path: Path) -> str | None:
    for place in (*reversed(path.parents), path):
        status = place.lstat()
        if writer := _writer(status):
            return f"{place} {writer}"
        if stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o011:
            return None  # others cannot enter, so nothing below is theirs to change
    return None


def _writer(status: os.stat_result) -> str | None:
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to the user {status.st_uid}"
    is_dir = stat.S_ISDIR(status.st_mode)
    if stat.S_ISLNK(status.st_mode) or (is_dir and status.st_mode & stat.S_ISVTX):
        return None  # in a directory such as /tmp nobody can replace what belongs to others
    if status.st_mode & 0o002:
        return "is writable for everybody"
    if status.st_mode & 0o020 and status.st_gid != 0:
        return f"is writable for the group {status.st_gid}"
    return None
