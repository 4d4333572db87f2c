"""Hostile mounts, each in a process with mounts of its own: ``python -m`` this module."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyxlsnap.cli import app
from pyxlsnap.errors import OperationFailed, Refused
from pyxlsnap.model import SnapshotConfig as Config
from tests.project import PROJECT
from tests.unit.support import operations
from tests.unit.support.outcomes import create_and_revert
from tests.unit.support.trees import names, tree
from tests.unit.support.world import World, make_world


def in_own_mounts(act: Callable[[World], None], root: Path) -> None:
    """Call a function of this module, with a world below a directory."""
    own = ["unshare", "--mount"] + ["--map-root-user"] * bool(os.getuid())
    run = subprocess.run(
        [*own, sys.executable, "-m", __name__, act.__name__, str(root)],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def mount(directory: Path, options: str) -> Path:
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(directory)], check=True)
    return directory


def refusal(world: World, wanted: Config) -> str:
    before = tree(world.root)
    with pytest.raises(Refused) as caught:
        operations.create(world.host, "vm1", wanted)
    assert tree(world.root) == before
    return str(caught.value)


def read_only_directory(world: World) -> None:
    world.guest(world.image("xvda"))
    there = mount(world.root / "there", "ro,size=1m")
    says = refusal(world, Config("snap", memory_path=f"{there}/a.save"))
    assert says == (
        f"cannot write in {there} (its filesystem is mounted read-only): name another place with "
        f"memory_path"
    )


def read_only_journal(world: World) -> None:
    guest = world.guest(world.image("xvda"))
    mount(world.root / "journals", "ro,size=1m")
    with pytest.raises(OperationFailed) as caught:
        operations.create(world.host, "vm1", Config("snap"))
    assert f"cannot write in {world.root}/journals: Read-only file system" in str(caught.value)
    assert guest.runs
    assert not world.directory.exists()


def another_filesystem(world: World) -> None:
    guest = world.guest(world.image("xvda"))
    there = mount(world.root / "there", "size=80m")
    assert create_and_revert(world, guest, Config("snap", memory_path=f"{there}/a.save"))
    (world.root / "link").symlink_to(there)
    assert create_and_revert(world, guest, Config("s2", memory_path=f"{world.root}/link/b"))


def full_filesystem(world: World) -> None:
    guest = world.guest(world.image("xvda"))
    there = mount(world.root / "there", "size=70m")

    def fill() -> None:
        found = os.statvfs(there)
        with (there / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, found.f_bavail * found.f_frsize)

    guest.while_suspending = fill
    path = there / "a.save"
    with pytest.raises(OperationFailed) as caught:
        operations.create(world.host, "vm1", Config("snap", memory_path=str(path)))
    assert caught.value.exit_code == 1
    assert "No space left on device" in str(caught.value)
    assert str(path) in str(caught.value)
    assert guest.runs
    assert names(there) == ["filler"]
    assert not world.storage.snapshots


def nothing_can_be_written(_: World) -> None:
    for directory in ("/tmp", "/var/tmp", "/dev/shm"):
        # (What is there stays to be seen: this project may be.)
        subprocess.run(["mount", "--bind", directory, directory], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
    os.chdir("/proc")
    assert app.main(["snapshot-create", "vm1"]) == 3  # off Xen: the worker has run


if __name__ == "__main__":
    _, act, root = sys.argv
    globals()[act](make_world(Path(root) / "world", pytest.MonkeyPatch()))
