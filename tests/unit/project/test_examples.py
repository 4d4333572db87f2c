"""The parts of the examples that need no Xen; tests/lab/test_examples.py runs all of them."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pyxlsnap import contents
from pyxlsnap.errors import DomainNotFound, OperationFailed, Refused
from pyxlsnap.model import RunState
from pyxlsnap.request import ReadRequest
from pyxlsnap.snapshot_info import SnapshotDisk, SnapshotInfo
from tests.project import PROJECT
from tests.unit.support.clones import Origin
from tests.unit.support.qemu import qemu_img
from tests.unit.support.world import World


def example(name: str) -> ModuleType:
    path = PROJECT / "examples" / name
    spec = spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def move() -> ModuleType:
    return example("move_snapshot.py")


def info(here: Path, *disks: SnapshotDisk, **more: Any) -> SnapshotInfo:
    values: dict[str, Any] = {
        "name": "s",
        "description": "",
        "domain": "vm1",
        "uuid": "u",
        "guest_kind": "pvh",
        "cfgfile": str(here / "s.cfg"),
        "memory_path": str(here / "s.save"),
        "created": 1.0,
        "state": RunState.RUNNING,
        "versions": {"xen": "4.17"},
        "memory_kb": 1,
        "size_bytes": 1,
        "left_out": {},
        "clones": (),
        "missing": (),
    }
    return SnapshotInfo(**{**values, "disks": disks, **more})


def test_a_snapshot_is_packed_and_unpacked(
    move: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    here = tmp_path / "a host"
    here.mkdir()
    names = ("s.cfg", "s.save", "c.snap")
    for name in names:
        (here / name).write_bytes(name.encode() * 1000)
    base, frozen = str(here / "base"), str(here / "a.snap")
    qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", frozen)
    found = info(
        here,
        SnapshotDisk("xvda", str(here / "a"), "qcow2", frozen, 1, (base,), ()),
        SnapshotDisk("xvdb", str(here / "c"), "raw file", str(here / "c.snap"), 1, (), ()),
    )
    was = {path.name: path.read_bytes() for path in here.iterdir()}
    monkeypatch.setattr(move, "read_snapshot", lambda _: found)
    archive = tmp_path / "s.tar"
    monkeypatch.setattr(sys, "argv", ["move_snapshot.py", found.cfgfile, str(archive)])
    move.main()
    lines = capsys.readouterr().out.splitlines()
    for path in here.iterdir():
        path.unlink()
    subprocess.run(["sh", "-euc", "\n".join(lines[:-2])], check=True)
    assert {path.name: path.read_bytes() for path in here.iterdir()}.items() >= was.items()
    assert (here / "c").stat().st_size == len(was["c.snap"])
    check = subprocess.run(
        ["qemu-img", "check", "-q", str(here / "a")], check=False, capture_output=True
    )
    assert check.returncode == 0
    assert [line.split()[:2] for line in lines[-2:]] == [["pyxlsnap", "snapshot-revert"]] * 2


@pytest.mark.parametrize(("kind", "where"), [("qcow2", "s in /d/a"), ("LVM thin", "vg/a-s")])
def test_what_is_no_file_is_not_packed(
    move: ModuleType, tmp_path: Path, kind: str, where: str
) -> None:
    with pytest.raises(SystemExit, match="is no file"):
        move.files_of(info(tmp_path, SnapshotDisk("xvda", "/d/a", kind, where, 1, (), ())))


def test_a_block_device_is_not_made_as_a_file(
    move: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name in ("s.cfg", "s.save", "a.snap"):
        (tmp_path / name).write_bytes(bytes(512))
    disk = SnapshotDisk("xvda", "/dev/vg/a", "block device", str(tmp_path / "a.snap"), 1, (), ())
    found = info(tmp_path, disk)
    monkeypatch.setattr(move, "read_snapshot", lambda _: found)
    monkeypatch.setattr(sys, "argv", ["", found.cfgfile, str(tmp_path / "s.tar")])
    move.main()
    said = capsys.readouterr().out
    assert "truncate" not in said
    assert "# There /dev/vg/a must be a block device of 512 bytes" in said
    assert "\nblockdev --getsize64 /dev/vg/a\n" in said


class FakeCloner:
    """Makes one of the clones."""

    def __init__(self, sandboxes: "Sandboxes", _cfgfile: str, name: str, **_: Any) -> None:
        self._sandboxes, self._name = sandboxes, name
        sandboxes.open.add(name)

    async def clone(self, **_: Any) -> Any:
        there, name = self._sandboxes.there, self._name
        there.pop(name, None)  # it is replaced
        if name in self._sandboxes.unmade:
            raise OperationFailed(f"no {name}", step="restore")
        there[name] = SimpleNamespace(domain=name, domid=1)
        return there[name]

    async def close(self) -> None:
        self._sandboxes.open.discard(self._name)


class Sandboxes:
    """Clones as the pool of the example makes and deletes them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.example = example("sandbox.py")
        self.there: dict[str, Any] = {}
        #: the names of those that cannot be made, or not be deleted
        self.unmade: set[str] = set()
        self.undeletable: set[str] = set()
        #: the names of those that can be made
        self.open: set[str] = set()
        monkeypatch.setattr(self.example.aio, "Cloner", partial(FakeCloner, self))
        monkeypatch.setattr(self.example.aio, "delete_clone", self.delete)
        monkeypatch.setattr(self.example, "start", lambda _: None)

    async def delete(self, name: str) -> None:
        if name not in self.there:
            raise DomainNotFound(f"no {name}", domain=name)
        if name in self.undeletable:
            raise Refused(f"not {name}")
        del self.there[name]


@pytest.fixture
def sandboxes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandboxes]:
    found = Sandboxes(monkeypatch)
    yield found
    assert not found.open


def test_a_sandbox_that_cannot_be_made_anew(sandboxes: Sandboxes) -> None:
    async def use() -> None:
        pool = sandboxes.example.Pool("/c", 1, "br")
        await pool.fill()
        async with pool.sandbox() as made:
            sandboxes.unmade.add(made.domain)
        for _ in range(2):
            with pytest.raises(OperationFailed, match="no sandbox0"):
                async with asyncio.timeout(60), pool.sandbox():
                    pass
        sandboxes.unmade.clear()
        async with asyncio.timeout(60), pool.sandbox() as made:
            assert made.domain == "sandbox0"
        await pool.close()

    asyncio.run(use())
    assert sandboxes.there == {}


def test_all_sandboxes_are_deleted_that_can_be(sandboxes: Sandboxes) -> None:
    async def use() -> None:
        pool = sandboxes.example.Pool("/c", 4, "br")
        await pool.fill()
        sandboxes.undeletable = {"sandbox2"}
        async with pool.sandbox() as made:
            sandboxes.unmade.add(made.domain)
        with pytest.raises(ExceptionGroup) as caught:
            await pool.close()
        assert [str(e) for e in caught.value.exceptions] == ["not sandbox2"]

    asyncio.run(use())
    assert set(sandboxes.there) == {"sandbox2"}


def test_a_pool_that_cannot_be_filled_leaves_no_sandbox(sandboxes: Sandboxes) -> None:
    sandboxes.unmade = {"sandbox1"}
    with pytest.raises(ExceptionGroup):
        asyncio.run(sandboxes.example.main("/c", 2, "br"))
    assert sandboxes.there == {}


def test_a_snapshot_that_is_not_whole_is_not_packed(move: ModuleType, world: World) -> None:
    origin = Origin(world)
    origin.memory_path.unlink()
    with pytest.raises(SystemExit, match="is not whole"):
        move.files_of(contents.read(ReadRequest(cfgfile=str(origin.cfg))))
