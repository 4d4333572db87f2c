"""A revert inside an image, tried on an overlay: on real images, and under a QEMU that writes."""

import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pyxlsnap.disks.qcow2 import trial
from pyxlsnap.disks.qcow2.trial import refuse_inapplicable
from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk
from tests.unit.support.loop_files import looped
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

    def first_fails(disk: Disk, tags: list[str]) -> int:
        calls.append(1)
        if len(calls) < 3:
            raise subprocess.CalledProcessError(1, "qemu-img", stderr="of two moments")
        return real(disk, tags)

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
    with looped(Path(disk.target)) as device:
        assert run(replace(disk, target=str(device))) > 0
        with pytest.raises(Refused):
            run(replace(disk, target=str(device)), ["-a", "none"])


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
