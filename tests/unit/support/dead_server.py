"""A filesystem whose server does not answer: of FUSE, with the least of a server."""

import ctypes
import errno
import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_IN = struct.Struct("IIQQIIII")  # fuse_in_header
_OUT = struct.Struct("IiQ")  # fuse_out_header
_INIT, _GETATTR = 26, 3


@contextmanager
def dead_server(where: Path) -> Iterator[int]:
    """Mount it; a descriptor of its directory, for a process. A stat of that does not return."""
    if os.geteuid() or not Path("/dev/fuse").exists():
        pytest.skip("a filesystem of FUSE takes root, and /dev/fuse")
    where.mkdir()
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"dead", os.fsencode(where), b"fuse", 0, options.encode()):
        os.close(server)
        pytest.skip(f"no mount: {os.strerror(ctypes.get_errno())}")
    threading.Thread(target=_serve, args=(server,), daemon=True).start()
    directory = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield directory
    finally:
        # (umount waits for nobody then.)
        for connection in Path("/sys/fs/fuse/connections").glob("*/abort"):
            if connection.parent.name == str(_minor(where)):
                connection.write_text("1")
        os.close(directory)
        subprocess.run(["umount", "--lazy", str(where)], check=True)
        os.close(server)


def _minor(where: Path) -> int:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[4] == str(where):
            return int(words[2].partition(":")[2])
    raise AssertionError(where)


def _serve(server: int) -> None:
    """Answer as far as to the open of the directory; then be silent."""
    while True:
        try:
            request = os.read(server, 1 << 17)
        except OSError:
            return
        if not request:
            return
        _, opcode, unique, *_ = _IN.unpack_from(request)
        if opcode == _GETATTR:
            continue
        if opcode == _INIT:
            body = struct.pack("IIIIHHI", 7, 22, 0, 0, 0, 0, 4096)
            os.write(server, _OUT.pack(_OUT.size + len(body), 0, unique) + body)
        else:
            os.write(server, _OUT.pack(_OUT.size, -errno.ENOSYS, unique))
