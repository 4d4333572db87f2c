"""Files of disks that are gone from their places, and what has them open."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.revert.disk_files import refuse_lost, replaced
from tests.unit.support.guest import FakeGuest
from tests.unit.support.world import World

CHOSEN = list[tuple[Disk, DiskRequest]]


@pytest.fixture
def disks(world: World) -> list[Disk]:
    """Two disks whose files have the same name."""
    found = []
    for vdev in ("xvda", "xvdb"):
        path = world.root / vdev / "disk.img"
        path.parent.mkdir()
        path.touch()
        found.append(Disk(vdev, str(path), "raw", "qdisk"))
    return found


@pytest.fixture
def chosen(disks: list[Disk]) -> CHOSEN:
    return [(disk, DiskRequest(disk.vdev, f"{disk.target}.snap", "raw")) for disk in disks]


@pytest.fixture
def guest(world: World, disks: list[Disk]) -> Iterator[FakeGuest]:
    found = world.guest(*disks)
    with ExitStack() as files:
        fds = [files.enter_context(open(d.target, "r+b")).fileno() for d in disks]
        with subprocess.Popen(["sleep", "60"], pass_fds=fds) as process:
            found.device_model = process.pid
            yield found
            process.kill()


def test_all_is_well(guest: FakeGuest, chosen: CHOSEN) -> None:
    refuse_lost(guest, chosen)
    assert replaced(guest, chosen) == []


def test_the_present_place_of_a_file_is_named(
    guest: FakeGuest, chosen: CHOSEN, world: World
) -> None:
    there = world.root / "disk.img"
    os.rename(chosen[0][0].target, there)
    with pytest.raises(Refused, match=rf"^xvda: {chosen[0][0].target} was moved to {there}: move"):
        refuse_lost(guest, chosen)


def test_another_disk_of_that_name_is_not_taken_for_it(guest: FakeGuest, chosen: CHOSEN) -> None:
    os.rename(chosen[0][0].target, f"{chosen[0][0].target}.away")
    refuse_lost(guest, chosen)  # the disk's strategy says that it is not there


def test_the_command_that_is_told_saves_the_file(guest: FakeGuest, chosen: CHOSEN) -> None:
    path = Path(chosen[1][0].target)
    path.write_bytes(b"precious")
    path.unlink()
    with pytest.raises(Refused, match=r"^xvdb: .* was deleted") as caught:
        refuse_lost(guest, chosen)
    command = str(caught.value).split("`")[1]
    pause, copy, unpause = command.split(" && ")
    assert (pause, unpause) == ("xl pause vm1", "xl unpause vm1")
    subprocess.run(["sh", "-c", copy], check=True)
    assert path.read_bytes() == b"precious"
    refuse_lost(guest, chosen)
    (risk,) = replaced(guest, chosen)
    assert risk.startswith(f"xvdb: {path} is not the file that sleep")


def test_a_file_with_another_name_is_not_lost(guest: FakeGuest, chosen: CHOSEN) -> None:
    path = Path(chosen[1][0].target)
    os.link(path, path.with_name("other"))
    path.unlink()
    refuse_lost(guest, chosen)


@pytest.mark.parametrize("pid", [None, 1 << 22])
def test_without_a_qemu_nothing_is_said(guest: FakeGuest, chosen: CHOSEN, pid: int | None) -> None:
    Path(chosen[0][0].target).unlink()
    guest.device_model = pid
    refuse_lost(guest, chosen)
    assert replaced(guest, chosen) == []
    refuse_lost(None, chosen)
    assert replaced(None, chosen) == []
