"""The TCP ports of this host: who has them, and whether one can be had."""

import errno
import os
import socket
from collections.abc import Iterator

from pyxlsnap import paths

#: what bind or listen say if a port is taken, or if the host has no such address
TAKEN, NO_ADDRESS = errno.EADDRINUSE, errno.EADDRNOTAVAIL
_TABLES = ("tcp", "tcp6")
_LOCAL_ADDRESS, _STATE, _INODE = 1, 3, 9  # fields of their lines
_LISTENS = "0A"
_SOCKET = "socket:["


def is_ipv4(address: str) -> bool:
    """Whether this is an IPv4 address, and no name of one or several."""
    try:
        socket.inet_pton(socket.AF_INET, address)
    except (OSError, ValueError):
        return False
    return True


def try_port(address: str, port: int) -> int:
    """Listen there for a moment; the error number, 0 if that works.

    :param address: an IPv4 address; "": all of IPv4, or all of IPv6 if that fails.
    """
    error = _try(socket.AF_INET, address or "0.0.0.0", port)
    if error and not address and not _try(socket.AF_INET6, "::", port):
        return 0
    return error


def _try(family: int, address: str, port: int) -> int:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((address, port))
            tried.listen()
    except OSError as e:
        return e.errno or errno.EINVAL
    return 0


def is_heard(port: int) -> bool:
    """Whether any program of this host listens at a port; also if it cannot be found out."""
    try:
        tables = [_table(f"{paths.PROC}/self/net/{name}", listening=True) for name in _TABLES]
    except OSError:
        return True
    return any(port == found for table in tables for _, found in table)


def ports_of(pid: int) -> frozenset[int] | None:
    """The local ports of a process's sockets; ``None`` if it cannot be found out."""
    process = f"{paths.PROC}/{pid}"
    try:
        inodes = set(_sockets(f"{process}/fd"))
        tables = [_table(f"{process}/net/{name}") for name in _TABLES]
    except OSError:
        return None
    return frozenset(port for table in tables for inode, port in table if inode in inodes)


def _sockets(directory: str) -> Iterator[str]:
    """The inodes of the sockets that a process has open."""
    for number in os.listdir(directory):  # noqa: PTH208
        try:
            name = os.readlink(f"{directory}/{number}")  # noqa: PTH115
        except OSError:
            continue  # closed meanwhile
        if name.startswith(_SOCKET):
            yield name.removeprefix(_SOCKET).removesuffix("]")


def _table(path: str, *, listening: bool = False) -> list[tuple[str, int]]:
    """The inode and the local port of each socket; none if the kernel has no such protocol."""
    try:
        with open(path) as table:
            lines = [line.split() for line in table][1:]
    except FileNotFoundError:
        return []
    return [
        (words[_INODE], int(words[_LOCAL_ADDRESS].rpartition(":")[2], 16))
        for words in lines
        if len(words) > _INODE and (words[_STATE] == _LISTENS or not listening)
    ]
