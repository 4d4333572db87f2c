"""The text of an item of ``disks`` in a cfgfile: its rules are those of xl's disk specification."""

import re
from typing import Final

from pyxlsnap.model import DiskRequest
from pyxlsnap.text import shortened

# A part of an item: the rules of libxlu_disk_l.l, as far as pyxlsnap needs them.
_DISK_PART: Final = re.compile(
    r"""[ \t\n]*+(?:
    (?P<key>format|vdev)=(?P<value>[^,]*),?
    |target=(?P<target>.*)
    |(?P<positional>[^=,]*),
    |(?P<last>[^=,]+)\Z
    )""",
    re.VERBOSE,
)
#: words that libxlutil never reads as a path, format or device
_WORDS: Final = frozenset(
    ("cdrom", "direct-io-safe", "discard", "no-discard", "colo", "no-colo", "trusted", "untrusted")
)
_POSITIONS: Final = ("target", "format", "vdev")
#: for example xvda, hda1, sdb, d0p1, or a number
_VDEV: Final = re.compile(r"[0-9A-Za-z]+")
#: a path that xl's positional form reads only as a path
_PLAIN_PATH: Final = re.compile(r"/[^,=]*")


def parse(spec: str) -> DiskRequest:
    """Read an item. Only path, format and device are allowed in it.

    :raises ValueError: the specification is wrong; the message says why.
    """
    parts = _disk_parts(spec)
    path, form, vdev = (parts.get(key, "") for key in _POSITIONS)
    if not vdev:
        raise ValueError("there is no device: give path,format,device")
    if not _VDEV.fullmatch(vdev):
        raise ValueError(f"{vdev!r} is not a device such as xvda")
    if path and not form:
        raise ValueError("an external path without a format: give both, or none")
    if form and not path:
        raise ValueError(f"the format {form!r} without an external path: give both, or none")
    if form == "empty":
        raise ValueError("a snapshot cannot be stored in an empty drive: give another format")
    return DiskRequest(vdev, path, form)


def render(disk: DiskRequest) -> str:
    """The text of an item, in the shortest form that keeps its path as it is."""
    # target= ends at a newline: only the positional form can hold a path with a newline.
    if disk.internal or "\n" in disk.path or _PLAIN_PATH.fullmatch(disk.path):
        return f"{disk.path},{disk.format},{disk.vdev}"
    # The target is the rest of the text; xl drops one comma at the end.
    comma = "," if disk.path.endswith(",") else ""
    return f"format={disk.format},vdev={disk.vdev},target={disk.path}{comma}"


def _disk_parts(spec: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    at = 0
    while spec[at:].strip(" \t\n"):
        part = _DISK_PART.match(spec, at)
        if part is None:
            raise _unsupported(spec[at:].strip().partition(",")[0])
        at = part.end()
        key, value = _key_and_value(part, parts)
        if key in parts:
            raise ValueError(f"{key} occurs twice")
        parts[key] = value
    return parts


def _key_and_value(part: re.Match[str], parts: dict[str, str]) -> tuple[str, str]:
    if part["key"] is not None:
        return part["key"], part["value"]
    if part["target"] is not None:
        return "target", part["target"].removesuffix(",")
    value = part["last"] if part["positional"] is None else part["positional"]
    free = [key for key in _POSITIONS if key not in parts]
    if value in _WORDS or not free:
        raise _unsupported(value)
    return free[0], value


def _unsupported(part: str) -> ValueError:
    return ValueError(f"{shortened(part)!r}: only path, format and device are allowed")
