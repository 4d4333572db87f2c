"""What a clone makes ready before its disks are made, and before another one is destroyed."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyxlsnap import paths
from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import BadMemoryFile, Interrupted
from pyxlsnap.journal import Journal
from pyxlsnap.linux.read_ahead import read_ahead
from tests.unit.support.clones import CLONE_UUID, Origin
from tests.unit.support.world import World


@pytest.fixture(params=[False, True], ids=["new", "replaced"])
def origin(world: World, request: pytest.FixtureRequest) -> Origin:
    """A snapshot; and perhaps a clone of it, which runs."""
    found = Origin(world)
    if request.param:
        found.clone()
    found.before = world.photo()
    world.events.clear()
    return found


def cannot_read(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_fd: int, _check: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pyxlsnap.guest.saved.read_ahead", fail)


def test_the_memory_file_is_read_ahead(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def record(fd: int, _check: object) -> int:
        read.append((paths.PROC / f"self/fd/{fd}").readlink())
        assert not {"clone xvda", "destroy", "restore"} & {*origin.world.events}
        return 0

    monkeypatch.setattr("pyxlsnap.guest.saved.read_ahead", record)
    origin.clone(replace=True)
    assert read == [origin.memory_path]
    assert "restore" in origin.world.events


def test_a_memory_file_that_cannot_be_read_is_found_before_anything_is_made(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restore would read the same sectors."""
    cannot_read(errno.EIO, monkeypatch)
    old = origin.find()
    with pytest.raises(BadMemoryFile, match="cannot be read: Input/output error"):
        origin.clone(replace=True)
    assert origin.find() is old
    assert origin.world.photo() == origin.before


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EINVAL])
def test_a_memory_file_that_cannot_be_read_ahead_need_not_be(
    origin: Origin, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cannot_read(number, monkeypatch)
    origin.clone(replace=True)
    found = origin.find()
    assert found
    assert found.memory == "then"


def test_a_cancel_ends_the_reading(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel, old = Cancel(), origin.find()

    def cancelled(fd: int, check: Callable[[], None]) -> int:
        cancel.set()
        return read_ahead(fd, check)

    monkeypatch.setattr("pyxlsnap.guest.saved.read_ahead", cancelled)
    with pytest.raises(Interrupted, match=r"was interrupted \(prepare\); everything is as before"):
        origin.clone(replace=True, cancel=cancel)
    assert origin.find() is old
    assert origin.world.photo() == origin.before
    assert Journal(CLONE_UUID).read() is None
