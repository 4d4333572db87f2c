"""Block devices: what the kernel has built on one, where one is mounted, and what serves one."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.linux.there import exists, is_block_device

_ESCAPE = re.compile(rb"\\([0-7]{3})")
# The mounts of this process, and of the host: a service may have a view of its own.
_VIEWS = ("self", "1")


def sys_directory(device: int) -> Path:
    """The directory of a block device in /sys."""
    return paths.SYS / "dev/block" / f"{os.major(device)}:{os.minor(device)}"


def attribute(path: Path) -> str:
    """The content of a file in /sys; "" if the device is gone, or has no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def kernel_uses(device: int) -> list[str]:
    """What the kernel does with a block device, or with a partition of it, a text for each.

    That is the block devices that are built on it (device mapper, md, bcache), mounts, and swap.
    """
    here = sys_directory(device)
    numbers, found = set(), []
    for directory in (here, *sorted(p.parent for p in here.glob("*/partition"))):
        numbers.add(attribute(directory / "dev") or _number(device))
        found += sorted(p.name for p in directory.glob("holders/*"))
    found += [f"a mount on {where}" for number, where, _ in _mounts() if number in numbers]
    found += ["swap" for path in _swaps() if _number_of(path) in numbers]
    return list(dict.fromkeys(found))


def mounts(device: int, *, writable: bool) -> list[str]:
    """Where a block device is mounted.

    :param writable: leave out read-only mounts.
    """
    number = _number(device)
    found = [where for n, where, w in _mounts() if n == number and (w or not writable)]
    return list(dict.fromkeys(found))


def is_claimed(path: Path) -> bool:
    """Whether the kernel has claimed a block device for one use, so that no other can be begun.

    A mount, device mapper, md and swap claim their devices; QEMU and blkback do not. A claim of
    which no other function here knows is found, too: a mount that only another container sees, an
    export over iSCSI, a ZFS pool. This looks by a claim of its own, and gives it up at once.
    """
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as e:
        return e.errno == errno.EBUSY
    return False


def is_swap(file: Path) -> bool:
    """Whether dom0 swaps to a file."""
    return any(_is_same(path, file) for path in _swaps())


def server(device: int) -> int | None:
    """The process that serves a network block device (qemu-nbd, nbd-client), or a partition of it.

    It has the device open as long as the device is to exist. ``None``: no process serves it.
    """
    here = sys_directory(device).resolve()
    thread = attribute(here / "pid") or (
        attribute(here.parent / "pid") if exists(here / "partition") else ""
    )
    status = paths.PROC / thread / "status"  # the kernel names a thread of the process
    try:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["Tgid"]) if thread else None
    except (OSError, KeyError, ValueError):
        return None


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def _number_of(path: str) -> str:
    try:
        found = Path(path)
        return _number(found.stat().st_rdev) if is_block_device(found) else ""
    except OSError:
        return ""


def _is_same(path: str, file: Path) -> bool:
    try:
        return Path(path).samefile(file)
    except OSError:
        return False


def _mounts() -> Iterator[tuple[str, str, bool]]:
    """Each mount: the number of its device, where it is, and whether it is writable."""
    for view in _VIEWS:
        try:
            lines = (paths.PROC / view / "mountinfo").read_bytes().split(b"\n")
        except OSError:
            continue
        for line in lines:
            try:
                number, where, source, options = _parsed(line)
            except ValueError:
                continue  # it is no line of a mount
            writable = b"ro" not in options
            yield number, where, writable
            if source.startswith("/dev/"):  # btrfs has numbers of its own
                yield _number_of(source), where, writable


def _parsed(line: bytes) -> tuple[str, str, str, list[bytes]]:
    """A line of mountinfo: the device's number, where it is mounted, the source, the options.

    :raises ValueError: it is none.
    """
    fields, _, more = line.partition(b" - ")
    _, _, number, _, where, options, *_ = fields.split(b" ")
    _, source, super_options = more.split(b" ", 2)
    every = options.split(b",") + super_options.split(b",")
    return number.decode(), _unescaped(where), _unescaped(source), every


def _swaps() -> list[str]:
    try:
        lines = (paths.PROC / "swaps").read_bytes().split(b"\n")[1:]
    except OSError:
        return []
    return [_unescaped(re.split(rb"[ \t]", line)[0]) for line in lines if line]


def _unescaped(name: bytes) -> str:
    """A name as the kernel writes it in its tables: a blank is ``\\040``."""
    return os.fsdecode(_ESCAPE.sub(lambda code: bytes([int(code[1], 8) & 0xFF]), name))
