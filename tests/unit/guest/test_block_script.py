"""The script that libxl starts for a disk of dom0's kernel."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyxlsnap import paths
from pyxlsnap.guest import block_script
from pyxlsnap.guest.block_script import examine_block_script, is_served_by_kernel
from pyxlsnap.guest.findings import Finding, Grade
from pyxlsnap.model import Disk
from tests.unit.support.world import World

TOOLS = ("xenstore-read", "xenstore-write", "losetup")


@pytest.fixture
def disk(world: World) -> Disk:
    image = world.root / "images" / "raw"
    image.touch()
    return Disk("xvda", str(image), "raw", "phy")


@pytest.fixture(autouse=True)
def _host(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the script needs."""
    for directory in (paths.XEN_SCRIPTS, paths.SCRIPT_LOCKS, world.root / "bin"):
        directory.mkdir()
    (paths.XEN_SCRIPTS / "block").touch(0o755)
    (paths.XEN_SCRIPTS / "hotplugpath.sh").write_text(f'bindir="{world.root}/bin"\n')
    for tool in TOOLS:
        (world.root / "bin" / tool).touch(0o755)
    monkeypatch.setattr(block_script, "_SYSTEM_PATH", "/nonexistent")
    monkeypatch.setattr(block_script, "_LOCK_S", 0.2)
    monkeypatch.setenv("PATH", "/nonexistent")


def examine(*disks: Disk) -> list[Finding]:
    return list(examine_block_script(str(paths.XEN_SCRIPTS), disks))


@contextmanager
def locked() -> Iterator[None]:
    with (paths.SCRIPT_LOCKS / "block").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize(
    ("disk", "served"),
    [
        (Disk("xvda", "/a", "raw", "phy"), True),
        (Disk("xvda", "/a", "raw"), True),
        (Disk("xvda", "/a", "raw", "qdisk"), False),
        (Disk("xvda", "/a", "qcow2"), False),
        (Disk("xvda", "", "empty"), False),
        (Disk("xvda", "/a", "raw", cdrom=True), False),
        (Disk("xvda", "/a", "raw", script="block-own"), False),
    ],
)
def test_is_for_disks_of_the_kernel(disk: Disk, served: bool) -> None:
    assert is_served_by_kernel(disk) is served


def test_that_has_all_is_nothing_to_say(disk: Disk) -> None:
    assert examine(disk) == []
    with locked():
        pass  # the file stays
    assert examine(disk) == []


@pytest.mark.parametrize("way", ["removed", "not executable"])
def test_that_is_gone_is_refused(disk: Disk, way: str) -> None:
    script = paths.XEN_SCRIPTS / "block"
    script.chmod(0o644)
    if way == "removed":
        script.unlink()
    (found,) = examine(disk)
    assert found.grade is Grade.REFUSED
    assert str(script) in found.text
    assert examine() == []  # no disk needs it


def test_that_is_only_supposed_to_be_there_is_a_risk(disk: Disk) -> None:
    (paths.XEN_SCRIPTS / "block").unlink()
    assert [f.grade for f in examine_block_script("", [disk])] == [Grade.RISKY]


@pytest.mark.parametrize("tool", TOOLS)
def test_whose_tool_is_gone_is_a_risk(disk: Disk, world: World, tool: str) -> None:
    (world.root / "bin" / tool).unlink()
    (found,) = examine(disk)
    assert (found.grade, tool in found.text) == (Grade.RISKY, True)
    device = Disk("xvda", "/nonexistent", "raw", "phy")  # needs no loop device
    assert len(examine(device)) == (tool != "losetup")


def test_whose_lock_is_held_is_a_risk(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_script, "holders", lambda _: [os.getpid()])
    with locked():
        (found,) = examine(disk)
        assert found.grade is Grade.RISKY
        assert f"(pid {os.getpid()})" in found.text
        assert examine() == []
    assert examine(disk) == []


def test_whose_lock_is_released_in_time_is_nothing_to_say(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked():
        lock = paths.SCRIPT_LOCKS / "block"
        monkeypatch.setattr(time, "sleep", lambda _: lock.unlink(missing_ok=True))
        assert examine(disk) == []


def test_without_a_directory_of_scripts_says_nothing(disk: Disk, world: World) -> None:
    paths.XEN_SCRIPTS.rename(world.root / "elsewhere")
    assert list(examine_block_script("", [disk])) == []
    assert not Path(paths.XEN_SCRIPTS).exists()
