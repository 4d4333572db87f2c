"""Files whose server may not answer: a stat on a dead NFS mount may never return.

Such a file is of no use to us, but a process may have it open, or another guest may have it as a
disk. Whoever only compares files must not wait for it.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pyxlsnap.errors import Refused

_T = TypeVar("_T")
_ANSWER_S = 5.0
_SERVED = (
    *(b"nfs", b"cifs", b"smb3", b"ceph", b"fuse", b"9p", b"afs"),
    *(b"virtiofs", b"lustre", b"glusterfs"),
)

#: mounts by their number (``mnt_id``), each with its device as ``st_dev`` has it
Mounts = dict[int, int]


def stat_within(path: str | Path, *, within_s: float | None = None) -> os.stat_result:
    """Like :func:`os.stat`, with a limit.

    :raises OSError: as :func:`os.stat`; ``TimeoutError`` if there is no answer within this time.
    """
    limit_s = _ANSWER_S if within_s is None else within_s
    try:
        found = answer_within(lambda: os.stat(path), within_s=limit_s)  # noqa: PTH116
    except ValueError as e:
        raise OSError(errno.EINVAL, str(e), str(path)) from e
    if found is None:
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {limit_s:g} s", str(path))
    return found


def refuse_silent_file(path: Path) -> None:
    """Refuse a file whose server does not answer: to open it would wait, and hear no cancel.

    :raises Refused: there is no answer. Any other error is left to the open.
    """
    try:
        stat_within(path)
    except TimeoutError as e:
        raise Refused(
            f"{path}: {e.strerror}: see whether its server runs, and whether the mount is well"
        ) from e
    except OSError:
        pass


def stats_within(paths: Sequence[str]) -> list[os.stat_result | OSError]:
    """Like :func:`stat_within` for each of many paths, or its error; quicker, if all answer."""
    found = answer_within(lambda: [_stat(path, os.stat) for path in paths])
    return [_stat(path, stat_within) for path in paths] if found is None else found


def _stat(path: str, ask: Callable[[str], os.stat_result]) -> os.stat_result | OSError:
    try:
        return ask(path)
    except OSError as e:
        return e
    except ValueError as e:
        return OSError(errno.EINVAL, str(e), path)


def answer_within(ask: Callable[[], _T], *, within_s: float | None = None) -> _T | None:
    """Call what may never return, on another thread; ``None``: it has not within this time.

    What it raises is raised here.
    """
    found: list[_T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(ask())
        except BaseException as e:
            raised.append(e)

    # It stays if it hangs, and ends with the process.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_ANSWER_S if within_s is None else within_s)
    if raised:
        raise raised[0]
    return found[0] if found else None


def exists_within(path: str | Path) -> bool:
    """Like :func:`os.path.exists`; false if there is no answer."""
    try:
        stat_within(path)
    except OSError:
        return False
    return True


def served_mounts(process: str) -> Mounts:
    """The mounts, as a process sees them, whose files a server has.

    :param process: its directory in /proc.
    """
    return {number: device for number, device, is_served in _mounts(process) if is_served}


def local_mounts(process: str) -> set[int]:
    """The other mounts, as a process sees them, by their number.

    :param process: its directory in /proc.
    """
    return {number for number, _, is_served in _mounts(process) if not is_served}


def _mounts(process: str) -> Iterator[tuple[int, int, bool]]:
    """Each mount: its number, its device, and whether a server has its files."""
    for line in _lines(f"{process}/mountinfo"):
        fields, _, more = line.partition(b" - ")
        try:
            number, _, device, *_ = fields.split(b" ", 3)
            major, minor = map(int, device.split(b":"))
            yield int(number), os.makedev(major, minor), more.startswith(_SERVED)
        except ValueError:
            continue  # it is no line of a mount


def mount_of(process: str, descriptor: str) -> int:
    """The number of the mount that an open file is on; -1 if it is not known."""
    for line in _lines(f"{process}/fdinfo/{descriptor}"):
        key, _, value = line.partition(b":")
        if key == b"mnt_id" and value.strip().isdigit():
            return int(value)
    return -1


def _lines(path: str) -> list[bytes]:
    """The lines of a file in /proc. Names in it may have other ends of lines."""
    try:
        return Path(path).read_bytes().split(b"\n")
    except OSError:
        return []  # the process has ended, or we may not inspect it
