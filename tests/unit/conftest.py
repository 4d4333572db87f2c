"""Fixtures: the small world of world.py, in a directory of its own."""

import gc
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from pyxlsnap import paths
from pyxlsnap.model import Disk
from pyxlsnap.monitor import xl
from tests.unit.support.loop_files import mounted
from tests.unit.support.qemu import SIZE, VDEVS, Qemu, qemu_img, write
from tests.unit.support.standin import StandIn
from tests.unit.support.waiting import open_descriptors
from tests.unit.support.world import World, make_world

# How long an example takes says more about the machine than about us.
settings.register_profile("pyxlsnap", deadline=None)
settings.load_profile("pyxlsnap")

#: the environment variable in which pytest-xdist names a process of tests
_WORKER = "PYTEST_XDIST_WORKER"


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    """A command that a test runs in this process sets them."""
    loggers = [logging.getLogger(name) for name in ("pyxlsnap", "pyxlsnap.libxl")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True, scope="session")
def _only_our_xl() -> Iterator[None]:
    """What stands for xl in a test that runs side by side with this one is not found."""
    is_xl, ours = xl._is_xl, os.environ.get(_WORKER, "")

    def is_our_xl(pid: int) -> bool:
        return is_xl(pid) and _worker_of(pid) in ("", ours)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xl, "_is_xl", is_our_xl)
        yield


def _worker_of(pid: int) -> str:
    """The process of tests that has started a process; "" if that is not known."""
    try:
        words = (paths.PROC / f"{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    found = [word for word in words if word.startswith(f"{_WORKER}=".encode())]
    return found[0].decode().partition("=")[2] if found else ""


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM as in a program that a shell has started in the foreground.

    Whoever runs the tests may ignore them (nohup; a shell, in a background job), and programs that
    a test starts would have that from this process.
    """
    sigint = signal.signal(signal.SIGINT, signal.default_int_handler)
    sigterm = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, sigint)
    signal.signal(signal.SIGTERM, sigterm)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An empty world; the package's directories and disk strategies are its own."""
    return make_world(tmp_path / "world", monkeypatch)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Worker processes with stand-ins for what needs Xen."""
    return StandIn(tmp_path, monkeypatch)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody may enter, but nobody may change."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """The test leaves no child, no descriptor and no thread."""
    gc.collect()  # What earlier tests left in a cycle would be collected, and closed, meanwhile.
    before = open_descriptors()
    threads = threading.active_count()
    yield
    with pytest.raises(ChildProcessError):  # no child, and no zombie
        os.waitpid(-1, os.WNOHANG)
    assert open_descriptors() == before
    assert threading.active_count() == threads


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "QEMU_SOCKETS", tmp_path)
    return tmp_path


@pytest.fixture
def disks(run_dir: Path) -> list[Disk]:
    found = [Disk(v, str(run_dir / f"{v} disk.qcow2"), "qcow2") for v in VDEVS]
    for disk in found:
        qemu_img("create", "-q", "-f", "qcow2", disk.target, str(SIZE))
        write(disk, 1)
    return found


@pytest.fixture
def qemu(run_dir: Path, disks: list[Disk]) -> Iterator[Qemu]:
    found = Qemu(run_dir, {d.vdev: d.target for d in disks})
    yield found
    found.close()


@pytest.fixture(scope="module")
def filesystem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real filesystem on which files can be made immutable, and cloned."""
    with mounted("xfs", tmp_path_factory.mktemp("filesystem")) as where:
        yield where
