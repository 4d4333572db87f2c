"""The first inputs of the fuzzer: valid files, the words of both formats, ways to change them."""

import io
import json
import os
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from pyxlsnap import cfgfile
from pyxlsnap.memory import write_header
from pyxlsnap.memory.header import MAGIC
from pyxlsnap.model import Disk, DiskRequest, Metadata, RunState, SnapshotConfig
from tests.unit.support import streams
from tests.unit.support.guest import config_of

#: a folder for each target, with the inputs that failed in the past
CORPUS = Path(__file__).with_name("corpus")

#: In an input: the logarithm of the number of zeros that the file has here instead. So the input
#: remains small, and a huge length can match the size of the file.
HOLE = re.compile(rb"--hole([\x00-\x2c])--")

_FIXED = struct.Struct("<4I")
_OURS = struct.Struct("<8s3I")
_REPEATS = 17

#: the replacements for a value in JSON
_VALUES: Final[tuple[object, ...]] = (
    *(None, True, 0, -1, 1e308, 10**30, [], {}, [None], {"": {}}),
    *("", "\0", "\ud800", "\udcff", "a\nb", "/" + "x" * 5000, "True", "1", "pvh", "paused"),
)

CFGFILE_WORDS = rb"""
    name description memory_path disks = += [ ] # ; , ',,hda' '/a,raw,hda' "" \n \" \\ \x41 \101
    vdev= format= target= access= script= backend= raw qcow2 empty cdrom discard w phy: file:
""".split()
MEMORY_WORDS = [
    *(b"--hole\x08--", b"--hole\x14--", b"--hole\x1f--", b"--hole\x2c--"),
    *(b"\0\0\0\x80", b"\0\0\xff\0", b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff"),
    *rb"""LibxlFmt pyxlsnap "c_info" "b_info" "disks" "nics" "uuid" "name" "type" "vdev" "pdev_path"
    "format" "readwrite" "bridge" "kernel" "created" "versions" "state" "path" null true 1e999 -1
    [] {} "" NaN \u0000 \ud800 \n""".split(),
]


def cfgfiles() -> list[bytes]:
    """Valid config files: of pyxlsnap, from the specification, and similar files."""
    disks = (DiskRequest("xvda"), DiskRequest("xvdb", "/srv/b.qcow2", "qcow2"))
    odd = DiskRequest("xvdc", "/srv/a, b,", "raw")
    ours = SnapshotConfig("before", 'two\n"lines" \\', "/m.save", (*disks, odd))
    return [
        cfgfile.render(ours).encode(),
        b"name=\"\"\ndisks=['/tmp/a.qcow2,qcow2,hda',\n  '/b,qcow2,hdb',]\n",
        b"name='n' ; description=\"a\\nb\"\nmemory_path='/m'\ndisks=[]",
        b"name='a'\ndisks=[',,hda']\nname+='b'\ndisks+=[',,hdb'] # c\n",
        b"disks=['vdev=xvda,format=qcow2,target=/a,b']\n",
    ]


def memory_files() -> list[bytes]:
    """Memory files of pyxlsnap and of xl, of all kinds of guests, some with holes."""
    guests = {
        "pv": streams.pv_stream((0, 0xF)),
        "pvh": streams.stream(2, streams.hvm_records([streams.page_data((0,))])),
        "hvm": streams.hvm_stream((0, 0xD)),
    }
    found = [_header(kind) + stream for kind, stream in guests.items()]
    header, _, _ = found[2].partition(b"pyxlsnap")  # as xl writes it
    found += [repaired(header + hole + guests["hvm"]) for hole in (b"", b"--hole\x1f--")]
    optional = streams.record(0x80000001, b"x" * 8)
    live = streams.stream(
        2, streams.hvm_records([optional, streams.page_data((0,))] * 2, version=2), version=2
    )
    found += [_header("hvm") + live, found[2] + b"--hole\x1f--"]
    return [*found, *(_header("hvm") + claims for claims in _claims())]


def _claims() -> list[bytes]:
    """Streams with huge lengths, in files that have these lengths."""
    pfns = 15 << 20
    pages = struct.pack("<4I", 1, 8 + 8 * pfns, pfns, 0) + b"--hole\x1f--"
    before = streams.stream(2, [*streams.hvm_records([])[:3], pages])
    hvm = streams.hvm_stream()
    at = hvm.index(streams.emulator(2, b"key\0value\0"))
    xenstore = hvm[:at] + struct.pack("<4I", 2, 15 << 20, 2, 0) + b"--hole\x1f--"
    return [before, xenstore]


def _header(kind: str) -> bytes:
    disks = (
        Disk("xvda", "/srv/a.qcow2", "qcow2", "qdisk"),
        Disk("xvdb", "/srv/b.raw", "raw", "phy"),
        Disk("hdc", "", "empty", cdrom=True, readwrite=False),
    )
    metadata = Metadata(
        name="before",
        description="two\nlines",
        created=1763845200,
        state=RunState.RUNNING,
        disks=(DiskRequest("xvda"), DiskRequest("xvdb", "/srv/b.qcow2", "qcow2")),
        versions={"pyxlsnap": "0.1.0", "xen": "4.17.7"},
    )
    config = config_of(*disks, kind=kind)
    out = io.BytesIO()
    write_header(out, config_json=config.json, metadata=metadata)
    return out.getvalue()


def repaired(data: bytes, change: Callable[[bytes], bytes] = lambda text: text) -> bytes:
    """A memory file with changed JSON, and with correct lengths and checksum in its header.

    The fuzzer's own changes of a header hardly get beyond these.
    """
    begin, stream = len(MAGIC) + _FIXED.size + 4, data.find(b"LibxlFmt")
    end = data.find(b"\0", begin, stream)
    if not data.startswith(MAGIC) or stream < 0 or end < 0:
        return data
    order, flags, optional, _ = _FIXED.unpack_from(data, len(MAGIC))
    config, rest = change(data[begin:end]) + b"\0", data[end + 1 : stream]
    if rest.startswith(b"pyxlsnap") and len(rest) >= _OURS.size:
        values = change(rest[_OURS.size :].rstrip(b"\0"))
        version = _OURS.unpack_from(rest)[1]
        rest = _OURS.pack(b"pyxlsnap", version, len(values), zlib.crc32(values)) + values
    body = struct.pack("<I", len(config)) + config + rest
    holes = sum((1 << hole[1][0]) - len(hole[0]) for hole in HOLE.finditer(body))
    fixed = _FIXED.pack(order, flags, optional, (len(body) + holes) & 0xFFFFFFFF)
    return data[: len(MAGIC)] + fixed + body + data[stream:]


def _other_value(text: bytes, chance: random.Random) -> bytes:
    """JSON in which, half the time, one value was changed; the same data if this is impossible."""
    try:
        values = json.loads(text)
        places = list(_places(values))
        if not places or chance.random() < 0.5:
            return text
        container, key = chance.choice(places)
        container[key] = chance.choice(_VALUES)
        return json.dumps(values).encode()
    except (ValueError, RecursionError):
        return text


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    """Every nested value, as its container and its key in the container."""
    todo = [values]
    while todo:
        container = todo.pop()
        if isinstance(container, dict | list):
            keys = container if isinstance(container, dict) else range(len(container))
            yield from ((container, key) for key in keys)
            todo += [container[key] for key in keys]


def repaired_otherwise(data: bytes, chance: random.Random) -> bytes:
    """A memory file from :func:`repaired` in which some JSON values were changed."""
    return repaired(data, lambda text: _other_value(text, chance))


def mutator(
    change: Callable[[bytes, int], bytes], repair: Callable[[bytes, random.Random], bytes]
) -> Callable[[bytes, int, int], bytes]:
    """The fuzzer's own changes, and two more: to repeat a part many times, and to repair the file.

    :param change: the fuzzer's own.
    """

    def mutate(data: bytes, limit: int, seed: int) -> bytes:
        chance = random.Random(seed)
        how = chance.random()
        if how < 0.05:
            return _repeated(data, chance)[:limit]
        changed = data if how < 0.3 else change(data, limit)
        whole = repair(changed, chance) if how < 0.6 else changed
        return whole if len(whole) <= limit else changed

    return mutate


def _repeated(data: bytes, chance: random.Random) -> bytes:
    """Deeply nested or long input, which shows a cost that grows faster than the input."""
    at = chance.randint(0, len(data))
    part = data[at : at + chance.randint(1, 8)]
    return data[:at] + part * (1 << chance.randrange(_REPEATS)) + data[at:]


def write(fd: int, data: bytes) -> None:
    """Write an input into a file; a hole in the input becomes a hole in the file."""
    os.ftruncate(fd, 0)
    at, begin = 0, 0
    for hole in HOLE.finditer(data):
        os.pwrite(fd, data[begin : hole.start()], at)
        at += hole.start() - begin + (1 << hole[1][0])
        begin = hole.end()
    os.pwrite(fd, data[begin:], at)
    os.ftruncate(fd, at + len(data) - begin)
