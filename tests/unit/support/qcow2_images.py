"""qcow2 images written table by table: large ones, with the clusters where a test wants them.

The clusters with data are holes in the file, so an image takes only the space of its tables.
"""

import random
import struct
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

CLUSTER = 64 << 10
_ENTRIES = CLUSTER // 8
_COUNTS = CLUSTER // 2
_COPIED = 1 << 63


def scattered(size: int, count: int, room: int, *, seed: int = 1) -> dict[int, int]:
    """Clusters of an image, at random places of the file.

    :param size: the disk's, in bytes.
    :param count: the number of clusters with data.
    :param room: the number of clusters of the file among which their places are.
    :returns: for each guest cluster its place: 0 is the first cluster behind the tables.
    """
    some = random.Random(seed)
    guests = some.sample(range(size // CLUSTER), count)
    return dict(zip(guests, some.sample(range(room), count), strict=True))


def in_order(places: Mapping[int, int]) -> dict[int, int]:
    """The same clusters, at the same places, as if they had been written one after the other."""
    return dict(zip(sorted(places), sorted(places.values()), strict=True))


def write(path: Path, size: int, places: Mapping[int, int]) -> None:
    """Write an image: the header, the refcount table, its blocks, the L1 table, the L2 tables."""
    tables: dict[int, dict[int, int]] = {}
    for guest, place in places.items():
        tables.setdefault(guest // _ENTRIES, {})[guest % _ENTRIES] = place
    l1_entries = -(-size // (CLUSTER * _ENTRIES))
    l1_clusters = -(-l1_entries * 8 // CLUSTER)
    behind = l1_clusters + len(tables)
    blocks = -(-(2 + behind + max(places.values(), default=0)) // (_COUNTS - 2)) + 1
    l1_at = 2 + blocks
    data_at = l1_at + behind
    used = array("H", bytes(2 * blocks * _COUNTS))
    for cluster in (*range(data_at), *(data_at + place for place in places.values())):
        used[cluster] = 1
    l1 = [0] * l1_entries
    with path.open("wb") as file:
        file.write(_header(size, l1_entries, l1_at * CLUSTER))
        _put(file, 1, array("Q", [(2 + n) * CLUSTER for n in range(blocks)]))
        _put(file, 2, used)
        for at, (index, found) in enumerate(tables.items(), l1_at + l1_clusters):
            l1[index] = at * CLUSTER | _COPIED
            entries = array("Q", bytes(CLUSTER))
            for entry, place in found.items():
                entries[entry] = (data_at + place) * CLUSTER | _COPIED
            _put(file, at, entries)
        _put(file, l1_at, array("Q", l1))
        file.truncate((data_at + max(places.values(), default=0) + 1) * CLUSTER)


def _header(size: int, l1_entries: int, l1_at: int) -> bytes:
    backing, snapshots, features = (0, 0), (0, 0), (0, 0, 0)
    l1, counts = (l1_entries, l1_at), (CLUSTER, 1)
    fields = (b"QFI\xfb", 3, *backing, 16, size, 0, *l1, *counts, *snapshots, *features, 4, 104)
    return struct.pack(">4sIQIIQIIQQIIQQQQII", *fields)


def _put(file: BinaryIO, cluster: int, values: "array[int]") -> None:
    values.byteswap()
    file.seek(cluster * CLUSTER)
    file.write(values.tobytes())
