"""The header of a memory file: the header of ``xl save``, and the metadata of pyxlsnap.

====================  ======================================================================
32 bytes              magic
u32                   byte order mark, 0x01020304
u32                   mandatory flags: bit 0, the configuration is JSON; bit 1, stream v2
u32                   optional flags, 0
u32                   length of the optional data: everything from here to the stream:
u32, n bytes          the domain's configuration: its length, its text and a trailing NUL
8 bytes               "pyxlsnap" (not in a file of ``xl save``, nor what follows)
u32                   version of the metadata, 1
u32, u32              length of the metadata in bytes, and their CRC-32
n bytes               the metadata: a JSON object in UTF-8
n bytes               zeros: the first page record of the stream begins at a multiple of 1 MiB
                      (in older files 0 to 7 bytes: the stream begins at a multiple of 8)
====================  ======================================================================

All numbers are little-endian, as in the stream: Xen saves domains on x86 only. ``xl restore``
ignores the optional data after the configuration (``save_file_header`` in tools/xl/xl.h: "skip, or
skip tail, if not understood"), so ``xl restore`` can read a memory file of pyxlsnap.
"""

import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import BinaryIO, Final

from pyxlsnap.dataclass import dataclass
from pyxlsnap.errors import BadMemoryFile, UsageError
from pyxlsnap.memory.reader import Reader
from pyxlsnap.model import DiskRequest, Metadata, RunState, check_name, check_text

MAGIC: Final = b"Xen saved domain, xl format\n \0 \r"
#: the four numbers: byte order, mandatory flags, optional flags, length of the optional data
_FIXED: Final = struct.Struct("<4I")
_BYTE_ORDER: Final = 0x01020304
_SWAPPED: Final = 0x04030201
_FLAG_JSON: Final = 1
_FLAG_STREAM_V2: Final = 2
_LENGTH: Final = struct.Struct("<I")

#: version of the metadata; increase it when an older pyxlsnap would misread the metadata
METADATA_VERSION: Final = 1
_OUR_MAGIC: Final = b"pyxlsnap"
#: our magic, version, length, CRC-32
_OURS: Final = struct.Struct("<8s3I")

#: Limits in bytes. A usual configuration has about 10 KiB. Without the limits a damaged file could
#: use up the memory: JSON takes up to 30 times its size when it is parsed.
CONFIG_LIMIT: Final = 2 << 20
METADATA_LIMIT: Final = 1 << 20

#: the header and what the stream has before its first page end at a multiple of this, in bytes
ALIGNMENT: Final = 1 << 20

_YEAR_10000: Final = 253402300800  # datetime ends before this second


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a memory file."""

    #: the domain's configuration: libxl_domain_config as JSON, checked to be a JSON object
    config_json: str
    #: the metadata of pyxlsnap; ``None`` in a file of ``xl save``
    metadata: Metadata | None
    #: offset of libxl's stream, in bytes from the beginning of the file
    stream_offset: int


def write_header(
    out: BinaryIO, *, config_json: str, metadata: Metadata, before: int | None = None
) -> int:
    """Write the header. libxl's stream must follow directly.

    :param out: a new, empty file.
    :param config_json: libxl_domain_config as JSON.
    :param before: number of bytes that the stream has before its first page. The header becomes so
        long that these bytes end at a multiple of :data:`ALIGNMENT`. If it is not known, the stream
        begins at a multiple of 8.
    :returns: the size of the header. This is the offset of the stream, and the new position.
    :raises UsageError: :func:`read_header` would refuse this header. Nothing was written.
    :raises OSError: the header could not be written. A part of it may be in the file.
    """
    config = _encode_config(config_json)
    ours = _encode_metadata(metadata)
    data = _LENGTH.pack(len(config)) + config + ours
    length = len(MAGIC) + _FIXED.size + len(data)
    padding = -length % 8 if before is None else -(length + before) % ALIGNMENT
    fixed = _FIXED.pack(_BYTE_ORDER, _FLAG_JSON | _FLAG_STREAM_V2, 0, len(data) + padding)
    out.write(MAGIC + fixed + data + bytes(padding if before is None else 0))
    if before is not None:  # a hole, which takes no space
        out.seek(padding, os.SEEK_CUR)
    return length + padding


def read_header(f: BinaryIO, path: str) -> Header:
    """Read and check the header of a memory file of pyxlsnap or ``xl save``.

    :param f: the file, seekable. It is read from its beginning. Afterwards its position is the
        first byte of the stream; after an error, any position.
    :param path: the file's name, for messages.
    :raises BadMemoryFile: the file is not a memory file, is truncated or damaged, or was written by
        a newer version of xl or pyxlsnap.
    """
    reader = Reader(f, path, start=0)
    if reader.read(min(len(MAGIC), reader.left), "magic") != MAGIC:
        raise BadMemoryFile(
            "not a memory file: the file does not begin with the header of xl save", path=path
        )
    _, flags, _, data_length = _read_fixed(reader)
    _check_flags(reader, flags)
    end = reader.offset + data_length
    if end > reader.size:
        raise reader.bad(
            f"truncated: the header ends at offset {end}, but the file ends at {reader.size}"
        )
    config_json = _read_config(reader, end)
    metadata = _read_metadata(reader, end)
    reader.skip(end - reader.offset, "rest of the header")
    return Header(config_json, metadata, end)


def _encode_config(config_json: str) -> bytes:
    try:
        config = config_json.encode()
        _json_object(config)
    except ValueError as e:  # also UnicodeEncodeError
        raise UsageError(f"the domain's configuration is not JSON: {e}") from e
    if len(config) >= CONFIG_LIMIT:
        raise UsageError(f"the domain's configuration is too long: {len(config)} bytes")
    return config + b"\0"


def _encode_metadata(metadata: Metadata) -> bytes:
    values = {
        "name": metadata.name,
        "description": metadata.description,
        "created": metadata.created,
        "state": str(metadata.state),
        "disks": [asdict(disk) for disk in metadata.disks],
        "versions": dict(metadata.versions),
        "kinds": dict(metadata.kinds),
    }
    # In ASCII, because \u escapes can represent any path, also if it is not UTF-8 (os.fsdecode).
    data = json.dumps(values, indent=1).encode("ascii")
    try:
        _metadata_from(_json_object(data))
    except ValueError as e:
        raise UsageError(f"the snapshot's metadata cannot be stored: {e}") from e
    if len(data) > METADATA_LIMIT:
        raise UsageError(f"the snapshot's metadata is too long: {len(data)} bytes")
    return _OURS.pack(_OUR_MAGIC, METADATA_VERSION, len(data), zlib.crc32(data)) + data


def _read_fixed(reader: Reader) -> tuple[int, int, int, int]:
    order, flags, optional, data_length = _FIXED.unpack(reader.read(_FIXED.size, "header"))
    if order == _SWAPPED:
        raise reader.bad("saved on a machine with the other byte order", offset=len(MAGIC))
    if order != _BYTE_ORDER:
        raise reader.bad(f"damaged byte order mark 0x{order:08x}", offset=len(MAGIC))
    return order, flags, optional, data_length


def _check_flags(reader: Reader, flags: int) -> None:
    unknown = flags & ~(_FLAG_JSON | _FLAG_STREAM_V2)
    at = len(MAGIC) + 4
    if unknown:
        raise reader.bad(
            f"unknown mandatory flags 0x{unknown:x}: perhaps a newer xl wrote this file", offset=at
        )
    if not flags & _FLAG_JSON:
        raise reader.bad("the domain's configuration is missing or is not JSON", offset=at)
    if not flags & _FLAG_STREAM_V2:
        raise reader.bad("the memory is in the legacy format (Xen 4.5 and older)", offset=at)


def _read_config(reader: Reader, end: int) -> str:
    what = "domain's configuration"
    if end - reader.offset < _LENGTH.size:
        raise reader.bad(f"the {what} is missing")
    (length,) = _LENGTH.unpack(reader.read(_LENGTH.size, what))
    at = reader.offset
    if length > min(end - at, CONFIG_LIMIT):
        raise reader.bad(f"damaged: the {what} cannot have {length} bytes")
    text = reader.read(length, what)
    # xl parses the bytes as a C string.
    if not text or text.find(b"\0") != length - 1:
        raise reader.bad(
            f"damaged: the {what} must end with a NUL and have no other NUL", offset=at
        )
    try:
        _json_object(text[:-1])
        return text[:-1].decode()
    except ValueError as e:
        raise reader.bad(f"the {what} is damaged: {e}", offset=at) from e


def _read_metadata(reader: Reader, end: int) -> Metadata | None:
    at = reader.offset
    if end - at < _OURS.size:
        return None
    magic, version, length, crc = _OURS.unpack(reader.read(_OURS.size, "metadata"))
    if magic != _OUR_MAGIC:
        return None
    if version > METADATA_VERSION:
        raise reader.bad(
            f"a newer pyxlsnap wrote this file (metadata version {version}): use that version",
            offset=at,
        )
    if length > min(end - reader.offset, METADATA_LIMIT):
        raise reader.bad(f"damaged: pyxlsnap's metadata cannot have {length} bytes", offset=at)
    data = reader.read(length, "metadata")
    try:
        if version < 1 or zlib.crc32(data) != crc:
            raise ValueError("wrong version or checksum")
        return _metadata_from(_json_object(data))
    except ValueError as e:
        raise reader.bad(f"pyxlsnap's metadata is damaged: {e}", offset=at) from e


def _json_object(data: bytes) -> dict[str, object]:
    """Parse a JSON object.

    :raises ValueError: the data is not a JSON object, not UTF-8, or nested too deeply.
    """
    try:
        found: object = json.loads(data.decode(), parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return _object(found, "the content")


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not allowed in JSON")


def _metadata_from(values: Mapping[str, object]) -> Metadata:
    """Check the types of a parsed metadata object. Unknown keys are ignored.

    :raises ValueError: a value is missing or wrong; the message names this value.
    """
    created = values.get("created")
    if type(created) is not int or not 0 <= created < _YEAR_10000:
        raise ValueError("created is not a time")
    return Metadata(
        # The name becomes part of file names: a forged name must not lead to another directory.
        name=check_name(_text(values.get("name"), "name")),
        description=_text(values.get("description"), "description"),
        created=created,
        state=RunState(_text(values.get("state"), "state")),
        disks=tuple(_disk(item) for item in _list(values.get("disks"), "disks")),
        versions=_texts(values.get("versions"), "versions"),
        kinds=_texts(values.get("kinds", {}), "kinds"),
    )


def _texts(value: object, what: str) -> dict[str, str]:
    return {_text(k, what): _text(v, what) for k, v in _object(value, what).items()}


def _disk(value: object) -> DiskRequest:
    values = _object(value, "disk")
    texts = {key: _text(values.get(key), f"disk's {key}") for key in ("vdev", "path", "format")}
    return DiskRequest(**texts)


def _object(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not an object")
    return value


def _list(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is not a list")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is not a string")
    try:
        return check_text(value)
    except ValueError as e:
        raise ValueError(f"{what} {e}") from e
