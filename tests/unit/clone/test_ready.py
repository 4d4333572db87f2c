"""What a clone makes ready before its disks are made, and before another one is destroyed."""

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from pyxlsnap import paths
from pyxlsnap.cancel import Cancel
from pyxlsnap.clone import operation
from pyxlsnap.errors import BadMemoryFile, Interrupted, OperationFailed, Refused, XenError
from pyxlsnap.guest import qemu_version, read_once, snapshot
from pyxlsnap.journal import Journal
from pyxlsnap.linux import files
from pyxlsnap.linux.read_ahead import read_ahead
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.request import Callbacks, PrepareMonitor
from pyxlsnap.results import Cloned
from pyxlsnap.worker import warm
from pyxlsnap.worker.channel import Channel
from pyxlsnap.worker.warm import Warm
from tests.unit.support.clones import CLONE_UUID, Origin
from tests.unit.support.watch import FakeWatch
from tests.unit.support.world import World


@pytest.fixture(params=[False, True], ids=["new", "replaced"])
def origin(world: World, request: pytest.FixtureRequest) -> Origin:
    """A snapshot; and perhaps a clone of it, which runs."""
    found = Origin(world)
    if request.param:
        found.clone(uuid=CLONE_UUID)
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


def test_a_process_that_is_kept_ready_reads_it_once(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_once, "_kept", None)
    monkeypatch.setattr(files, "_SETTLED_S", -1.0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Warm(Channel(ours), replace(origin.request(), config=None))._keep_memory()

    def walk(*_: object, **__: object) -> NoReturn:
        raise AssertionError("it is read again")

    monkeypatch.setattr("pyxlsnap.guest.snapshot.walk", walk)
    origin.clone(replace=True)
    assert origin.find()


def test_a_process_that_is_kept_ready_makes_the_overlays(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the frozen files of the disks that are qcow2 for pyxlsnap."""
    asked = {"xvda": "/images/xvda.snap", "xvdb": "", "xvdc": "/images/xvdc.snap"}
    kinds = {"xvda": "qcow2", "xvdb": "qcow2", "xvdc": "another"}
    chosen = [
        (Disk(v, f"/images/{v}", "qcow2"), DiskRequest(v, p, p and "qcow2"))
        for v, p in asked.items()
    ]
    request = origin.request()
    assert request.config
    saved = snapshot.read_memory(request.config, request.cfgfile, lambda: None)
    assert saved.metadata
    monkeypatch.setattr(warm, "choose_disks", lambda *_: chosen)
    header = replace(saved.header, metadata=replace(saved.metadata, kinds=kinds))
    made: list[tuple[str, Path]] = []

    def make(disk: Disk, frozen: Path, _check: object) -> bool:
        made.append((disk.vdev, frozen))
        return is_made

    monkeypatch.setattr(warm, "make_ahead", make)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = Warm(Channel(ours), request)
        for is_made in (True, False):
            made.clear()
            assert process._make_overlays(request, replace(saved, header=header)) is is_made
            assert made == [("xvda", Path("/images/xvda.snap"))]


class Watched:
    """Makes a clone that a process is to watch."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self.started: list[str] = []

    def clone(self, prepare: PrepareMonitor, cancel: Cancel | None = None) -> Cloned:
        origin = self._origin
        callbacks = Callbacks(start_monitor=self.started.append, prepare_monitor=prepare)
        request = origin.request(replace=True, uuid=CLONE_UUID)
        return operation.clone(origin.world.host, request, callbacks, cancel)

    def fake(self, *, there: bool = True) -> PrepareMonitor:
        return FakeWatch(self._origin.world, there=there, uuid=CLONE_UUID).start

    @property
    def order(self) -> list[str]:
        """What happened to the watch and to the domain."""
        words = ("watch", "destroy", "restore", "unpause")
        return [event for event in self._origin.world.events if event.split()[0] in words]


@pytest.fixture
def watched(origin: Origin) -> Watched:
    return Watched(origin)


def test_the_watch_waits_before_the_destroy_and_begins_after_the_restore(
    watched: Watched, origin: Origin
) -> None:
    replaced = origin.find() is not None
    made = watched.clone(watched.fake())
    assert watched.order == [
        "watch waits",
        *["destroy"] * replaced,
        "restore",
        "watch begins",
        "unpause",
        "watch asked",
        "watch closed",
    ]
    assert watched.started == []
    assert made.warnings == ()


def test_a_watch_that_has_ended_without_a_word_is_started_anew(watched: Watched) -> None:
    assert watched.clone(watched.fake(there=False)).warnings == ()
    assert watched.started == [CLONE_UUID]


def test_a_watch_that_cannot_wait_is_started_at_the_end(watched: Watched) -> None:
    def no_process(_uuid: str) -> FakeWatch:
        raise OSError(errno.EMFILE, "Too many open files")

    assert watched.clone(no_process).warnings == ()
    assert watched.started == [CLONE_UUID]


@pytest.mark.parametrize("verb", ["clone xvda", "clone xvdb", "restore"])
@pytest.mark.parametrize("after", [False, True])
def test_the_watch_of_a_clone_that_fails_ends(
    watched: Watched, origin: Origin, verb: str, after: bool
) -> None:
    origin.world.fail(verb, XenError("no", rc=-3, operation="x"), after=after)
    with pytest.raises(OperationFailed, match="no"):
        watched.clone(watched.fake())
    assert "watch begins" not in watched.order
    assert watched.order[-1] == "watch closed"
    assert watched.started == []


def test_the_watch_of_a_clone_that_is_cancelled_ends(watched: Watched, origin: Origin) -> None:
    cancel = Cancel()
    origin.world.on_event = lambda verb: cancel.set() if verb == "clone xvda" else None
    with pytest.raises(Interrupted):
        watched.clone(watched.fake(), cancel)
    assert watched.order == ["watch waits", "watch closed"]
    assert origin.world.photo() == origin.before


def test_the_qemu_of_the_original_need_not_be_started(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it runs from the same files; a start takes long."""
    program = world.root / "own-qemu"
    program.write_text("#!/bin/sh\nexit 127\n")
    program.chmod(0o755)
    world.host.device_model_path = str(program)
    origin = Origin(world, kind="pvh")
    origin.guest.device_model = os.getpid()
    with pytest.raises(Refused, match="cannot be started"):
        origin.clone()
    monkeypatch.setattr(
        qemu_version, "runs", lambda pid, path: (pid, path) == (os.getpid(), str(program))
    )
    origin.clone()
    assert origin.find()
