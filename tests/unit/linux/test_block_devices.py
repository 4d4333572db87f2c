"""What the kernel does with block devices: on real loop devices, mounts and processes."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap import paths
from pyxlsnap.linux.block_devices import is_claimed, is_swap, kernel_uses, mounts, server
from tests.unit.support.loop_files import looped, mount, run


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    run("mkfs.ext4", "-q", path)
    return path


@pytest.fixture
def device(image: Path) -> Iterator[Path]:
    with looped(image) as found:
        yield found


def number(path: Path) -> int:
    return path.stat().st_rdev


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc with nothing in it."""
    found = tmp_path / "proc"
    (found / "self").mkdir(parents=True)
    monkeypatch.setattr(paths, "PROC", found)
    return found


def test_a_device_that_nobody_uses(device: Path) -> None:
    assert kernel_uses(number(device)) == []
    assert not is_claimed(device)
    with device.open("rb+"):  # as a QEMU has it
        assert not is_claimed(device)


@pytest.mark.parametrize("name", ["plain", "with blank", "back\\slash\ttab"])
def test_a_mount(device: Path, tmp_path: Path, name: str) -> None:
    with mount(device, tmp_path / name):
        assert kernel_uses(number(device)) == [f"a mount on {tmp_path / name}"]
        assert mounts(number(device), writable=True) == [str(tmp_path / name)]
        assert is_claimed(device)
    assert kernel_uses(number(device)) == []


def test_a_read_only_mount(device: Path, tmp_path: Path) -> None:
    with mount(device, tmp_path / "m", "-o", "ro"):
        assert mounts(number(device), writable=False) == [str(tmp_path / "m")]
        assert mounts(number(device), writable=True) == []


def test_a_mount_in_a_place_of_its_own_is_a_claim(device: Path, tmp_path: Path) -> None:
    """A container's mount is in no table that is looked at."""
    (tmp_path / "m").mkdir()
    script = f"mount {device} {tmp_path}/m && echo ready && read -r line"
    command = ["unshare", "-m", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        if not other.stdout.readline():
            pytest.skip("unshare does not work here")
        try:
            assert kernel_uses(number(device)) == []
            assert is_claimed(device)
        finally:
            other.communicate(b"\n")


def test_a_btrfs_device_by_its_name(device: Path, proc: Path) -> None:
    """btrfs shows a number of its own, which no device has."""
    line = f"30 1 0:44 /sub /srv/a rw,relatime shared:1 - btrfs {device} rw,ssd\n"
    (proc / "self/mountinfo").write_text(line)
    assert mounts(number(device), writable=True) == ["/srv/a"]


def test_partitions_count(device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    major, minor = os.major(number(device)), os.minor(number(device))
    part = tmp_path / "sys/dev/block" / f"{major}:{minor}" / "loop9p1"
    (part / "holders/dm-5").mkdir(parents=True)
    (part / "partition").write_text("1\n")
    (part / "dev").write_text("259:7\n")
    monkeypatch.setattr(paths, "SYS", tmp_path / "sys")
    assert kernel_uses(number(device)) == ["dm-5"]


def test_swap(device: Path, image: Path, proc: Path) -> None:
    text = "Filename\tType\tSize\tUsed\tPriority\n"
    (proc / "swaps").write_text(f"{text}{device} partition 1 0 -2\n{image} file 1 0 -3\n")
    assert kernel_uses(number(device)) == ["swap"]
    assert is_swap(image)
    (proc / "swaps").write_text(text)
    assert not is_swap(image)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_each_name_of_a_mount_is_read(name: str) -> None:
    from pyxlsnap.linux import block_devices

    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in name)
    assert block_devices._unescaped(escaped.encode()) == name


class TestServer:
    """/dev/nbdN: the kernel names the thread that serves it."""

    @contextmanager
    def nbd(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pid: int) -> Iterator[int]:
        disk = tmp_path / "sys/devices/virtual/block/nbd0"
        (disk / "nbd0p1").mkdir(parents=True)
        (disk / "pid").write_text(f"{pid}\n")
        (disk / "nbd0p1/partition").write_text("1\n")
        numbers = tmp_path / "sys/dev/block"
        numbers.mkdir(parents=True)
        (numbers / "43:0").symlink_to(disk)
        (numbers / "43:1").symlink_to(disk / "nbd0p1")
        monkeypatch.setattr(paths, "SYS", tmp_path / "sys")
        yield os.makedev(43, 0)

    def test_its_process(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """qemu-nbd serves in a thread of its own."""
        threads: list[int] = []
        quit_, ready = threading.Event(), threading.Event()

        def serve() -> None:
            threads.append(threading.get_native_id())
            ready.set()
            quit_.wait()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            assert ready.wait(10)
            assert threads[0] != os.getpid()
            with self.nbd(tmp_path, monkeypatch, threads[0]) as device:
                assert server(device) == os.getpid()
                assert server(device + 1) == os.getpid()  # the partition
        finally:
            quit_.set()
            thread.join()

    def test_a_process_that_has_ended(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ended = subprocess.Popen(["true"])
        ended.wait()
        with self.nbd(tmp_path, monkeypatch, ended.pid) as device:
            assert server(device) is None

    def test_another_device(self, device: Path) -> None:
        assert server(number(device)) is None
