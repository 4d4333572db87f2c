"""What the script needs that libxl starts for a disk of dom0's kernel (``block``).

The restore fails if the script fails, or if it takes longer than 40 seconds.
"""

import fcntl
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.guest.findings import Finding, risky
from pyxlsnap.guest.networks import missing_script
from pyxlsnap.linux.processes import holders, process_text
from pyxlsnap.linux.stalled import stat_within
from pyxlsnap.linux.there import is_dir
from pyxlsnap.linux.waiting import until
from pyxlsnap.model import Disk
from pyxlsnap.text import shortened

_SCRIPT = "block"
_LOCK_S = 3.0
_POLL_S = 0.1
_PATHS = re.compile(r'^(?:bindir|sbindir|LIBEXEC_BIN)="?([^"\n]+)', re.MULTILINE)
_SYSTEM_PATH = "/sbin:/bin:/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin"


def is_served_by_kernel(disk: Disk) -> bool:
    """Whether libxl starts the script for a disk of dom0's that has no script of its own."""
    return not (disk.script or disk.cdrom or disk.for_qemu) and disk.format == "raw"


def examine_block_script(scripts: str, disks: Sequence[Disk]) -> Iterator[Finding]:
    """Find what would let the script fail.

    :param scripts: the directory of libxl's scripts; "" if it is not known.
    :param disks: those that are :func:`is_served_by_kernel`.
    """
    if not disks:
        return
    # (The usual directory is only supposed to be libxl's.)
    script = f"{scripts}/{_SCRIPT}" if scripts else _SCRIPT
    if (missing := missing_script(script)) is not None:
        yield missing
        return
    directory = Path(scripts or paths.XEN_SCRIPTS)
    if is_dir(directory):
        yield from _tools(directory, disks)
    yield from _lock(paths.SCRIPT_LOCKS / _SCRIPT)


def _tools(scripts: Path, disks: Sequence[Disk]) -> Iterator[Finding]:
    wanted = ["xenstore-read", "xenstore-write", *(["losetup"] if any(map(_loops, disks)) else [])]
    places = [*_own_paths(scripts), *_SYSTEM_PATH.split(":"), *os.get_exec_path()]
    for tool in wanted:
        if not any(os.access(f"{place}/{tool}", os.X_OK) for place in places):
            yield risky(f"the script {_SCRIPT} needs {tool}, which is missing: install the tool")


def _own_paths(scripts: Path) -> list[str]:
    """Where the scripts look for programs first."""
    try:
        return _PATHS.findall((scripts / "hotplugpath.sh").read_text(errors="replace"))
    except OSError:
        return []


def _loops(disk: Disk) -> bool:
    """Whether the script makes a loop device for a disk."""
    try:
        return not stat.S_ISBLK(stat_within(disk.target).st_mode)
    except OSError:
        return False


def _lock(file: Path) -> Iterator[Finding]:
    """The script waits for a lock, which another script may never release."""
    if not until(lambda: not _is_locked(file), within_s=_LOCK_S, poll_s=_POLL_S):
        yield risky(
            f"{shortened(str(file))} has been locked for {_LOCK_S:g} s{_by(file)}, and the "
            f"script {_SCRIPT} would wait for it: see whether another script is stuck"
        )


def _is_locked(file: Path) -> bool:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # (for an instant)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _by(file: Path) -> str:
    try:
        pids = holders(file)
    except OSError:
        return ""
    return f" by {', '.join(map(process_text, pids[:3]))}" if pids else ""
