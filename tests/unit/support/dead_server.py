"""A filesystem whose server does not answer: of FUSE, with the least of a server."""

import ctypes
import errno
import os
import select
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_IN = struct.Struct("IIQQIIII")  # fuse_in_header
_OUT = struct.Struct("IiQ")  # fuse_out_header
_ENTRY = struct.Struct("QQQQII QQQQQQ IIIIIIIIII")  # fuse_entry_out
_INIT, _LOOKUP, _GETATTR, _WRITE = 26, 1, 3, 16
_FOR_EVER = 1 << 40
#: a file in its directory
FILE = "file"


@contextmanager
def dead_server(where: Path, written: threading.Event | None = None) -> Iterator[int]:
    """Mount it; a descriptor of its directory, for a process.

    A stat of that does not return, and no write to :data:`FILE` there.

    :param written: set when a write has come to the server. (Any process may ask for attributes.)
    """
    if os.geteuid() or not Path("/dev/fuse").exists():
        pytest.skip("a filesystem of FUSE takes root, and /dev/fuse")
    where.mkdir()
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"dead", os.fsencode(where), b"fuse", 0, options.encode()):
        os.close(server)
        pytest.skip(f"no mount: {os.strerror(ctypes.get_errno())}")
    stop = os.eventfd(0)
    thread = threading.Thread(
        target=_serve, args=(server, stop, written or threading.Event()), daemon=True
    )
    thread.start()
    directory = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield directory
    finally:
        os.eventfd_write(stop, 1)
        thread.join()  # else it would read from whatever gets the number of its descriptor
        os.close(server)  # that ends all requests, so that umount waits for nobody
        os.close(stop)
        os.close(directory)
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def _serve(server: int, stop: int, written: threading.Event) -> None:
    """Answer as far as to the open of the directory and of the file; then be silent."""
    while server in select.select([server, stop], [], [])[0]:
        try:
            request = os.read(server, 1 << 17)
        except OSError:
            return
        _, opcode, unique, *_ = _IN.unpack_from(request)
        if opcode == _WRITE:
            written.set()
        if opcode in (_GETATTR, _WRITE):
            continue
        if opcode == _INIT:
            body = struct.pack("IIIIHHI", 7, 22, 0, 0, 0, 0, 4096)
            os.write(server, _OUT.pack(_OUT.size + len(body), 0, unique) + body)
        elif opcode == _LOOKUP:
            times = (0, 0, 0, 0, 0, 0, 0, 0)
            attributes = (2, *times, stat.S_IFREG | 0o600, 1, 0, 0, 0, 4096, 0)
            body = _ENTRY.pack(2, 0, _FOR_EVER, _FOR_EVER, 0, 0, *attributes)
            os.write(server, _OUT.pack(_OUT.size + len(body), 0, unique) + body)
        else:
            os.write(server, _OUT.pack(_OUT.size, -errno.ENOSYS, unique))
