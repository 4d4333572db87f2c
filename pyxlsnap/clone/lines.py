"""Serial lines and channels of a clone: where QEMU would listen, write, or connect to.

QEMU removes what has the path of a socket on which it is to listen, and empties a file that it is
to write. So a path that somebody else uses is refused.
"""

import os
import socket
from collections.abc import Collection, Iterator
from pathlib import Path

from pyxlsnap.clone.identity import SOCKET_LIMIT
from pyxlsnap.dataclass import dataclass
from pyxlsnap.errors import Refused
from pyxlsnap.guest.lines import listens, serial_lines
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.there import lexists
from pyxlsnap.model import DomainConfig
from pyxlsnap.text import shortened

#: serial lines of QEMU that any number of domains can have
_HARMLESS = ("pty", "null", "none", "vc", "stdio", "ringbuf")
_ANSWER_S = 1.0


@dataclass(frozen=True, slots=True)
class _Line:
    """A line with a path of its own."""

    what: str
    path: str
    is_socket: bool
    #: QEMU makes the socket and listens; else it connects
    listens: bool


def files_of(config: DomainConfig) -> list[str]:
    """The files that QEMU writes for serial lines."""
    lines = [line for line in _with_path(config) if not line.is_socket]
    return list(dict.fromkeys(line.path for line in lines if Path(line.path).is_absolute()))


def sockets_of(config: DomainConfig) -> list[str]:
    """The sockets on which QEMU listens for lines."""
    return [line.path for line in _with_path(config) if line.is_socket and line.listens]


def shared_lines(saved: DomainConfig, own: DomainConfig) -> Iterator[str]:
    """A clause for each line of a clone that it would share with the saved domain."""
    then = set(serial_lines(saved))
    paths = {line.path for line in _with_path(saved)}
    for text in serial_lines(own):
        if not _own_path(text) and text.partition(":")[0] not in _HARMLESS and text in then:
            yield f"the serial line {shortened(text)}"
    for line in _with_path(own):
        if line.path in paths:
            yield f"{line.what} ({line.path})"
        if line.is_socket and len(os.fsencode(line.path)) > SOCKET_LIMIT:
            yield f"nothing, but the path of {line.what} is too long for a socket ({line.path})"


@refusing_os_errors()
def refuse_taken_lines(own: DomainConfig, ours: Collection[str] = ()) -> None:
    """Refuse a line whose path another program has, or to which nobody listens.

    :param ours: files and sockets of the clone that is replaced.
    :raises Refused: the message names the path.
    """
    for line in _with_path(own):
        if problem := _problem(line, ours):
            raise Refused(f"the clone {own.name} cannot have {line.what}: {line.path} {problem}")


def _problem(line: _Line, ours: Collection[str]) -> str:
    if line.is_socket and not line.listens:
        heard = _is_socket(line.path) and _is_heard(line.path)
        return "" if heard else "has no program that listens there: start the program first"
    if line.path in ours or not lexists(line.path):
        return ""
    if line.is_socket and _is_socket(line.path) and not _is_heard(line.path):
        return ""  # a QEMU that ended has left the socket
    return "exists, and QEMU would replace its content: move it away, or choose another name"


def _is_socket(path: str) -> bool:
    return Path(path).is_socket()


def _is_heard(path: str) -> bool:
    """Whether a program listens on a socket; also if it is too busy to answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(_ANSWER_S)
        try:
            asking.connect(path)
        except ConnectionRefusedError:
            return False
        except TimeoutError:
            return True
    return True


def _with_path(config: DomainConfig) -> list[_Line]:
    found = []
    for text in serial_lines(config):
        kind, path, options = _parts(text)
        if _own_path(text):
            found.append(_Line("its serial line", path, kind == "unix", listens(options)))
    for channel in config.devices("channels"):
        at = channel.get("connection.socket")
        if isinstance(at, dict) and at.get("path"):
            name = channel.get("name", "")
            found.append(_Line(f"its channel {name}", str(at["path"]), True, True))
    return found


def _own_path(text: str) -> bool:
    return text.startswith(("unix:", "file:"))


def _parts(text: str) -> tuple[str, str, str]:
    kind, _, rest = text.partition(":")
    # (QEMU reads no options of a file.)
    path, _, options = (rest, "", "") if kind == "file" else rest.partition(",")
    return kind, path and str(Path("/") / path), options  # a worker's QEMU begins in /
