"""The config file of a snapshot: what ``snapshot-create`` writes and ``snapshot-revert`` takes.

Its syntax is that of xl.cfg and libxlutil reads it. The keys are those of the specification
("[RFC V9 3/4] domain snapshot design: xl")::

    name = "before-upgrade"
    description = "kernel 6.1"
    memory_path = "/var/lib/xen/snapshots/before-upgrade.save"
    disks = ['/srv/hda_snapshot.qcow2,qcow2,hda', ',,hdb']

An item of ``disks`` is an xl disk specification (xl-disk-configuration(5)), its parts read as
external path, external format and the guest's device; path and format both empty mean an
internal snapshot. The form ``format=qcow2,vdev=hda,target=/srv/a, b.qcow2`` says the same.

libxlutil cannot list the keys of a file, and of two equal ones the last wins in silence. So
:func:`parse` also scans the text for keys, with the tokens of tools/libs/util/libxlu_cfg_l.l.
"""

import difflib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyxlsnap.errors import ConfigError, UsageError
from pyxlsnap.model import Disk, DiskRequest, SnapshotConfig, check_name
from pyxlsnap.text import readable
from pyxlsnap.xen import xlcfg

STRINGS: Final = ("name", "description", "memory_path")
LISTS: Final = ("disks",)

#: bytes; thousands of disks need less, and libxlutil's time grows with the square of it
SIZE_LIMIT: Final = 1 << 18

# The lexer takes the longest match; between these none is the beginning of another. Only names
# matter here: strings and comments are there to be stepped over. A name stands nowhere but
# before = or += (libxlu_cfg_y.y).
_TOKEN: Final = re.compile(
    rb"""(?P<name>[a-z][._0-9a-z]*)
    |(?P<assign>\+?=)
    |[0-9][0-9a-fx]*|[ \t]|[,\[\];]|\n|\#.*\n
    |'(?:[^'\\\n]|\\.)*+'
    |"(?:[^"\\\n]|\\.)*+"
    """,
    re.VERBOSE,
)

# An item of `disks`, by the rules of libxlu_disk_l.l that matter to us.
_DISK_PART: Final = re.compile(
    r"""[ \t\n]*+(?:
    (?P<key>format|vdev)=(?P<value>[^,]*),?
    |target=(?P<target>.*)
    |(?P<positional>[^=,]*),
    |(?P<last>[^=,]+)\Z
    )""",
    re.VERBOSE,
)
#: taken by libxlutil for something else wherever they stand
_WORDS: Final = frozenset(
    ("cdrom", "direct-io-safe", "discard", "no-discard", "colo", "no-colo", "trusted", "untrusted")
)
_POSITIONS: Final = ("target", "format", "vdev")
#: characters of a disk's text that a message shows
_SHORT: Final = 200
#: bytes of a file that a message shows
_NEAR: Final = 20
#: xvda, hda1, sdb, d0p1, or a number
_VDEV: Final = re.compile(r"[0-9A-Za-z]+")
#: a path that xl's positional form cannot take for anything else
_PLAIN_PATH: Final = re.compile(r"/[^,=]*")

_NEW: Final = "<new config file>"
_COMMENT: Final = """\
# Written by pyxlsnap: a snapshot of a Xen domain. To go back to it:
#   pyxlsnap snapshot-revert <domain> <this file>
# An item of disks is "external path,format,device", or ",,device" for an internal snapshot.
"""


def read(path: str | os.PathLike[str]) -> SnapshotConfig:
    """Read a config file.

    :param path: a regular file, or a symbolic link to one.
    :raises ConfigError: it cannot be read, is not a regular file, is longer than
        :data:`SIZE_LIMIT`, or :func:`parse` refuses it.
    """
    file = os.fspath(path)
    try:
        data = _content(Path(file))
    except OSError as e:
        way_out = ": run it as root" if isinstance(e, PermissionError) and os.geteuid() else ""
        raise ConfigError(f"cannot be read: {e.strerror}{way_out}", file=file) from e
    except ValueError as e:  # a NUL in the path
        raise ConfigError(f"cannot be read: {e}", file=file) from e
    return parse(data, file=file)


def parse(data: bytes, *, file: str) -> SnapshotConfig:
    """Parse the content of a config file.

    An empty string means the same as no setting at all, as in the example of the specification.

    :param file: its name, for messages.
    :raises ConfigError: naming the first thing that is wrong: the syntax, an unknown or repeated
        key, the type of a value, the snapshot's name, or a disk.
    """
    _check_bytes(data, file)
    _check_tokens(data, file)
    _check_keys(data, file)
    values = xlcfg.parse_cfg(data, file=file, strings=STRINGS, lists=LISTS)
    return SnapshotConfig(
        name=_name(values, file),
        description=_string(values, "description"),
        memory_path=_string(values, "memory_path"),
        disks=_disks(values, file),
    )


def render(config: SnapshotConfig) -> str:
    """Write the text of a config file that says ``config``.

    The text is read back before it is returned.

    :raises ConfigError: no config file can say this; ``file`` is "<new config file>".
    """
    _check_values(config)
    settings = [
        f"{key} = {_quote(value)}\n"
        for key in STRINGS
        if (value := getattr(config, key))  # empty is the same as absent
    ]
    if config.disks is not None:
        items = "".join(f"    {_quote(_spec(disk))},\n" for disk in config.disks)
        settings.append(f"disks = [\n{items}]\n")
    text = _COMMENT + "\n" + "".join(settings)
    _check_text(text, config)
    return text


def scan(data: bytes) -> Iterator[tuple[str, bool]]:
    """Find the settings in a text whose tokens are all right.

    :returns: for each, in their order, its key and whether it adds to a value (``+=``).
    """
    name = ""
    for token in _TOKEN.finditer(data):
        if token.lastgroup == "name":
            name = token["name"].decode("ascii")
        elif token.lastgroup == "assign" and name:  # a second one is wrong, which libxlutil says
            yield name, token["assign"] == b"+="
            name = ""


def _content(file: Path) -> bytes:
    # Looked at before it is opened: opening some devices does something, a fifo waits.
    _check_regular(file.stat())
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with open(fd, "rb") as f:
        _check_regular(os.fstat(fd))
        return f.read(SIZE_LIMIT + 1)


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def _check_bytes(data: bytes, file: str) -> None:
    if len(data) > SIZE_LIMIT:
        raise ConfigError(f"longer than {SIZE_LIMIT} bytes", file=file)
    if b"\0" in data:  # within a string it makes libxlutil abort the process
        raise ConfigError(f"a NUL at offset {data.index(0)}", file=file)
    try:
        data.decode()
    except UnicodeDecodeError as e:
        raise ConfigError(f"not UTF-8 at offset {e.start}", file=file) from e


def _check_tokens(data: bytes, file: str) -> None:
    """Refuse what is no token before libxlutil does, which would go on to look for others.

    From each # or quote it looks to the end of the file or line: minutes, in all.
    """
    at = 0
    while at < len(data):
        token = _TOKEN.match(data, at)
        if token is None:
            line = data.count(b"\n", 0, at) + 1
            near = readable(data[at : at + _NEAR])
            raise ConfigError(f"line:{line}: config parsing error near {near!r}", file=file)
        at = token.end()


def _check_keys(data: bytes, file: str) -> None:
    seen: set[str] = set()
    for key, adds in scan(data):
        if key not in STRINGS + LISTS:
            near = difflib.get_close_matches(key, STRINGS + LISTS, n=1)
            hint = f"; did you mean {near[0]}?" if near else f": there are {_known()}"
            raise ConfigError(f"unknown key{hint}", file=file, item=_short(key))
        if key in seen and not adds:
            raise ConfigError("set twice", file=file, item=key)
        seen.add(key)


def _known() -> str:
    return f"{', '.join(STRINGS)} and {', '.join(LISTS)}"


def _name(values: dict[str, str | list[str]], file: str) -> str | None:
    name = _string(values, "name")
    try:
        return name if name is None else check_name(name)
    except UsageError as e:
        raise ConfigError(str(e), file=file, item="name") from e


def _string(values: dict[str, str | list[str]], key: str) -> str | None:
    value = values.get(key)
    return value if isinstance(value, str) and value else None


def _disks(values: dict[str, str | list[str]], file: str) -> tuple[DiskRequest, ...] | None:
    specs = values.get("disks")
    if not isinstance(specs, list):
        return None
    found: dict[str, DiskRequest] = {}
    for spec in specs:
        disk = _disk(spec, file)
        if disk.vdev in found:
            raise ConfigError(f"{disk.vdev} is there twice", file=file, item="disks")
        found[disk.vdev] = disk
    return tuple(found.values())


def _disk(spec: str, file: str) -> DiskRequest:
    item = f"disk {_short(spec)!r}"
    try:
        request = _request(spec)
    except ValueError as e:
        raise ConfigError(str(e), file=file, item=item) from e
    # libxlutil calls an empty format raw, so what was left out can be seen in the text alone.
    # Reading it ourselves must not mean reading something else.
    expected = Disk(request.vdev, request.path, request.format or "raw")
    if xlcfg.parse_disk(spec, file=file) != expected:
        raise ConfigError("not in the form path,format,device", file=file, item=item)
    return request


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else text[:_SHORT] + "…"


def _request(spec: str) -> DiskRequest:
    """Read a disk specification of which only path, format and device may be given.

    :raises ValueError: saying what is wrong.
    """
    parts = _disk_parts(spec)
    path, form, vdev = (parts.get(key, "") for key in _POSITIONS)
    if not vdev:
        raise ValueError("no device: expected path,format,device")
    if not _VDEV.fullmatch(vdev):
        raise ValueError(f"{vdev!r} is not a device such as xvda")
    if path and not form:
        raise ValueError("an external path without a format")
    if form and not path:
        raise ValueError(f"the format {form!r} without an external path")
    if form == "empty":
        raise ValueError("a snapshot cannot go into an empty drive")
    return DiskRequest(vdev, path, form)


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
            raise ValueError(f"{key} is there twice")
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
    return ValueError(f"{_short(part)!r}: only path, format and device can be given")


def _spec(disk: DiskRequest) -> str:
    # A target= ends at a newline, which only the other form can hold.
    if disk.internal or "\n" in disk.path or _PLAIN_PATH.fullmatch(disk.path):
        return f"{disk.path},{disk.format},{disk.vdev}"
    # The target reaches to the end, where xl drops one comma.
    comma = "," if disk.path.endswith(",") else ""
    return f"format={disk.format},vdev={disk.vdev},target={disk.path}{comma}"


def _quote(text: str) -> str:
    # No other escape can be used: libxlutil refuses \x.. and drops octal ones.
    for character, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        text = text.replace(character, escape)
    return f'"{text}"'


def _check_values(config: SnapshotConfig) -> None:
    values = {key: getattr(config, key) or "" for key in STRINGS}
    values |= {f"disk {d.vdev!r}": d.path + d.format + d.vdev for d in config.disks or ()}
    for item, value in values.items():
        if "\0" in value:
            raise ConfigError("has a NUL in it", file=_NEW, item=item)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{_short(value)} is not UTF-8, and a cfgfile must be: choose another",
                file=_NEW,
                item=item,
            ) from None


def _check_text(text: str, config: SnapshotConfig) -> None:
    file = _NEW
    found = parse(text.encode(), file=file)
    wanted = SnapshotConfig(
        name=config.name or None,
        description=config.description or None,
        memory_path=config.memory_path or None,
        disks=config.disks if config.disks is None else tuple(config.disks),
    )
    if found != wanted:
        raise ConfigError("no config file can say this: it would be read otherwise", file=file)
