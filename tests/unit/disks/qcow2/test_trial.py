"""A revert inside an image, tried on an overlay: on real images, and under a QEMU that writes."""

import os
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pyxlsnap.disks.qcow2 import trial
from pyxlsnap.disks.qcow2.trial import refuse_inapplicable
from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk
from tests.unit.support.loop_files import looped, mounted
from tests.unit.support.qemu import SIZE, Qemu, qemu_img, tags
from tests.unit.support.waiting import open_descriptors

STEPS = ["-c", "kept", "-a", "snap"]
CLUSTER = 65536


@pytest.fixture
def disk(disks: list[Disk]) -> Disk:
    qemu_img("snapshot", "-c", "snap", disks[0].target)
    command = ["qemu-io", "-f", "qcow2", "-c", "write -P 5 0 512k", disks[0].target]
    subprocess.run(command, check=True, capture_output=True)
    return disks[0]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_PAUSE_S", 0.0)


def run(disk: Disk, steps: list[str] = STEPS) -> int:
    return refuse_inapplicable(disk, SIZE, CLUSTER, steps)


def test_it_changes_nothing_and_tells_what_a_revert_writes(disk: Disk) -> None:
    path = Path(disk.target)
    before, files, descriptors = path.read_bytes(), set(path.parent.iterdir()), open_descriptors()
    written = run(disk)
    assert path.read_bytes() == before
    assert set(path.parent.iterdir()) == files
    assert open_descriptors() == descriptors
    for option, name in (("-c", "kept"), ("-a", "snap")):
        qemu_img("snapshot", option, name, disk.target)
    grown = path.stat().st_size - len(before)
    assert grown <= written < 4 << 20


def test_a_snapshot_that_is_not_there(disk: Disk) -> None:
    with pytest.raises(Refused, match=r"^xvda: the snapshot in .* cannot be applied, .*snapshot"):
        run(disk, ["-a", "none"])


@pytest.mark.parametrize("at", ["the snapshot's table", "the references"])
def test_a_damaged_image_is_refused(disk: Disk, at: str) -> None:
    with open(disk.target, "r+b") as image:
        image.seek(64 if at == "the snapshot's table" else 48)
        image.seek(int.from_bytes(image.read(8), "big"))
        image.seek(int.from_bytes(image.read(8), "big"))
        image.write(b"\xff" * 8 if at == "the snapshot's table" else bytes(CLUSTER))
    assert tags(disk) == ["snap"]  # that is all that a look at the image tells
    with pytest.raises(Refused, match="qemu-img check"):
        run(disk)


def test_a_failure_that_is_not_repeated_does_not_count(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = trial._written, []

    def first_fails(disk: Disk, cluster: int, tags: list[str]) -> int:
        calls.append(1)
        if len(calls) < 3:
            raise subprocess.CalledProcessError(1, "qemu-img", stderr="of two moments")
        return real(disk, cluster, tags)

    monkeypatch.setattr(trial, "_written", first_fails)
    assert run(disk) > 0


def test_an_image_with_large_tables_is_not_tried(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_written", lambda *_: 1 // 0)
    assert refuse_inapplicable(disk, 1 << 50, CLUSTER, STEPS) > 1 << 30


def test_a_trial_that_takes_too_long_is_none(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_LIMIT_S", 0.0)
    assert run(disk) == SIZE // CLUSTER * 8 * 2


def test_an_image_on_a_block_device(disk: Disk) -> None:
    path = Path(disk.target)
    os.truncate(path, path.stat().st_size + (1 << 20))
    with looped(path) as device:
        assert run(replace(disk, target=str(device))) > 0
        with pytest.raises(Refused):
            run(replace(disk, target=str(device)), ["-a", "none"])


def test_a_block_device_that_is_full(disk: Disk) -> None:
    with looped(Path(disk.target)) as device:
        full = replace(disk, target=str(device))
        with pytest.raises(Refused, match=f"^xvda: {device} has no room .*lvextend"):
            run(full)
        done = subprocess.run(["qemu-img", "snapshot", "-c", "kept", full.target])
        assert done.returncode


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize(("size", "cluster"), [(64 << 30, 65536), (256 << 20, 4096)])
def test_what_is_written_over_takes_no_space(
    tmp_path: Path, kind: str, size: int, cluster: int
) -> None:
    with mounted(kind, tmp_path) as where:
        image = Disk("xvda", str(where / "image"), "qcow2")
        options = f"cluster_size={cluster},preallocation=metadata"
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, image.target, str(size))
        for step in (("-c", "snap"), ("-c", "kept"), ("-a", "snap"), ("-d", "kept")):
            qemu_img("snapshot", *step, image.target)
        told = refuse_inapplicable(image, size, cluster, STEPS)
        os.sync()
        before = Path(image.target).stat().st_blocks * 512
        for step in (("-c", "kept"), ("-a", "snap")):
            qemu_img("snapshot", *step, image.target)
        os.sync()
        grown = Path(image.target).stat().st_blocks * 512 - before
        assert grown <= told <= grown + (1 << 20)


def test_blocks_that_are_shared_take_space(tmp_path: Path) -> None:
    with mounted("xfs", tmp_path) as where:
        image = Disk("xvda", str(where / "image"), "qcow2")
        qemu_img("create", "-q", "-f", "qcow2", image.target, str(SIZE))
        qemu_img("snapshot", "-c", "snap", image.target)
        alone = run(image)
        subprocess.run(["cp", "--reflink=always", image.target, where / "copy"], check=True)
        assert run(image) > alone


@pytest.mark.parametrize("is_link", [True, False])
def test_a_name_that_is_not_utf_8(disk: Disk, is_link: bool) -> None:
    name = os.fsdecode(os.fsencode(disk.target) + b"\xff")
    os.rename(disk.target, name)
    if is_link:
        Path(disk.target).symlink_to(name)
    assert run(disk if is_link else replace(disk, target=name)) > 0


def test_a_guest_may_write_meanwhile(disk: Disk, disks: list[Disk], run_dir: Path) -> None:
    qemu = Qemu(run_dir, {d.vdev: d.target for d in disks})
    qemu.has_opened()
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.is_set():
            qemu.write("xvda", n % 256, n % 16 * CLUSTER)
            n += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            run(disk)
    finally:
        stop.set()
        writer.join()
        qemu.close()
    qemu_img("check", "-q", disk.target)
