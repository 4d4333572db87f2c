"""A disk's file that is replaced while the guest runs, before and during a create."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pyxlsnap.errors import OperationFailed, Refused
from pyxlsnap.model import Disk, SnapshotConfig
from tests.unit.support import operations
from tests.unit.support.world import World

CONFIG = SnapshotConfig(name="snap")


@pytest.fixture
def disks(world: World) -> Iterator[list[Disk]]:
    """Two disks of a guest whose QEMU has them open."""
    disks = [replace(world.image(vdev), format="raw", backend="qdisk") for vdev in ("xvda", "xvdb")]
    fds = [os.open(disk.target, os.O_RDWR) for disk in disks]
    process = subprocess.Popen(["sleep", "1000"], pass_fds=fds)
    for fd in fds:
        os.close(fd)
    world.guest(*disks, kind="pvh").device_model = process.pid
    yield disks
    process.kill()
    process.wait()


def put_another(disk: Disk) -> None:
    """As ``mv backup disk`` does."""
    backup = Path(disk.target).with_suffix(".backup")
    backup.write_text("another")
    os.rename(backup, disk.target)


def test_a_snapshot_of_the_right_files(world: World, disks: list[Disk]) -> None:
    assert operations.create(world.host, "vm1", CONFIG).name == "snap"


def test_it_is_refused(world: World, disks: list[Disk]) -> None:
    put_another(disks[1])
    before = world.photo()
    with pytest.raises(Refused, match=r"^xvdb: .* is not the file that sleep \(pid \d+\) has open"):
        operations.create(world.host, "vm1", CONFIG)
    assert world.photo() == before


def test_can_snapshot_says_so(world: World, disks: list[Disk]) -> None:
    assert operations.feasibility(world.host, "vm1").possible
    put_another(disks[1])
    (reason,) = operations.feasibility(world.host, "vm1").reasons
    assert reason.startswith("xvdb: ")


@pytest.mark.parametrize("verb", ["check_create", "suspend", "create xvda"])
def test_later_it_fails_before_the_disk_is_touched(
    world: World, disks: list[Disk], verb: str
) -> None:
    before = world.photo()
    world.on_event = lambda event: put_another(disks[1]) if event == verb else None
    with pytest.raises(OperationFailed, match="everything is as before") as caught:
        operations.create(world.host, "vm1", CONFIG)
    assert f"{disks[1].target} is not the file" in str(caught.value)
    assert "create xvdb" not in world.events
    assert world.photo().disk_snapshots == before.disk_snapshots
    assert world.host.guests[0].runs
