"""What the memory file of a snapshot says of its domain, without the memory.

A process that is copied for each of many reverts reads the file once (:func:`keep`): its copies do
not read an unchanged file to its end again.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import PyxlsnapError
from pyxlsnap.guest.saved import file_version, memory_path, reading, saved_config
from pyxlsnap.memory import Header, read_header, walk
from pyxlsnap.model import DomainConfig, SnapshotConfig
from pyxlsnap.request import RevertRequest

# A file that was changed so shortly before may be changed again without a sign: the kernel notes
# the time of a change in steps of some milliseconds.
_SETTLED_S = 2.0


@dataclass(frozen=True, slots=True)
class Saved:
    """The content of the memory file, without the memory."""

    path: Path
    version: tuple[int, ...]
    header: Header
    config: DomainConfig
    #: the release of Xen that saved the memory
    xen: tuple[int, int]
    #: memory that the domain held, KiB
    memory_kb: int

    @property
    def qemu(self) -> str:
        """The version of the QEMU that saved the domain; "" if the memory file has none."""
        meta = self.header.metadata
        return meta.versions.get("qemu", "") if meta else ""


@dataclass(frozen=True, slots=True)
class _Kept:
    saved: Saved
    #: when the file, or what the kernel knows of it, was changed, nanoseconds since the epoch
    changed: int


#: what :func:`keep` has read last, if that was whole
_kept: _Kept | None = None


def config_of(request: RevertRequest) -> SnapshotConfig:
    """The content of the cfgfile."""
    assert request.config
    return request.config


def saved_uuid(request: RevertRequest) -> str:
    """The uuid of the domain in a memory file. Reads the header only, not the memory.

    :raises ConfigError, BadMemoryFile: as :func:`read_saved`.
    """
    path = _path(request)
    with reading(path) as file:
        return saved_config(read_header(file, str(path))).uuid


def read_saved(request: RevertRequest, cancel: Cancel) -> Saved:
    """Read the memory file from its header to its END, unless it is unchanged since :func:`keep`.

    :raises ConfigError, BadMemoryFile: the cfgfile names no memory file, or a damaged one.
    :raises Cancelled: ``cancel`` was set.
    """
    path = _path(request)
    with reading(path) as file:
        return _kept_of(path, file) or _read(path, file, lambda _: cancel.check())


def keep(request: RevertRequest, on_bytes: Callable[[int], None]) -> None:
    """Read the memory file now, for the reverts of copies of this process.

    A file that cannot be read is left to the revert, which says what is wrong.

    :param request: with the content of its cfgfile.
    :param on_bytes: called often; an exception of it ends the reading, and is raised.
    """
    global _kept
    try:
        path = _path(request)
        with reading(path) as file:
            if _kept_of(path, file):
                return
            _kept = None
            changed = os.fstat(file.fileno()).st_ctime_ns
            if abs(time.time() - changed / 1e9) > _SETTLED_S:
                _kept = _Kept(_read(path, file, on_bytes), changed)
    except PyxlsnapError:
        _kept = None


def _kept_of(path: Path, file: BinaryIO) -> Saved | None:
    """What was read of a file, if it is that file still, and unchanged."""
    if _kept is None or _kept.saved.path != path or _kept.saved.version != file_version(file):
        return None
    return _kept.saved if _kept.changed == os.fstat(file.fileno()).st_ctime_ns else None


def _read(path: Path, file: BinaryIO, on_bytes: Callable[[int], None]) -> Saved:
    version = file_version(file)
    header = read_header(file, str(path))
    file.seek(header.stream_offset)
    summary = walk(file, str(path), on_bytes=on_bytes)
    config = saved_config(header)
    xen = (summary.xen_major, summary.xen_minor)
    return Saved(path, version, header, config, xen, summary.memory_kb)


def _path(request: RevertRequest) -> Path:
    return memory_path(config_of(request), request.cfgfile)
