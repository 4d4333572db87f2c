"""The header of a memory file: what ``xl save`` puts before libxl's stream, and our metadata.

====================  ======================================================================
32 bytes              magic
u32                   byte order mark, 0x01020304
u32                   mandatory flags: bit 0, the configuration is JSON; bit 1, stream v2
u32                   optional flags, 0
u32                   length of the optional data, which is all that follows up to the stream:
u32, n bytes          length and text of the domain's configuration, with its trailing NUL
8 bytes               "pyxlsnap" (a file of ``xl save`` ends before this)
u32                   version of the metadata, 1
u32, u32              length of the metadata, and the CRC-32 of its bytes
n bytes               the metadata: a JSON object in UTF-8
0 to 7 bytes          zeros, so that the stream begins at a multiple of 8
====================  ======================================================================

All numbers are little-endian, like the streams: Xen saves domains on x86 only. ``xl restore``
ignores what follows the configuration (``save_file_header`` in tools/xl/xl.h: "skip, or skip
tail, if not understood"), so it can read our files.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import BinaryIO, Final

from pyxlsnap.errors import BadMemoryFile, UsageError
from pyxlsnap.memory.reader import Source
from pyxlsnap.model import DiskRequest, Metadata, RunState, check_name, check_text

MAGIC: Final = b"Xen saved domain, xl format\n \0 \r"
#: the header's numbers: byte order, mandatory flags, optional flags, length of the optional data
_FIXED: Final = struct.Struct("<4I")
_BYTE_ORDER: Final = 0x01020304
_SWAPPED: Final = 0x04030201
_FLAG_JSON: Final = 1
_FLAG_STREAM_V2: Final = 2
_LENGTH: Final = struct.Struct("<I")

#: the metadata's version; raised when an older pyxlsnap would read it wrongly
METADATA_VERSION: Final = 1
_OUR_MAGIC: Final = b"pyxlsnap"
#: our magic, version, length, CRC-32
_OURS: Final = struct.Struct("<8s3I")

#: A configuration has some 10 KiB. These bounds only keep a damaged file from costing memory:
#: parsed, JSON takes up to 30 times as much.
CONFIG_LIMIT: Final = 2 << 20
METADATA_LIMIT: Final = 1 << 20

_YEAR_10000: Final = 253402300800  # datetime ends there


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the stream of a memory file."""

    #: the domain's configuration, libxl_domain_config as JSON; known to be a JSON object
    config_json: str
    #: ours, or ``None`` for a file that ``xl save`` wrote
    metadata: Metadata | None
    #: where libxl's stream begins, in bytes from the beginning of the file
    stream_offset: int


def write_header(out: BinaryIO, *, config_json: str, metadata: Metadata) -> int:
    """Write the header; libxl's stream is to follow at once.

    :param out: a new, empty file, at its beginning.
    :param config_json: libxl_domain_config as JSON.
    :returns: the bytes written, a multiple of 8: the stream's offset.
    :raises UsageError: :func:`read_header` would refuse it. Nothing was written.
    :raises OSError: it could not be written; part of it may be.
    """
    config = _encode_config(config_json)
    ours = _encode_metadata(metadata)
    data = _LENGTH.pack(len(config)) + config + ours
    data += bytes(-(len(MAGIC) + _FIXED.size + len(data)) % 8)
    fixed = _FIXED.pack(_BYTE_ORDER, _FLAG_JSON | _FLAG_STREAM_V2, 0, len(data))
    header = MAGIC + fixed + data
    out.write(header)
    return len(header)


def read_header(f: BinaryIO, path: str) -> Header:
    """Read and check the header of a memory file, ours or one of ``xl save``.

    :param f: the file, seekable. Read from its beginning, wherever it stands; left at the
        stream's first byte, or anywhere after an error.
    :param path: its name, for messages.
    :raises BadMemoryFile: it is no memory file, is truncated or damaged, or was written by a
        program newer than this one.
    """
    source = Source(f, path, start=0)
    if source.read(min(len(MAGIC), source.left), "magic") != MAGIC:
        raise BadMemoryFile("not a memory file: it does not begin as xl save writes it", path=path)
    _, flags, _, data_length = _read_fixed(source)
    _check_flags(source, flags)
    end = source.offset + data_length
    if end > source.size:
        raise source.bad(f"truncated: the header ends at offset {end}, the file at {source.size}")
    config_json = _read_config(source, end)
    metadata = _read_metadata(source, end)
    source.skip(end - source.offset, "rest of the header")
    return Header(config_json, metadata, end)


def _encode_config(config_json: str) -> bytes:
    try:
        config = config_json.encode()
        _json_object(config)
    except ValueError as e:  # UnicodeEncodeError is one
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
    # As ASCII: \u escapes carry any path, even one whose name is not UTF-8 (os.fsdecode).
    data = json.dumps(values, indent=1).encode("ascii")
    try:
        _metadata_from(_json_object(data))
    except ValueError as e:
        raise UsageError(f"the snapshot's metadata: {e}") from e
    if len(data) > METADATA_LIMIT:
        raise UsageError(f"the snapshot's metadata is too long: {len(data)} bytes")
    return _OURS.pack(_OUR_MAGIC, METADATA_VERSION, len(data), zlib.crc32(data)) + data


def _read_fixed(source: Source) -> tuple[int, int, int, int]:
    order, flags, optional, data_length = _FIXED.unpack(source.read(_FIXED.size, "header"))
    if order == _SWAPPED:
        raise source.bad("saved on a machine of the other byte order", offset=len(MAGIC))
    if order != _BYTE_ORDER:
        raise source.bad(f"damaged byte order mark 0x{order:08x}", offset=len(MAGIC))
    return order, flags, optional, data_length


def _check_flags(source: Source, flags: int) -> None:
    unknown = flags & ~(_FLAG_JSON | _FLAG_STREAM_V2)
    at = len(MAGIC) + 4
    if unknown:
        raise source.bad(f"unknown mandatory flags 0x{unknown:x}: made by a newer xl?", offset=at)
    if not flags & _FLAG_JSON:
        raise source.bad("the domain's configuration in it is missing or not JSON", offset=at)
    if not flags & _FLAG_STREAM_V2:
        raise source.bad("the memory in it is in the legacy format of Xen 4.5", offset=at)


def _read_config(source: Source, end: int) -> str:
    what = "domain's configuration"
    if end - source.offset < _LENGTH.size:
        raise source.bad(f"the {what} is missing")
    (length,) = _LENGTH.unpack(source.read(_LENGTH.size, what))
    at = source.offset
    if length > min(end - at, CONFIG_LIMIT):
        raise source.bad(f"the {what} cannot have {length} bytes: damaged")
    text = source.read(length, what)
    # xl hands the bytes to a parser of C strings
    if not text or text.find(b"\0") != length - 1:
        raise source.bad(f"the {what} does not end with its only NUL: damaged", offset=at)
    try:
        _json_object(text[:-1])
        return text[:-1].decode()
    except ValueError as e:
        raise source.bad(f"the {what} is damaged: {e}", offset=at) from e


def _read_metadata(source: Source, end: int) -> Metadata | None:
    at = source.offset
    if end - at < _OURS.size:
        return None
    magic, version, length, crc = _OURS.unpack(source.read(_OURS.size, "metadata"))
    if magic != _OUR_MAGIC:
        return None
    if version > METADATA_VERSION:
        raise source.bad(f"made by a newer pyxlsnap (metadata version {version})", offset=at)
    if length > min(end - source.offset, METADATA_LIMIT):
        raise source.bad(f"pyxlsnap's metadata cannot have {length} bytes: damaged", offset=at)
    data = source.read(length, "metadata")
    try:
        if version < 1 or zlib.crc32(data) != crc:
            raise ValueError("wrong version or checksum")
        return _metadata_from(_json_object(data))
    except ValueError as e:
        raise source.bad(f"pyxlsnap's metadata is damaged: {e}", offset=at) from e


def _json_object(data: bytes) -> dict[str, object]:
    """Parse what must be a JSON object.

    :raises ValueError: it is not, it is not UTF-8, or it is nested without end.
    """
    try:
        found: object = json.loads(data.decode(), parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return _object(found, "the whole")


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _metadata_from(values: Mapping[str, object]) -> Metadata:
    """Check the types of a parsed metadata object; keys that are unknown are left for others.

    :raises ValueError: naming what is missing or wrong.
    """
    created = values.get("created")
    if type(created) is not int or not 0 <= created < _YEAR_10000:
        raise ValueError("created is not a time")
    return Metadata(
        # The name becomes part of file names: a forged one must not lead elsewhere.
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
