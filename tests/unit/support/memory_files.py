"""Memory files as ``xl save`` writes them."""

import struct

from pyxlsnap.memory.header import MAGIC

CONFIG = '{\n    "c_info": {"name": "vm1"}\n}\n'


def xl_file(
    config: bytes = CONFIG.encode() + b"\0",
    *,
    magic: bytes = MAGIC,
    order: int = 0x01020304,
    flags: int = 3,
    length: int | None = None,
    tail: bytes = b"",
) -> bytes:
    """A file as ``xl save`` writes it, with the fields that a test wants to be different."""
    data = struct.pack("<I", len(config) if length is None else length) + config + tail
    return magic + struct.pack("<4I", order, flags, 0, len(data)) + data
