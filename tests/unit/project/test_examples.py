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

from pyxlsnap import cfgfile, contents
from pyxlsnap.cancel import Cancel
from pyxlsnap.clone.delete import delete_clone
from pyxlsnap.clone.operation import clone, read_cfgfile
from pyxlsnap.clone.plan import make_plan
from pyxlsnap.clone.sequence import Cloning
from pyxlsnap.disks import plugins, registry
from pyxlsnap.errors import (
    AlreadyExists,
    DomainNotFound,
    NeedsAttention,
    OperationFailed,
    Refused,
)
from pyxlsnap.model import Disk, DiskRequest, RunState, SnapshotConfig
from pyxlsnap.request import Callbacks, CloneRequest, DeleteCloneRequest, ReadRequest
from pyxlsnap.results import Cloned, Deleted
from pyxlsnap.snapshot_info import SnapshotDisk, SnapshotInfo
from tests.project import PROJECT
from tests.unit.support import operations
from tests.unit.support.clones import CLONE_UUID, Origin, clone_steps
from tests.unit.support.faults import run_until
from tests.unit.support.loop_files import mounted
from tests.unit.support.qemu import qemu_img
from tests.unit.support.world import CHOOSERS, World, make_world


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
    unpack = ["sh", "-c", "\n".join([*lines[:-3], ")"])]
    (here / "a.snap").unlink()
    (here / "base").write_text("of this host")  # of the same name
    assert subprocess.run(unpack, check=False).returncode != 0
    assert (here / "base").read_text() == "of this host"
    assert not (here / "a").exists()
    for path in here.iterdir():
        path.unlink()
    (here / "c").write_text("a disk of this host")
    assert subprocess.run(unpack, check=False).returncode != 0
    assert (here / "c").read_text() == "a disk of this host"
    for path in here.iterdir():
        path.unlink()
    subprocess.run(unpack, check=True)
    assert {path.name: path.read_bytes() for path in here.iterdir()}.items() >= was.items()
    assert (here / "c").stat().st_size == len(was["c.snap"])
    check = subprocess.run(
        ["qemu-img", "check", "-q", str(here / "a")], check=False, capture_output=True
    )
    assert check.returncode == 0
    assert [line.split()[:2] for line in lines[-3:-1]] == [["pyxlsnap", "snapshot-revert"]] * 2


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
        pool = sandboxes.example.Pool("/c", ["br"])
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
        pool = sandboxes.example.Pool("/c", ["br"] * 4)
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
        asyncio.run(sandboxes.example.main("/c", "br0", "br1"))
    assert sandboxes.there == {}


def test_a_snapshot_that_is_not_whole_is_not_packed(move: ModuleType, world: World) -> None:
    origin = Origin(world)
    origin.memory_path.unlink()
    with pytest.raises(SystemExit, match="is not whole"):
        move.files_of(contents.read(ReadRequest(cfgfile=str(origin.cfg))))


# The disk strategy for btrfs


@pytest.fixture(scope="module")
def filesystem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted("btrfs", tmp_path_factory.mktemp("filesystem")) as where:
        yield where


class OnBtrfs:
    """A guest with two raw disks in a subvolume, and a snapshot ``base``; all by the strategy."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.volume = world.root / "images" / "vm"
        subprocess.run(["btrfs", "-q", "subvolume", "create", self.volume], check=True)
        self.files = [self.volume / name for name in ("a.img", "b.img")]
        for file in self.files:
            file.write_bytes(b"then" * 4096)
        disks = zip(("xvda", "xvdb"), self.files, strict=True)
        world.guest(*(Disk(vdev, str(file), "raw", "phy") for vdev, file in disks))
        wanted = SnapshotConfig("base", disks=(DiskRequest("xvda"), DiskRequest("xvdb")))
        self.made = operations.create(world.host, "vm1", wanted)
        for file in self.files:
            file.write_bytes(b"now" * 4096)

    def clone(self, **more: Any) -> Cloned:
        request = CloneRequest(domain="c1", cfgfile=self.made.cfgfile, **more)
        return clone(self.world.host, request, Callbacks())

    def delete(self) -> Deleted:
        return delete_clone(self.world.host, DeleteCloneRequest(domain="c1"), Callbacks())

    def there(self) -> set[str]:
        """The names of what is beside the subvolume."""
        return {path.name for path in self.volume.parent.iterdir()} - {"vmlinuz"}


@pytest.fixture
def on_btrfs(
    filesystem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OnBtrfs]:
    """The strategy is installed, as pip does it."""
    info = tmp_path / "btrfs_disks-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: btrfs-disks\nVersion: 1\n")
    entries = "[pyxlsnap.disks]\nbtrfs = btrfs_disks:Subvolumes\n"
    (info / "entry_points.txt").write_text(entries)
    for path in (tmp_path, PROJECT / "examples" / "btrfs-disks"):
        monkeypatch.syspath_prepend(path)
    plugins.installed.cache_clear()
    found = make_world(filesystem / tmp_path.name, monkeypatch)
    for module in CHOOSERS:
        monkeypatch.setattr(module, "strategies", registry.strategies)
    yield OnBtrfs(found)
    plugins.installed.cache_clear()


def test_a_revert_in_a_subvolume_and_a_delete(on_btrfs: OnBtrfs) -> None:
    host, cfg = on_btrfs.world.host, Path(on_btrfs.made.cfgfile)
    operations.revert(host, "vm1", cfgfile.read(cfg), cfg)
    assert {file.read_bytes() for file in on_btrfs.files} == {b"then" * 4096}
    assert sorted(on_btrfs.volume.iterdir()) == on_btrfs.files
    operations.delete(host, cfg)
    assert on_btrfs.there() == {"vm"}


def test_a_clone_has_a_subvolume_of_its_own(on_btrfs: OnBtrfs) -> None:
    made = on_btrfs.clone()
    assert {d.how for d in made.disks} == {"btrfs snapshot"}
    assert on_btrfs.there() == {"vm", "vm.base", "vm.base.c1"}
    for disk, file in zip(made.disks, on_btrfs.files, strict=True):
        own = Path(disk.target)
        assert own == on_btrfs.volume.with_name("vm.base.c1") / "disks" / file.name
        assert own.read_bytes() == b"then" * 4096
        own.write_bytes(b"its own")
        snapshot = on_btrfs.volume.with_name("vm.base") / "disks" / file.name
        assert (snapshot.read_bytes(), file.read_bytes()) == (b"then" * 4096, b"now" * 4096)
    assert len(on_btrfs.delete().lines) == 2  # the domain, and one subvolume
    assert on_btrfs.there() == {"vm", "vm.base"}


def test_a_clone_in_a_subvolume_is_replaced_again_and_again(on_btrfs: OnBtrfs) -> None:
    for name in ("c1", "c1.r", "c1"):
        made = on_btrfs.clone(replace=True)
        assert on_btrfs.there() == {"vm", "vm.base", f"vm.base.{name}"}
        assert {Path(d.target).read_bytes() for d in made.disks} == {b"then" * 4096}
        for disk in made.disks:
            Path(disk.target).write_bytes(b"used")
    operations.delete(on_btrfs.world.host, Path(on_btrfs.made.cfgfile))
    assert on_btrfs.there() == {"vm", "vm.base.c1"}  # it depends on nothing
    subprocess.run(["sh", "-euc", made.disks[0].delete], check=True, capture_output=True)
    assert on_btrfs.there() == {"vm"}


def test_a_clone_in_a_subvolume_that_is_killed_before_its_restore(on_btrfs: OnBtrfs) -> None:
    steps = clone_steps(replaces=False)
    request = read_cfgfile(CloneRequest(domain="c1", cfgfile=on_btrfs.made.cfgfile))
    for step in steps[: steps.index("restore")]:
        plan = make_plan(on_btrfs.world.host, request, CLONE_UUID, None, Cancel())
        run_until(Cloning(on_btrfs.world.host, plan).steps(), step)
        plan.close()
        operations.recover(on_btrfs.world.host, CLONE_UUID)
        assert on_btrfs.there() == {"vm", "vm.base"}, step


def test_what_is_not_the_clones_is_left(on_btrfs: OnBtrfs) -> None:
    taken = on_btrfs.volume.with_name("vm.base.c1")
    taken.mkdir()
    with pytest.raises(AlreadyExists, match="choose another name"):
        on_btrfs.clone()
    taken.rmdir()
    made = on_btrfs.clone()
    above = taken / "disks.mine"  # a snapshot of the clone
    above.mkdir()
    with pytest.raises(NeedsAttention, match=r"has disks\.mine: delete that first"):
        on_btrfs.delete()
    assert {Path(d.target).exists() for d in made.disks} == {True}
    above.rmdir()
    operations.recover(on_btrfs.world.host, made.uuid)
    assert on_btrfs.there() == {"vm", "vm.base"}


def test_a_clone_of_half_a_snapshot_in_a_subvolume(on_btrfs: OnBtrfs) -> None:
    with pytest.raises(Refused, match="xvda: its place is beside the snapshot"):
        on_btrfs.clone(disks=(DiskRequest("xvda", "/srv/a", "raw"),))
    whole = on_btrfs.volume.with_name("vm.base") / "disks"
    subprocess.run(["btrfs", "property", "set", whole, "ro", "false"], check=True)
    (whole / "b.img").unlink()
    with pytest.raises(Refused, match=r"xvdb: .* has no b\.img: the snapshot is incomplete"):
        on_btrfs.clone()
    assert on_btrfs.there() == {"vm", "vm.base"}
