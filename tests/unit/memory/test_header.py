"""The header of a memory file: round trips, files of ``xl save``, and damage."""

import io
import json
import struct
import zlib
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyxlsnap.errors import BadMemoryFile, UsageError
from pyxlsnap.memory import read_header, write_header
from pyxlsnap.memory.header import MAGIC
from pyxlsnap.model import DiskRequest, Metadata, RunState
from tests.unit.support.memory_files import CONFIG, xl_file

METADATA = Metadata(
    name="before-upgrade",
    description="kernel 6.1 → 6.12\n",
    created=1763845200,
    state=RunState.RUNNING,
    disks=(DiskRequest("xvda"), DiskRequest("xvdb", "/srv/b, old.qcow2", "qcow2")),
    versions={"pyxlsnap": "0.1.0", "xen": "4.17.7"},
)


def written(config_json: str = CONFIG, metadata: Metadata = METADATA) -> bytes:
    out = io.BytesIO()
    assert write_header(out, config_json=config_json, metadata=metadata) == len(out.getvalue())
    return out.getvalue()


def our_tail(values: object, *, version: int = 1, crc: int | None = None) -> bytes:
    data = values if isinstance(values, bytes) else json.dumps(values).encode()
    crc = zlib.crc32(data) if crc is None else crc
    return struct.pack("<8s3I", b"pyxlsnap", version, len(data), crc) + data


def refused(data: bytes) -> str:
    with pytest.raises(BadMemoryFile) as caught:
        read_header(io.BytesIO(data), "x.save")
    message = str(caught.value)
    assert message.startswith("x.save: ")
    assert "\n" not in message
    return message


_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
#: paths as os.fsdecode gives them, not all of them UTF-8
_PATHS = st.binary().map(lambda b: b.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
_NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_+.@:-]{0,60}", fullmatch=True)
_DISKS = st.lists(st.builds(DiskRequest, vdev=_TEXT, path=_PATHS, format=_TEXT)).map(tuple)
_METADATA = st.builds(
    Metadata,
    name=_NAMES,
    description=_TEXT,
    created=st.integers(0, 1 << 37),
    state=st.sampled_from(RunState),
    disks=_DISKS,
    versions=st.dictionaries(_TEXT, _TEXT),
    kinds=st.dictionaries(_TEXT, _TEXT),
)
_JSON = st.recursive(st.none() | st.booleans() | st.integers() | _TEXT, st.lists, max_leaves=5)


@given(st.dictionaries(_TEXT, _JSON), _METADATA, st.binary(max_size=40))
def test_what_is_written_is_read(
    config: dict[str, object], metadata: Metadata, stream: bytes
) -> None:
    text = json.dumps(config, ensure_ascii=False)
    data = written(text, metadata)
    f = io.BytesIO(data + stream)
    header = read_header(f, "x")
    assert (header.config_json, header.metadata) == (text, metadata)
    assert header.stream_offset == f.tell() == len(data)
    assert header.stream_offset % 8 == 0
    assert f.read() == stream


def test_the_layout_is_that_of_xl() -> None:
    data = written()
    assert data[:32] == b"Xen saved domain, xl format\n \0 \r"
    order, mandatory, optional, length, config_length = struct.unpack_from("<5I", data, 32)
    assert (order, mandatory, optional) == (0x01020304, 3, 0)
    assert len(data) == 48 + length
    assert data[52 : 52 + config_length] == CONFIG.encode() + b"\0"


def test_a_mapping_of_any_kind_is_written() -> None:
    metadata = replace(METADATA, versions=MappingProxyType({"xen": "4.17"}))
    found = read_header(io.BytesIO(written(metadata=metadata)), "x").metadata
    assert found is not None
    assert found.versions == {"xen": "4.17"}


@pytest.mark.parametrize("tail", [b"", b"\0" * 7, b"other tool's data", b"pyxlsna\0" + bytes(99)])
def test_a_file_of_xl_save_has_no_metadata(tail: bytes) -> None:
    header = read_header(io.BytesIO(xl_file(tail=tail) + b"stream"), "x")
    assert header.config_json == CONFIG
    assert header.metadata is None
    assert header.stream_offset == len(xl_file(tail=tail))


def test_is_read_from_the_beginning() -> None:
    f = io.BytesIO(written())
    f.seek(20)
    assert read_header(f, "x").metadata == METADATA


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a memory file"),
        (b"Xen saved", "not a memory file"),
        (xl_file(magic=b"libvirt-xml\n \0 \r" * 2), "not a memory file"),
        (xl_file()[:40], "truncated"),
        (xl_file(order=0x04030201), "other byte order"),
        (xl_file(order=0x01020305), "byte order mark"),
        (xl_file(flags=7), "unknown mandatory flags 0x4"),
        (xl_file(flags=2), "not JSON"),
        (xl_file(flags=1), "legacy"),
        (MAGIC + struct.pack("<4I", 0x01020304, 3, 0, 0), "configuration is missing"),
        (xl_file(length=1 << 30), "cannot have"),
        (xl_file(length=len(CONFIG) + 2) + b"the stream", "cannot have"),
        (xl_file(b""), "NUL"),
        (xl_file(b"{}"), "NUL"),
        (xl_file(b"{}\0\0"), "NUL"),
        (xl_file(b"[]\0"), "not an object"),
        (xl_file(b"{\0"), "damaged"),
        (xl_file(b'{"a": "\xff"}\0'), "damaged"),
        (xl_file(b'{"a": NaN}\0'), "NaN"),
        (xl_file(b'{"a": ' + b"9" * 5000 + b"}\0"), "damaged"),
        (xl_file(b'{"a":' * 200_000 + b"\0"), "nested too deeply"),
        (xl_file(b"[" * 200_000 + b"\0"), "nested too deeply"),
        (xl_file(b"{" + b" " * (2 << 20) + b"}\0"), "cannot have"),
    ],
)
def test_damage_is_named(data: bytes, says: str) -> None:
    assert says in refused(data)


def test_an_optional_length_beyond_the_file() -> None:
    data = MAGIC + struct.pack("<4I", 0x01020304, 3, 0, 0xFFFFFFFF) + bytes(100)
    assert "truncated" in refused(data)


def test_truncation_at_every_byte_is_refused() -> None:
    data = written()
    for end in range(len(data)):
        refused(data[:end])


def values(**changes: object) -> dict[str, object]:
    good: dict[str, object] = {
        "name": "n",
        "description": "",
        "created": 1,
        "state": "paused",
        "disks": [{"vdev": "xvda", "path": "", "format": ""}],
        "versions": {},
    }
    return {**good, **changes}


def test_unknown_keys_in_the_metadata_are_passed_over() -> None:
    metadata = read_header(io.BytesIO(xl_file(tail=our_tail(values(later=[1])))), "x").metadata
    assert metadata == Metadata("n", "", 1, RunState.PAUSED, (DiskRequest("xvda"),), {})


@pytest.mark.parametrize(
    "bad",
    [
        *({k: v for k, v in values().items() if k != missing} for missing in values()),
        values(name=5),
        values(name=""),
        values(name="../../etc/passwd"),
        values(description=None),
        values(description="a\0b"),
        values(created="1"),
        values(created=True),
        values(created=1.5),
        values(created=-1),
        values(created=10**20),
        values(state="crashed"),
        values(state=None),
        values(disks={}),
        values(disks=["xvda"]),
        values(disks=[{"vdev": "xvda"}]),
        values(disks=[{"vdev": "xvda", "path": 3, "format": ""}]),
        values(disks=[{"vdev": "xvda", "path": "\ud800", "format": "raw"}]),
        values(versions=[]),
        values(versions={"xen": 4}),
        values(kinds=[]),
        values(kinds={"xvda": 4}),
        [],
        None,
        b"",
        b"{",
        b"\xff",
        b"[" * 200_000,
    ],
)
def test_damaged_metadata(bad: object) -> None:
    assert "metadata is damaged" in refused(xl_file(tail=our_tail(bad)))


def test_metadata_with_a_wrong_checksum_or_version() -> None:
    assert "checksum" in refused(xl_file(tail=our_tail(values(), crc=1)))
    assert "damaged" in refused(xl_file(tail=our_tail(values(), version=0)))
    assert "newer pyxlsnap" in refused(xl_file(tail=our_tail(b"who knows", version=2, crc=0)))


@pytest.mark.parametrize("length", [2, 1 << 20, (1 << 20) + 1, 0xFFFFFFFF])
def test_metadata_with_a_length_that_lies(length: int) -> None:
    tail = struct.pack("<8s3I", b"pyxlsnap", 1, length, 0) + b"{"
    assert "cannot have" in refused(xl_file(tail=tail) + bytes(2 << 20))


@pytest.mark.parametrize(
    ("config", "metadata"),
    [
        ("", METADATA),
        ("[]", METADATA),
        ("{", METADATA),
        ('{"a": "\ud800"}', METADATA),
        ('{"a": "' + "x" * (16 << 20) + '"}', METADATA),
        (CONFIG, replace(METADATA, name="no/name")),
        (CONFIG, replace(METADATA, description="a\0b")),
        (CONFIG, replace(METADATA, description="x" * (1 << 20))),
        (CONFIG, replace(METADATA, created=-1)),
    ],
)
def test_nothing_unreadable_is_written(config: str, metadata: Metadata) -> None:
    out = io.BytesIO()
    with pytest.raises(UsageError):
        write_header(out, config_json=config, metadata=metadata)
    assert not out.getvalue()


def survives(data: bytes) -> None:
    try:
        read_header(io.BytesIO(data), "x")
    except BadMemoryFile:
        pass


def test_any_flipped_bit_survives() -> None:
    data = written()
    for at in range(len(data)):
        for bit in range(8):
            survives(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])


def test_no_flipped_bit_in_the_metadata_goes_unnoticed() -> None:
    data = written()
    start = data.index(b"pyxlsnap")
    end = data.rindex(b"}") + 1
    for at in range(start + 8, end):
        for bit in range(8):
            refused(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=300)
def test_random_bytes_survive(noise: bytes, with_magic: bool) -> None:
    survives(xl_file()[:48] + noise if with_magic else noise)
