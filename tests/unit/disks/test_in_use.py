"""Who uses a disk: on real files and loop devices."""

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pyxlsnap import paths
from pyxlsnap.disks import in_use
from pyxlsnap.disks.in_use import request_queues, users, wait_until_drained, wait_until_unused
from pyxlsnap.errors import DiskError
from pyxlsnap.model import Disk
from tests.unit.support.loop_files import looped, need_root, opened, run, wait_for


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"content" * 1000)
    return Disk("xvda", str(path), "raw", "phy")


@pytest.fixture
def sys_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk) -> Path:
    """A /sys where loop9 is over the disk."""
    tree = tmp_path / "sys"
    loop = tree / "block/loop9/loop"
    loop.mkdir(parents=True)
    (loop / "backing_file").write_text(f"{disk.target}\n")
    (tree / "block/loop9/inflight").write_text("       0        0\n")
    other = tree / "block/loop8/loop"
    other.mkdir(parents=True)
    (other / "backing_file").write_text("/none (deleted)\n")
    (tree / "block/loop8/inflight").write_text("       1        1\n")
    monkeypatch.setattr(paths, "SYS", tree)
    monkeypatch.setattr(paths, "DEV", tmp_path / "dev")
    return tree


def drain(disk: Disk, target: Path) -> None:
    """Look for the queues, as a strategy does beforehand, and wait."""
    wait_until_drained(disk, target, request_queues(target))


def test_without_requests_nothing_is_waited_for(sys_tree: Path, disk: Disk) -> None:
    drain(disk, Path(disk.target))


@pytest.mark.parametrize("inflight", ["1 0", "0 1"])
def test_requests_in_flight_are_waited_for(sys_tree: Path, disk: Disk, inflight: str) -> None:
    queue = sys_tree / "block/loop9/inflight"
    queue.write_text(inflight)

    def end() -> None:
        (sys_tree / "quiet").write_text("0 0\n")
        os.rename(sys_tree / "quiet", queue)

    began = time.monotonic()
    threading.Timer(0.1, end).start()
    drain(disk, Path(disk.target))
    assert time.monotonic() - began >= 0.1


def test_a_request_that_blkback_passes_on_a_moment_later_is_waited_for(
    sys_tree: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest had put it on the ring just before it was suspended."""
    queue = sys_tree / "block/loop9"
    looks: list[list[Path]] = [[], [queue], [queue], [], [], []]
    monkeypatch.setattr(in_use, "_busy", lambda _: looks.pop(0))
    drain(disk, Path(disk.target))
    assert looks == []


def test_a_request_that_never_ends_is_not_waited_for_for_ever(
    sys_tree: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_use, "_DRAINED_S", 0.05)
    (sys_tree / "block/loop9/inflight").write_text("0 3\n")
    with pytest.raises(DiskError, match=r"xvda: loop9, which serves .*disk\.raw"):
        drain(disk, Path(disk.target))


def test_a_device_whose_requests_nobody_knows_is_an_error(sys_tree: Path, disk: Disk) -> None:
    (sys_tree / "block/loop9/inflight").unlink()
    with pytest.raises(DiskError, match=r"xvda: .*inflight: No such"):
        drain(disk, Path(disk.target))


def test_a_real_loop_device_is_found_and_drained(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(disk.target)
    (tmp_path / "strange \n name").hardlink_to(disk.target)
    for name in (disk.target, tmp_path / "link", tmp_path / "strange \n name"):
        with looped(Path(name)) as device:
            wait_for(lambda: users(Path(disk.target)) == [device.name])
            drain(disk, Path(disk.target))
            drain(disk, device)
    wait_for(lambda: users(Path(disk.target)) == [])


def test_who_has_a_disk_is_waited_for_and_named(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_use, "_UNUSED_S", 0.3)
    with opened(Path(disk.target)) as pid:
        wait_for(lambda: users(Path(disk.target)) == [f"sleep (pid {pid})"])
        with pytest.raises(DiskError, match=rf"xvda: .*in use by sleep \(pid {pid}\)"):
            wait_until_unused(disk, Path(disk.target))
    wait_until_unused(disk, Path(disk.target))


def test_a_loop_device_that_goes_away_is_waited_for(disk: Disk) -> None:
    need_root("a loop device")
    device = run("losetup", "--find", "--show", Path(disk.target))
    began = time.monotonic()
    # (Nobody attaches it again: by then its number may be another test's.)
    detach = subprocess.Popen(["sh", "-c", f"sleep 0.3; losetup --detach {device}"])
    try:
        wait_until_unused(disk, Path(disk.target))
        assert time.monotonic() - began >= 0.3
    finally:
        assert detach.wait() == 0


def test_blkback_and_devices_on_top_count_as_users(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with looped(Path(disk.target)) as device:
        number = device.stat().st_rdev
        tree = tmp_path / "sys"
        (tree / "dev/block" / f"{os.major(number)}:{os.minor(number)}" / "holders/dm-3").mkdir(
            parents=True
        )
        for name, text in ("vbd-4-51712", f"7:{os.minor(number):x}\n"), ("vbd-5-51712", "fd:1\n"):
            (tree / "bus/xen-backend/devices" / name).mkdir(parents=True)
            (tree / "bus/xen-backend/devices" / name / "physical_device").write_text(text)
        monkeypatch.setattr(paths, "SYS", tree)
        wait_for(lambda: users(device) == ["vbd-4-51712", "dm-3"])


def test_a_disk_that_is_not_there_is_an_error(disk: Disk, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="No such file"):
        wait_until_unused(disk, tmp_path / "none")
