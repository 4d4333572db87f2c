"""What a create has kept of a guest that could not be resumed: its only copy, perhaps."""

from pathlib import Path

from pyxlsnap.errors import BadMemoryFile, NeedsAttention
from pyxlsnap.journal import CreateEntry, Journal
from pyxlsnap.linux.files import open_regular
from pyxlsnap.linux.there import exists, is_file, may_exist
from pyxlsnap.memory import read_header
from pyxlsnap.model import DomainConfig


def why_unreadable(entry: CreateEntry) -> str:
    """Why there is no memory file of the entry's snapshot; "" if there is one.

    Another file may have its name by now, and its filesystem may not be mounted.
    """
    try:
        return _why_not(entry)
    except OSError as e:
        return f"{entry.memory_path}: {e.strerror or e}"


def _why_not(entry: CreateEntry) -> str:
    """The same.

    :raises OSError: that cannot be told.
    """
    path = Path(entry.memory_path)
    if not is_file(path):
        return f"{path}: there is no such file"
    try:
        with open_regular(path) as file:
            header = read_header(file, str(path))
        uuid = DomainConfig.parse(header.config_json).uuid
    except BadMemoryFile as e:
        if isinstance(e.__cause__, OSError):
            raise e.__cause__ from e
        return str(e)
    except ValueError as e:
        return f"{path}: {e}"
    name = header.metadata and header.metadata.name
    if (name, uuid) == (entry.name, entry.uuid):
        return ""
    return f"{path} does not hold the snapshot {entry.name} of {entry.domain}"


def is_whole(entry: CreateEntry) -> bool:
    """Whether memory file and cfgfile are in their places.

    :raises OSError: that cannot be told: their storage may come back.
    """
    return exists(entry.cfgfile) and not _why_not(entry)


def published(entry: CreateEntry) -> list[str]:
    """The files of a snapshot that is not complete, the cfgfile first."""
    if why_unreadable(entry):
        return []
    return [*[entry.cfgfile] * (not entry.has_disks), entry.memory_path]


def out_of_reach(entry: CreateEntry, failed: OSError | None = None) -> NeedsAttention:
    """Make (not raise) the error for a way back that cannot be read; nothing was deleted.

    :param failed: what the storage of the cfgfile says, if it fails.
    """
    missing = f"{failed.strerror}" if failed else "there is no such file"
    why = why_unreadable(entry) or f"{entry.cfgfile}: {missing}"
    left = [why, *(f"its memory may be in {t}" for t in entry.temporary[:1] if may_exist(t))]
    return NeedsAttention(
        f"{entry.domain} could not be resumed, and what was kept of it may be its only copy, but "
        f"cannot be read ({'; '.join(left)}); nothing was deleted: mount its filesystem, or put "
        f"{entry.memory_path} and {entry.cfgfile} back, and run the command again; if nobody needs "
        f"them, delete the disk snapshots {entry.name}, then run: rm {Journal(entry.uuid).path}",
        step="recover",
        left=left,
        finish=f"pyxlsnap snapshot-recover {entry.uuid}",
    )
