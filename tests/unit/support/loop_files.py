"""Filesystems and loop devices over files, and processes that have a file open."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def need_root(what: str) -> None:
    if os.geteuid():
        pytest.skip(f"{what} takes root")


def run(*command: str | Path) -> str:
    """Run what may not be permitted, or not be there."""
    if not shutil.which(str(command[0])):
        pytest.skip(f"{command[0]} is missing (apt-get install btrfs-progs xfsprogs)")
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def mounted(kind: str, directory: Path) -> Iterator[Path]:
    """A new filesystem, in a file in the directory."""
    need_root("a filesystem to mount")
    image, where = directory / f"{kind}.img", directory / kind
    with image.open("wb") as file:
        file.truncate(512 << 20)
    run(f"mkfs.{kind}", "-q", image)
    where.mkdir()
    run("mount", "-o", "loop", image, where)
    try:
        yield where
    finally:
        # Lazily: a test that failed may have left a file open, and nothing else must stay.
        subprocess.run(["umount", "--lazy", str(where)], check=True)
        image.unlink()


@contextmanager
def looped(path: Path) -> Iterator[Path]:
    """A loop device over a file."""
    need_root("a loop device")
    device = Path(run("losetup", "--find", "--show", path))
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)
        wait_for(lambda: not attached(device))


def attached(device: Path) -> bool:
    return Path("/sys/block", device.name, "loop").exists()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A process that has a file open, as a QEMU has a disk."""
    with path.open("rb") as file:
        process = subprocess.Popen(["sleep", "1000"], stdin=file)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def mount(device: Path, where: Path, *options: str) -> Iterator[Path]:
    """A mount of a block device, or (by a new loop device) of a file."""
    need_root("a mount")
    where.mkdir()
    run("mount", *options, device, where)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)
