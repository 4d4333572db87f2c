"""Reading the memory file of a snapshot once for many operations.

A process that is copied for each of many reverts or clones reads the file once (:func:`keep`): its
copies do not read an unchanged file to its end again.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from pyxlsnap.dataclass import dataclass
from pyxlsnap.errors import PyxlsnapError
from pyxlsnap.guest.saved import memory_path, reading
from pyxlsnap.guest.snapshot import Saved, read_memory
from pyxlsnap.linux.files import file_version, is_settled
from pyxlsnap.model import SnapshotConfig


@dataclass(frozen=True, slots=True)
class _Kept:
    saved: Saved
    #: when the file, or what the kernel knows of it, was changed, nanoseconds since the epoch
    changed: int


#: what :func:`keep` has read last, if that was whole
_kept: _Kept | None = None


def read_saved(wanted: SnapshotConfig, cfgfile: str, check: Callable[[], None]) -> Saved:
    """Read a memory file from its header to its END, unless it is unchanged since :func:`keep`.

    The parameters and errors are those of :func:`pyxlsnap.guest.snapshot.read_memory`.
    """
    path = memory_path(wanted, cfgfile)
    with reading(path) as file:
        kept = _kept_of(path, file)
    return kept or read_memory(wanted, cfgfile, check)


def keep(wanted: SnapshotConfig, cfgfile: str, check: Callable[[], None]) -> Saved | None:
    """Read the memory file now, for the operations of copies of this process.

    A file that cannot be read is left to the operation, which says what is wrong.

    :param wanted: the content of the cfgfile.
    :param check: called often; an exception of it ends the reading, and is raised.
    :returns: what is kept now, if anything.
    """
    global _kept
    try:
        path = memory_path(wanted, cfgfile)
        with reading(path) as file:
            if kept := _kept_of(path, file):
                return kept
            _kept = None
            changed = os.fstat(file.fileno()).st_ctime_ns
        if is_settled(changed):
            _kept = _Kept(read_memory(wanted, cfgfile, check), changed)
    except PyxlsnapError:
        _kept = None
    return _kept.saved if _kept else None


def _kept_of(path: Path, file: BinaryIO) -> Saved | None:
    """What was read of a file, if it is that file still, and unchanged."""
    if _kept is None or _kept.saved.path != path:
        return None
    if _kept.saved.version != file_version(file.fileno()):
        return None
    return _kept.saved if _kept.changed == os.fstat(file.fileno()).st_ctime_ns else None
