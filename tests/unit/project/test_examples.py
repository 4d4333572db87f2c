"""The parts of the examples that need no Xen; tests/lab/test_examples.py runs all of them."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pyxlsnap import contents
from pyxlsnap.model import RunState
from pyxlsnap.request import ReadRequest
from pyxlsnap.snapshot_info import SnapshotDisk, SnapshotInfo
from tests.project import PROJECT
from tests.unit.support.clones import Origin
from tests.unit.support.qemu import qemu_img
from tests.unit.support.world import World


@pytest.fixture(scope="module")
def move() -> ModuleType:
    path = PROJECT / "examples" / "move_snapshot.py"
    spec = spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_a_snapshot_that_is_not_whole_is_not_packed(move: ModuleType, world: World) -> None:
    origin = Origin(world)
    origin.memory_path.unlink()
    with pytest.raises(SystemExit, match="is not whole"):
        move.files_of(contents.read(ReadRequest(cfgfile=str(origin.cfg))))
