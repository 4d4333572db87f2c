"""The snapshots inside an image, read from its table as qemu-img reads them."""

import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap import DiskError
from pyxlsnap.disks.qcow2.inside import is_left, note_left
from pyxlsnap.disks.qcow2.tags import MAGIC, Tag, entries, image_tags, tags_of
from pyxlsnap.model import Disk
from tests.unit.support.qemu import qemu_img

NAMES = ("before-upgrade", "a", "a name of more than twice eight letters", "é…")
COUNT_AT, TABLE_AT = 60, 64


def disk_of(path: Path) -> Disk:
    return Disk(vdev="xvda", target=str(path), format="qcow2")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", str(path), "64M")
    return path


def listed(path: Path) -> list[Tag]:
    return tags_of(json.loads(qemu_img("info", "-f", "qcow2", "--output=json", str(path))))


@pytest.mark.parametrize("options", ["compat=1.1", "compat=0.10", "cluster_size=512"])
def test_the_table_is_read_as_qemu_img_reads_it(tmp_path: Path, options: str) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, str(path), "8M")
    assert image_tags(disk_of(path)) == listed(path) == []
    for name in (*NAMES, "a"):  # qemu-img takes a name twice
        qemu_img("snapshot", "-c", name, str(path))
    qemu_img("snapshot", "-d", NAMES[0], str(path))
    found = image_tags(disk_of(path))
    assert found == listed(path)
    assert [tag.name for tag in found] == [*NAMES[1:], "a"]


def damaged(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize(
    ("at", "data", "complaint"),
    [
        (0, b"QFI\0", "is not a qcow2 image"),
        (COUNT_AT, struct.pack(">I", 40_000), "has a damaged snapshot table"),
        (TABLE_AT, struct.pack(">Q", 1 << 40), "has a damaged snapshot table"),
        (TABLE_AT, b"\x7f" + b"\xff" * 7, "has a damaged snapshot table"),
        (TABLE_AT, b"\xff" * 8, "has a damaged snapshot table"),
    ],
)
def test_a_damaged_table_is_an_error_of_the_disk(
    image: Path, at: int, data: bytes, complaint: str
) -> None:
    qemu_img("snapshot", "-c", "s", str(image))
    damaged(image, at, data)
    with pytest.raises(DiskError, match=f"{image} {complaint}") as caught:
        image_tags(disk_of(image))
    assert caught.value.vdev == "xvda"


@pytest.mark.parametrize(
    ("count", "name_size", "extra", "whole"),
    [
        (1 << 16, 0, 0, True),
        ((1 << 16) + 1, 0, 0, False),
        (1, 0, 1024, True),
        (1, 0, 1025, False),
        (1000, 0xFFFF, 0, True),
        (1100, 0xFFFF, 0, False),
    ],
)
def test_a_table_is_no_larger_than_qemu_allows(
    count: int, name_size: int, extra: int, whole: bool
) -> None:
    entry = struct.pack(">QIHHII12xI", 0, 0, 0, name_size, 0, 0, extra)
    length = -(-(len(entry) + name_size + extra) // 8) * 8
    fd = os.memfd_create("image")
    try:
        os.pwrite(fd, struct.pack(">4sI52xIQ", MAGIC, 3, count, 4096), 0)
        os.ftruncate(fd, 4096 + count * length)
        if name_size or extra:
            for number in range(count):
                os.pwrite(fd, entry, 4096 + number * length)
        if whole:
            assert sum(1 for _ in entries(fd)) == count
            return
        with pytest.raises(ValueError, match="has a damaged snapshot table"):
            sum(1 for _ in entries(fd))
    finally:
        os.close(fd)


def test_a_name_that_is_not_utf_8(image: Path) -> None:
    """A tag of others: it can be noted as one that was left, as any other."""
    qemu_img("snapshot", "-c", "s", str(image))
    fd = os.open(image, os.O_RDWR)
    (at,) = struct.unpack(">Q", os.pread(fd, 8, TABLE_AT))
    found = os.pread(fd, 4096, at)
    os.pwrite(fd, b"\xff", at + found.rindex(b"s"))
    os.close(fd)
    (tag,) = image_tags(disk_of(image))
    assert os.fsencode(tag.name) == b"\xff"
    if note_left(disk_of(image), [tag]):
        assert is_left(disk_of(image), [tag])


def test_a_file_that_is_cut_off_or_gone_is_an_error_of_the_disk(image: Path) -> None:
    qemu_img("snapshot", "-c", "s", str(image))
    (entry,) = _entries(image)
    assert entry == "s"
    os.truncate(image, 40)
    with pytest.raises(DiskError, match="is not a qcow2 image"):
        image_tags(disk_of(image))
    image.unlink()
    with pytest.raises(DiskError, match=f"{image}: No such file or directory"):
        image_tags(disk_of(image))


def test_a_fifo_in_the_place_of_the_image_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "disk.qcow2")
    with pytest.raises(DiskError, match=str(path)):
        image_tags(disk_of(path))


def _entries(path: Path) -> list[str]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return [entry.tag.name for entry in entries(fd)]
    finally:
        os.close(fd)


@given(count=st.integers(0, 4), at=st.integers(0, 300), table=st.binary(max_size=300))
def test_any_table_is_read_or_is_an_error(count: int, at: int, table: bytes) -> None:
    fd = os.memfd_create("image")
    try:
        header = struct.pack(">4sI52xIQ", MAGIC, 3, count, at)
        os.pwrite(fd, header + table, 0)
        try:
            found = list(entries(fd))
        except ValueError:
            return
        assert len(found) == count
    finally:
        os.close(fd)
