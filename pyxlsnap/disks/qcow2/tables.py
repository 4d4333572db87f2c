"""How long a snapshot inside a qcow2 image takes, and whether its file is whole: by its tables.

QEMU walks the L2 tables of the disk, and counts one more reference (one less in a delete) of each
cluster. The counts are in refcount blocks, of which QEMU has four in its cache. Where the disk was
written in a random order, almost every cluster needs another block, and QEMU writes an old one for
it. Measured with QEMU 7.2, all in the page cache, 256 GiB of which 10 % were written: in order,
0.1 to 0.5 s for a snapshot and for its delete; at random, 37 s and 233 s, and 306 s for
``qemu-img snapshot -a``; the same at random, with all blocks in the cache, 0.2 to 0.9 s each.
"""

import os
import stat
import struct
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.qcow2.tags import MAGIC, entries

# as measured; a decrease has QEMU flush the image each time that a block leaves its cache
_TABLE_S = 0.3e-3
_CLUSTER_S = 0.8e-6
_MORE_S, _LESS_S = 0.15e-3, 0.8e-3
#: QEMU's refcount blocks in the cache, if nothing is said
_CACHED = 4
#: blocks that a cache gets beyond those that the image has
_SPARE = 16
_MOST_CACHE = 64 << 20  # enough for 2 TiB of clusters
_SAMPLES = 64
_MOST_L1 = 32 << 20  # bytes; QEMU's own limit
_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_EXTENDED = 1 << 4
_DATA_FILE = 1 << 2
#: of an entry: it reads as zeros; of the bitmap of an extended one: subclusters that have data
_ZERO, _ALLOCATED = 1, 0xFFFFFFFF
_REFERENCES_AT = 48  # in the header: the table of the reference counts
_READ_S = 5.0
_HEADER = struct.Struct(">4sIQIIQIIQ")


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one snapshot inside an image, or of its delete."""

    #: L2 tables
    tables: int = 0
    #: clusters with data
    clusters: int = 0
    #: how often QEMU needs a refcount block that its cache does not have
    misses: int = 0
    #: seconds that the reading of one L2 table took here
    read_s: float = 0.0
    #: size of a refcount cache with which there are no misses, bytes
    cache: int = 0

    def seconds(self, *, delete: bool = False) -> float:
        """The expected time in a guest's QEMU, seconds.

        :param delete: of the delete of the snapshot.
        """
        miss_s, table_s = _LESS_S if delete else _MORE_S, max(_TABLE_S, self.read_s)
        return self.tables * table_s + self.clusters * _CLUSTER_S + self.misses * miss_s


@dataclass(frozen=True, slots=True)
class _Image:
    """What the header of an image says."""

    cluster_bits: int
    l1_at: int
    l1_entries: int
    #: 64-bit words of an entry of an L2 table
    words: int
    #: clusters that a refcount block counts
    counted: int
    size: int

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits

    def host_offset(self, entry: int) -> int:
        """Where an entry's cluster begins in the file."""
        if entry & _COMPRESSED:
            return entry & ((1 << (62 - (self.cluster_bits - 8))) - 1)
        return entry & _OFFSET

    def block_of(self, entry: int) -> int:
        """The refcount block that counts an entry's cluster."""
        return (self.host_offset(entry) >> self.cluster_bits) // self.counted


def work_of(path: Path, snapshot: str = "") -> Work:
    """The work of a snapshot inside an image; no work if the file is no such image.

    Reads a sample of the tables, 64 at the most. A QEMU that has the image open may have newer
    tables in its memory.

    :param snapshot: one that the image has; "" for a new one.
    :raises OSError: the image cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        image = _image(file)
        if image is None:
            return Work()
        found = _l1_of(file, snapshot) if snapshot else None
        at, entries = found or (image.l1_at, image.l1_entries)
        l1 = _words(os.pread(file.fileno(), min(entries * 8, _MOST_L1), at & _OFFSET))
        return _work(file, image, [entry & _OFFSET for entry in l1 if entry & _OFFSET])


def is_cut_off(path: Path) -> bool:
    """Whether an image's file ends before data that its tables name. QEMU reads zeros there.

    The reference counts tell the last cluster that is in use. Only if that is behind the end, all
    tables of the disk are read, for some seconds at most: nothing may refer to the cluster, if a
    QEMU was killed while it wrote. That the last cluster is not whole is usual.

    :raises OSError: the image cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        image = _image(file)
        if image is None or _has_data_file(file) or _last_counted(file, image) < image.size:
            return False
        end = time.monotonic() + _READ_S
        for at in _places(file, image):
            if at >= image.size or time.monotonic() > end:
                return at >= image.size
    return False


def has_data_file(path: Path) -> bool:
    """Whether an image has its data in a file of their own, which its header names.

    :raises OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        return _image(file) is not None and _has_data_file(file)


def _has_data_file(file: BinaryIO) -> bool:
    header = os.pread(file.fileno(), 80, 0).ljust(80, b"\0")
    version, features = struct.unpack(">4xI64xQ", header)
    return version > 2 and bool(features & _DATA_FILE)


def _last_counted(file: BinaryIO, image: _Image) -> int:
    """Where the last cluster with references begins; or a table of such counts that is cut off."""
    at, clusters = struct.unpack(">QI", os.pread(file.fileno(), 12, _REFERENCES_AT))
    size = min(clusters * image.cluster, _MOST_L1)
    table = _words(os.pread(file.fileno(), size, at))
    if len(table) * 8 < size:
        return image.size
    bits = image.cluster * 8 // image.counted
    for number, entry in reversed(list(enumerate(table))):
        counts = os.pread(file.fileno(), image.cluster, entry & _OFFSET) if entry else b""
        if entry and len(counts) < image.cluster:
            return image.size
        if used := counts.rstrip(b"\0"):
            within = (used[-1].bit_length() - 1) if bits < 8 else 0
            return (number * image.counted + ((len(used) - 1) * 8 + within) // bits) * image.cluster
    return 0


def _places(file: BinaryIO, image: _Image) -> Iterator[int]:
    """Where each table of the disk begins, and the last cluster with data that it names.

    For a table that is cut off, the end of the file.
    """
    if image.l1_entries:
        yield image.l1_at
    l1 = _words(os.pread(file.fileno(), min(image.l1_entries * 8, _MOST_L1), image.l1_at))
    for at in (entry & _OFFSET for entry in l1 if entry & _OFFSET):
        yield at
        table = _words(os.pread(file.fileno(), image.cluster, at))
        if len(table) * 8 < image.cluster:
            yield image.size
        yield max((_data_at(n, table, image) for n in range(0, len(table), image.words)), default=0)


def _data_at(number: int, table: list[int], image: _Image) -> int:
    """Where the data of an entry begins; 0 if it has none."""
    entry = table[number]
    if entry & _COMPRESSED:
        return image.host_offset(entry)
    has_data = table[number + 1] & _ALLOCATED if image.words > 1 else not entry & _ZERO
    return entry & _OFFSET if has_data else 0


def _work(file: BinaryIO, image: _Image, used: list[int]) -> Work:
    samples = used[:: -(-len(used) // _SAMPLES)] if used else []
    began = time.monotonic()
    tables = [os.pread(file.fileno(), image.cluster, at) for at in samples]
    read_s = (time.monotonic() - began) / max(len(samples), 1)
    entries = [_clusters(table, image) for table in tables]
    scale = len(used) / max(len(samples), 1)
    blocks = -(-image.size // (image.cluster * image.counted))
    return Work(
        tables=len(used),
        clusters=round(scale * sum(map(len, entries))),
        misses=round(scale * sum(_misses(map(image.block_of, found)) for found in entries)),
        read_s=read_s,
        cache=min((blocks + _SPARE) * image.cluster, max(_MOST_CACHE, _CACHED * image.cluster)),
    )


def _misses(blocks: Iterable[int]) -> int:
    """How often a block is not among those that were used last."""
    cache: OrderedDict[int, None] = OrderedDict()
    missed = 0
    for block in blocks:
        if block not in cache:
            missed += len(cache) == _CACHED
            cache[block] = None
            if len(cache) > _CACHED:
                cache.popitem(last=False)
        cache.move_to_end(block)
    return missed


def _image(file: BinaryIO) -> _Image | None:
    header = file.read(104)
    if len(header) < 72:
        return None
    magic, version, _, _, bits, _, _, l1_entries, l1_at = _HEADER.unpack_from(header)[:9]
    if magic != MAGIC or version not in (2, 3) or not 9 <= bits <= 21:
        return None
    features = int.from_bytes(header[72:80]) if version > 2 else 0
    order = int.from_bytes(header[96:100]) if version > 2 else 4
    if order > 6 or l1_entries > _MOST_L1 // 8:
        return None
    words = 2 if features & _EXTENDED else 1
    return _Image(bits, l1_at, l1_entries, words, ((1 << bits) * 8) >> order, _size(file))


def _l1_of(file: BinaryIO, name: str) -> tuple[int, int] | None:
    """Where the L1 table of a snapshot is, and how many entries it has."""
    with suppress(ValueError):  # a damaged snapshot table
        for entry in entries(file.fileno()):
            if entry.tag.name == name:
                return entry.l1_at, entry.l1_entries
    return None


def _size(file: BinaryIO) -> int:
    """The size of a file; of a block device, too."""
    found = os.fstat(file.fileno())
    if stat.S_ISBLK(found.st_mode):
        return os.lseek(file.fileno(), 0, os.SEEK_END)
    return found.st_size


def _clusters(table: bytes, image: _Image) -> list[int]:
    """The entries of a table that stand for clusters with data."""
    return [entry for entry in _words(table)[:: image.words] if entry & (_OFFSET | _COMPRESSED)]


def _words(data: bytes) -> list[int]:
    """Big-endian words of 64 bits."""
    return list(struct.unpack(f">{len(data) // 8}Q", data[: len(data) // 8 * 8]))
