"""Serial lines and channels of the QEMU of a restored domain: QEMU does not start without one.

How QEMU reads ``serial=`` is in ``qemu_chr_parse_compat`` (chardev/char.c). What is not known here
is left to QEMU.
"""

import os
import re
import stat
from collections.abc import Iterator

from pyxlsnap.guest.findings import Finding, refused, risky
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.guest.vnc import taken_by_another
from pyxlsnap.linux.stalled import stat_within
from pyxlsnap.linux.tcp import NO_ADDRESS, TAKEN, is_heard, is_ipv4, try_port
from pyxlsnap.model import DomainConfig, GuestKind
from pyxlsnap.text import shortened

_TCP = re.compile(r"(?:tcp|telnet|tn3270|websocket):([^:,]{0,64}):([0-9]{1,5})(?:,(.*))?", re.ASCII)
_SERVES = {"server", "server=on", "server=yes", "server=true", "server=y"}
_DOM0 = ("", "0", "Domain-0")


def examine_lines(config: DomainConfig, guest: Guest | None) -> Iterator[Finding]:
    """Find a line that QEMU could not open.

    :param guest: the domain that is destroyed before: its QEMU may have a port; ``None``: none.
    """
    for text in serial_lines(config):
        what = f"the domain's serial line {shortened(text)} cannot be opened: "
        if problem := _problem(text, guest):
            yield refused(what + problem)
        elif nobody := _nobody_there(text):
            yield risky(what + nobody)
    for channel in config.devices("channels"):
        at = channel.get("connection.socket")
        path = str(at.get("path") or "") if isinstance(at, dict) else ""
        backend = str(channel.get("backend_domname") or channel.get("backend_domid") or "")
        if backend in _DOM0 and (problem := _no_directory(path)):
            name = shortened(str(channel.get("name", "")))
            yield refused(f"the domain's channel {name} cannot be opened: {problem}")


def serial_lines(config: DomainConfig) -> list[str]:
    """The settings of a domain's serial lines; only an HVM guest has any."""
    hvm = config.section("b_info").get("type.hvm")
    if config.kind is not GuestKind.HVM or not isinstance(hvm, dict):
        return []
    several = hvm.get("serial_list")
    lines = (hvm.get("serial"), *(several if isinstance(several, list) else ()))
    return [str(line) for line in lines if line]


def _problem(text: str, guest: Guest | None) -> str:
    """Why QEMU could not open a serial line; "" if nothing is known."""
    kind, _, rest = text.partition(":")
    if text.startswith("/dev/"):
        return f"there is no {text}" if _is_missing(text) else ""
    if kind == "file":
        return _unwritable(rest)
    if kind == "unix" and ",," not in rest and "abstract" not in rest:  # (a comma in the path)
        path, _, options = rest.partition(",")
        if listens(options):
            return _no_directory(path)
        alone = path.startswith("/") and "reconnect" not in options and _is_missing(path)
        return f"there is no {path}: start the program that makes this socket" if alone else ""
    if found := _TCP.fullmatch(text):
        return _unbindable(found[1], int(found[2]), found[3] or "", guest)
    return ""


def listens(options: str) -> bool:
    """Whether QEMU listens at a line with these options; else it connects."""
    return not _SERVES.isdisjoint(options.split(","))


def _unbindable(address: str, port: int, options: str, guest: Guest | None) -> str:
    if not listens(options) or "to=" in options or not (is_ipv4(address) or not address):
        return ""
    error = try_port(address, port) if port < 1 << 16 else 0
    if error == NO_ADDRESS or (error == TAKEN and taken_by_another(guest, port)):
        return f"{os.strerror(error)}: free that port, or give this host that address"
    return ""


def _nobody_there(text: str) -> str:
    """A warning, if no program listens at the port of this host to which QEMU would connect."""
    found = _TCP.fullmatch(text)
    if not found or listens(found[3] or "") or "reconnect" in (found[3] or ""):
        return ""
    here = found[1] == "localhost" or (found[1].startswith("127.") and is_ipv4(found[1]))
    return "" if not here or is_heard(int(found[2])) else "no program listens there"


def _unwritable(path: str) -> str:
    """Why a file could not be written; "" if nothing is known."""
    if not path.startswith("/"):
        return ""
    if _is_missing(path):
        return _no_directory(path)
    if _is_directory(path):
        return f"{path} is a directory"
    return _read_only(path)


def _no_directory(path: str) -> str:
    """Why nothing could be made under a name; "" if nothing is known."""
    directory = os.path.dirname(path)  # noqa: PTH120
    if not path.startswith("/"):
        return ""
    if _is_directory(directory) is False:
        return f"there is no directory {directory}: make it"
    return _read_only(directory)


def _is_missing(path: str) -> bool:
    """Whether there is no such file for certain."""
    try:
        stat_within(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _is_directory(path: str) -> bool | None:
    """``None`` if that cannot be found out."""
    try:
        return stat.S_ISDIR(stat_within(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None


def _read_only(path: str) -> str:
    """A text, if root cannot write there; "" if nothing is known."""
    try:
        stat_within(path)
    except OSError:
        return ""
    return "" if os.access(path, os.W_OK) else f"{path} is read-only"
