"""The config file of a snapshot: what ``snapshot-create`` writes and ``snapshot-revert`` takes.

libxlutil reads the file: its syntax is that of xl.cfg. The keys are those of the specification
("[RFC V9 3/4] domain snapshot design: xl")::

    name = "before-upgrade"
    description = "kernel 6.1"
    memory = 1
    memory_path = "/var/lib/xen/snapshots/before-upgrade.save"
    disks = ['/srv/hda_snapshot.qcow2,qcow2,hda', ',,hdb']

An item of ``disks`` is an xl disk specification (xl-disk-configuration(5)) with three parts: the
external path, its format and the guest's device. An item without path and format means an internal
snapshot. The form ``format=qcow2,vdev=hda,target=/srv/a, b.qcow2`` has the same meaning.

libxlutil cannot list the keys of a file. If a key is set twice, the last value silently wins. So
:func:`parse` also scans the text for keys, with the tokens of tools/libs/util/libxlu_cfg_l.l.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyxlsnap import disk_item
from pyxlsnap.errors import ConfigError, UsageError
from pyxlsnap.linux.stalled import refuse_silent_file
from pyxlsnap.model import Disk, DiskRequest, SnapshotConfig, check_name
from pyxlsnap.text import readable, shortened
from pyxlsnap.xen import xlcfg

STRINGS: Final = ("name", "description", "memory", "memory_path")
LISTS: Final = ("disks",)
#: the strings that a config holds; "memory" says nothing, because the memory is always saved
_HELD: Final = ("name", "description", "memory_path")

#: bytes, enough for thousands of disks; libxlutil's time grows with the square of the size
SIZE_LIMIT: Final = 1 << 18

# libxlutil's lexer takes the longest match. No token here begins another: the order is free. Only
# names are needed, the rest is skipped. A name stands before = or += (libxlu_cfg_y.y).
_TOKEN: Final = re.compile(
    rb"""(?P<name>[a-z][._0-9a-z]*)
    |(?P<assign>\+?=)
    |[0-9][0-9a-fx]*|[ \t]|[,\[\];]|\n|\#.*\n
    |'(?:[^'\\\n]|\\.)*+'
    |"(?:[^"\\\n]|\\.)*+"
    """,
    re.VERBOSE,
)

#: bytes of a file shown in a message
_NEAR: Final = 20
_NEW: Final = "<new config file>"
_COMMENT: Final = """\
# Written by pyxlsnap: a snapshot of a Xen domain. To go back to it:
#   pyxlsnap snapshot-revert <domain> <this file>
# An item of disks is "external path,format,device", or ",,device" for an internal snapshot.
"""


def read(path: str | os.PathLike[str]) -> SnapshotConfig:
    """Read a config file.

    :param path: a regular file, or a symbolic link to one.
    :raises ConfigError: the file cannot be read, is not a regular file, is longer than
        :data:`SIZE_LIMIT`, or has content that :func:`parse` refuses.
    :raises Refused: its server does not answer.
    """
    file = os.fspath(path)
    refuse_silent_file(Path(file))
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

    An empty string has the same meaning as a missing setting, as in the specification's example.

    :param file: the file's name, for messages.
    :raises ConfigError: the content is wrong. The message names the first error: the syntax, an
        unknown or repeated key, the type of a value, the snapshot's name, or a disk.
    """
    _check_bytes(data, file)
    _check_tokens(data, file)
    _check_keys(data, file)
    values = xlcfg.parse_cfg(data, file=file, strings=STRINGS, lists=LISTS)
    _check_memory(_string(values, "memory"), file)
    return SnapshotConfig(
        name=_name(values, file),
        description=_string(values, "description"),
        memory_path=_string(values, "memory_path"),
        disks=_disks(values, file),
    )


def render(config: SnapshotConfig) -> str:
    """Make the text of a config file from ``config``.

    The text is parsed and compared with ``config`` before it is returned.

    :raises ConfigError: a config file cannot represent ``config``; ``file`` is "<new config file>".
    """
    _check_values(config)
    settings = [
        f"{key} = {_quote(value)}\n"
        for key in _HELD
        if (value := getattr(config, key))  # empty is the same as absent
    ]
    if config.disks is not None:
        items = "".join(f"    {_quote(disk_item.render(disk))},\n" for disk in config.disks)
        settings.append(f"disks = [\n{items}]\n")
    text = _COMMENT + "\n" + "".join(settings)
    _check_text(text, config)
    return text


def scan(data: bytes) -> Iterator[tuple[str, bool]]:
    """Find the settings in a text that has only valid tokens.

    :returns: for each setting, in order: its key, and whether it appends to a value (``+=``).
    """
    name = ""
    for token in _TOKEN.finditer(data):
        if token.lastgroup == "name":
            name = token["name"].decode("ascii")
        elif token.lastgroup == "assign" and name:  # libxlutil refuses a second = itself
            yield name, token["assign"] == b"+="
            name = ""


def _content(file: Path) -> bytes:
    # Checked before opening: to open a device may have an effect, and to open a fifo blocks.
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
        raise ConfigError(f"the file is longer than {SIZE_LIMIT} bytes", file=file)
    if b"\0" in data:  # a NUL in a string makes libxlutil abort the process
        raise ConfigError(f"there is a NUL byte at offset {data.index(0)}: remove it", file=file)
    try:
        data.decode()
    except UnicodeDecodeError as e:
        raise ConfigError(f"the text is not UTF-8 at offset {e.start}", file=file) from e


def _check_tokens(data: bytes, file: str) -> None:
    """Refuse an invalid token before libxlutil sees it.

    libxlutil would search from each later # or quote to the end of the file, for minutes in all.
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
            from difflib import get_close_matches  # only here: few commands need it

            near = get_close_matches(key, STRINGS + LISTS, n=1)
            hint = f"; did you mean {near[0]}?" if near else f": there are {_known()}"
            raise ConfigError(f"unknown key{hint}", file=file, item=shortened(key))
        if key in seen and not adds:
            raise ConfigError("the key is set twice: remove one", file=file, item=key)
        seen.add(key)


def _known() -> str:
    return f"{', '.join(STRINGS)} and {', '.join(LISTS)}"


def _check_memory(value: str | None, file: str) -> None:
    if value == "0":
        raise ConfigError(
            "a snapshot of the disks alone is not supported: remove the key, or shut the domain "
            "down and take the disk snapshots yourself (qemu-img snapshot, lvcreate)",
            file=file,
            item="memory",
        )
    if value not in (None, "1"):
        raise ConfigError(f"{shortened(value)!r} must be 1", file=file, item="memory")


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
            raise ConfigError(f"the device {disk.vdev} occurs twice", file=file, item="disks")
        found[disk.vdev] = disk
    return tuple(found.values())


def _disk(spec: str, file: str) -> DiskRequest:
    item = f"disk {shortened(spec)!r}"
    try:
        request = disk_item.parse(spec)
    except ValueError as e:
        raise ConfigError(str(e), file=file, item=item) from e
    # libxlutil returns raw for a missing format: only the text shows that there is none. Apart from
    # this, both readings of the text must agree.
    expected = Disk(request.vdev, request.path, request.format or "raw")
    if xlcfg.parse_disk(spec, file=file) != expected:
        raise ConfigError("the text is not in the form path,format,device", file=file, item=item)
    return request


def _quote(text: str) -> str:
    # These are the only usable escapes: libxlutil refuses \x.. and misreads octal escapes.
    for character, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        text = text.replace(character, escape)
    return f'"{text}"'


def _check_values(config: SnapshotConfig) -> None:
    values = {key: getattr(config, key) or "" for key in _HELD}
    values |= {f"disk {d.vdev!r}": d.path + d.format + d.vdev for d in config.disks or ()}
    for item, value in values.items():
        if "\0" in value:
            raise ConfigError("the text has a NUL character: remove it", file=_NEW, item=item)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{shortened(value)} is not UTF-8, but a cfgfile must be UTF-8: choose another",
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
        raise ConfigError("a config file cannot hold these values unchanged", file=file)
