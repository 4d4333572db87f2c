"""What an image's tables say: how long a snapshot inside takes, and whether the file is whole."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap.disks.qcow2 import tables
from pyxlsnap.disks.qcow2.tables import Work, is_cut_off, work_of
from tests.unit.support.qcow2_images import CLUSTER, in_order, scattered, write
from tests.unit.support.qemu import qemu_img

GIB = 1 << 30
SIZE = 64 * GIB
COUNT = 20_000
SCATTERED = scattered(SIZE, COUNT, 300_000)


def image(tmp_path: Path, places: dict[int, int], size: int = SIZE) -> Path:
    path = tmp_path / "disk.qcow2"
    write(path, size, places)
    return path


def filled(path: Path, *options: str) -> Path:
    """An image that qemu-img makes, with data at its beginning."""
    qemu_img("create", "-q", "-f", "qcow2", *options, str(path), "1G")
    command = ["qemu-io", "-f", "qcow2", "-c", "write -q 0 4M", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def test_clusters_in_a_random_order_take_long(tmp_path: Path) -> None:
    path = image(tmp_path, SCATTERED)
    qemu_img("check", "-q", str(path))
    work = work_of(path)
    assert work.tables == SIZE // (8192 * CLUSTER)
    assert work.clusters == pytest.approx(COUNT, rel=0.1)
    assert work.misses > COUNT / 3
    assert work.seconds() > 1
    assert work.seconds(delete=True) > 4 * work.seconds()
    assert work.cache >= 300_000 * 2


def test_the_same_clusters_in_their_order_do_not(tmp_path: Path) -> None:
    work = work_of(image(tmp_path, in_order(SCATTERED)))
    assert work.clusters == pytest.approx(COUNT, rel=0.1)
    assert work.misses == 0
    assert work.seconds() == work.seconds(delete=True) < 0.5


def test_the_time_grows_with_the_clusters(tmp_path: Path) -> None:
    few = work_of(image(tmp_path, scattered(SIZE, 1000, 300_000)))
    assert 0.0 < few.seconds() < work_of(image(tmp_path, SCATTERED)).seconds() / 10


def test_no_more_than_a_sample_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image(tmp_path, scattered(1024 * GIB, COUNT, 300_000), 1024 * GIB)
    read: list[int] = []
    real = os.pread

    def pread(fd: int, count: int, at: int) -> bytes:
        read.append(count)
        return real(fd, count, at)

    monkeypatch.setattr(tables.os, "pread", pread)  # type: ignore[attr-defined]
    work = work_of(path)
    assert len(read) <= 64 + 1  # and the L1 table
    assert work.tables == 2048
    assert work.clusters == pytest.approx(COUNT, rel=0.2)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-o", "compat=0.10"),
        ("-o", "cluster_size=512"),
        ("-o", "cluster_size=2M"),
        ("-o", "extended_l2=on"),
        ("-o", "refcount_bits=1"),
        ("-o", "refcount_bits=64"),
    ],
    ids=lambda options: "".join(options) or "defaults",
)
def test_every_kind_of_image(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = filled(tmp_path / "disk.qcow2", *options)
    size = {"cluster_size=512": 512, "cluster_size=2M": 2 << 20}.get("".join(options[1:]), CLUSTER)
    work = work_of(path)
    assert work.clusters == (4 << 20) // size
    assert work.misses < 10


def test_a_snapshot_has_its_own_work(tmp_path: Path) -> None:
    path = filled(tmp_path / "disk.qcow2")
    for name in ("small", "ö"):
        qemu_img("snapshot", "-c", name, str(path))
    command = ["qemu-io", "-f", "qcow2", "-c", "write -q 0 16M", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    qemu_img("snapshot", "-c", "large", str(path))
    qemu_img("snapshot", "-a", "small", str(path))
    names = ("", "small", "ö", "large", "another")
    assert [work_of(path, name).clusters for name in names] == [64, 64, 64, 256, 64]


def test_compressed_clusters_count(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.raw", tmp_path / "packed.qcow2"
    plain.write_bytes(b"x" * (2 << 20))
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", str(plain), str(packed))
    assert work_of(packed).clusters == 32


def test_an_empty_image_has_no_work(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", str(tmp_path / "disk.qcow2"), "64G")
    assert work_of(tmp_path / "disk.qcow2").seconds() == 0.0


@given(st.binary(max_size=200))
def test_any_file_has_some_work_or_none(data: bytes) -> None:
    path = Path(f"/dev/shm/tables-{os.getpid()}")
    path.write_bytes(data)
    assert work_of(path) == Work()
    path.write_bytes((b"QFI\xfb" + data).ljust(120, b"\0"))
    assert work_of(path).seconds() >= 0.0
    path.unlink()


@given(st.data())
def test_a_damaged_image_has_some_work(data: st.DataObject) -> None:
    path = Path(f"/dev/shm/tables-{os.getpid()}")
    write(path, GIB, {n: n for n in range(50)})
    with path.open("r+b") as file:
        for at in data.draw(st.lists(st.integers(4, 103), max_size=6)):
            os.pwrite(file.fileno(), bytes([data.draw(st.integers(0, 255))]), at)
    work = work_of(path)
    assert work.seconds(delete=True) >= work.seconds() >= 0.0
    assert work_of(path, "snap").seconds() >= 0.0
    path.unlink()


class TestCutOff:
    """Files whose end was lost: `qemu-img info` says nothing of that."""

    @pytest.fixture(
        params=[
            *("cluster_size=4k", "refcount_bits=1", "refcount_bits=64", "extended_l2=on"),
            *("compat=0.10", "preallocation=metadata", "compressed"),
        ]
    )
    def image(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        path, is_compressed = tmp_path / "image", request.param == "compressed"
        options = [] if is_compressed else ["-o", request.param]
        qemu_img("create", "-q", "-f", "qcow2", *options, str(path), "64M")
        assert not is_cut_off(path)  # the last cluster of a new image is not whole
        writes = ["write -P 3 7M 300k", "write -z 20M 1M", "write -P 1 50M 3k"]
        commands = [word for write in writes for word in ("-c", write)]
        subprocess.run(["qemu-io", "-f", "qcow2", *commands, path], check=True, capture_output=True)
        if is_compressed:
            packed = tmp_path / "packed"
            qemu_img("convert", "-c", "-f", "qcow2", "-O", "qcow2", str(path), str(packed))
            return packed
        return path

    def test_a_whole_image(self, image: Path) -> None:
        assert not is_cut_off(image)

    @pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
    def test_a_part_of_an_image(self, image: Path, part: float) -> None:
        os.truncate(image, int(image.stat().st_size * part))
        assert is_cut_off(image)

    def test_a_cluster_that_nothing_refers_to(self, tmp_path: Path) -> None:
        """As a QEMU leaves it that was killed while it wrote."""
        path = tmp_path / "image"
        qemu_img("create", "-q", "-f", "qcow2", str(path), "64M")
        with path.open("r+b") as file:
            file.seek(2 * 65536 + 2 * 9)  # the count of the tenth cluster
            file.write(b"\0\1")
        assert not is_cut_off(path)

    def test_an_image_with_a_data_file(self, tmp_path: Path) -> None:
        """Its entries are places in the other file."""
        path = tmp_path / "image"
        data = f"data_file={tmp_path / 'data'}"
        qemu_img("create", "-q", "-f", "qcow2", "-o", data, str(path), "64M")
        write = ["qemu-io", "-f", "qcow2", "-c", "write -P 3 32M 64k", str(path)]
        subprocess.run(write, check=True, capture_output=True)
        assert not is_cut_off(path)

    def test_another_file(self, tmp_path: Path) -> None:
        (tmp_path / "other").write_bytes(b"no image")
        assert not is_cut_off(tmp_path / "other")
