"""Disk strategies of others, found by entry point in packages that are really installed."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from pyxlsnap.disks import plugins
from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.disks.registry import choose, default_request, strategies
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk, DiskRequest, SnapshotConfig
from pyxlsnap.results import Artefact, Snapshot
from tests.unit.support import operations
from tests.unit.support.strategy import FakeStrategy
from tests.unit.support.world import World

ARRAY = Disk("xvdb", "array/vol1", "raw", "qdisk", script="block-array")
QCOW2 = Disk("xvda", "/a.qcow2", "qcow2")
CODE = """
    class Array:
        kind = "array"
        def __init__(self, disks, task):
            self.vdevs = tuple(d.vdev for d, _ in disks)
            self.name = task.name
        @staticmethod
        def claims(disk):
            return disk.target.startswith("array/")
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package with one disk strategy ``Array`` and the source of its module."""

    def installed(package: str, code: str, name: str = "") -> None:
        info = tmp_path / f"{package}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(
            f"[pyxlsnap.disks]\n{name or package} = {package}:Array\n"
        )
        (tmp_path / f"{package}.py").write_text(dedent(code))
        monkeypatch.delitem(sys.modules, package, raising=False)
        plugins.installed.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield installed
    plugins.installed.cache_clear()


def test_takes_the_disks_that_it_claims_whatever_they_look_like(install: Install) -> None:
    install("storage_a", CODE)
    more = replace(ARRAY, vdev="xvdc", target="array/vol2")
    disks = [(d, DiskRequest(d.vdev)) for d in (QCOW2, ARRAY, more)]
    array, qcow2 = strategies(disks, DiskTask("snap"))  # QEMU's transaction comes last
    assert (array.kind, array.vdevs) == ("array", ("xvdb", "xvdc"))
    assert (qcow2.kind, qcow2.vdevs) == ("qcow2", ("xvda",))


def test_packages_of_others_are_not_read_again_by_the_library(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library takes long to load; Debian's packages have files, too, where others have
    directories."""
    (tmp_path / "with_a_directory-1.dist-info").mkdir()
    (tmp_path / "with_a_file-1.egg-info").write_text("Metadata-Version: 1.1\nName: with-a-file\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "nowhere.zip")])
    monkeypatch.setitem(sys.modules, "importlib.metadata", None)
    plugins.installed.cache_clear()
    assert plugins.find(QCOW2) is None
    install("storage_l", CODE)
    with pytest.raises(ImportError):
        plugins.find(QCOW2)


def test_goes_before_ours(install: Install) -> None:
    assert choose(QCOW2, DiskRequest("xvda")) is Qcow2
    install("storage_b", CODE.replace('"array/"', '"/a"'))
    (found,) = strategies([(QCOW2, DiskRequest("xvda"))], DiskTask("snap"))
    assert found.kind == "array"


def test_is_not_asked_of_a_disk_that_needs_no_snapshot(install: Install) -> None:
    install("storage_c", CODE)
    with pytest.raises(Refused, match="read-only"):
        choose(replace(ARRAY, readwrite=False), DiskRequest("xvdb"))


def test_a_raw_file_that_it_claims_is_not_to_be_copied(install: Install, tmp_path: Path) -> None:
    file = tmp_path / "disk.raw"
    file.touch()
    disk = Disk("xvda", str(file), "raw")
    assert default_request(disk, "snap").path
    install("storage_d", CODE.replace('"array/"', '"/"'))
    assert default_request(disk, "snap") == DiskRequest("xvda")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import no_such_module", "storage_e cannot be loaded .*no_such_module.*uninstall"),
        ("Aray = 1", "storage_e cannot be loaded .*Array"),
        (CODE.replace("disk.target", "disk.path"), "xvda: .*storage_e failed to say.*'path'"),
    ],
)
def test_one_that_does_not_work_stops_it(install: Install, code: str, says: str) -> None:
    """Else a disk of its kind would be taken for one of ours."""
    install("storage_e", code)
    with pytest.raises(Refused, match=says):
        choose(QCOW2, DiskRequest("xvda"))


def test_two_that_claim_one_disk_stop_it(install: Install) -> None:
    install("storage_f", CODE)
    install("storage_g", CODE)
    with pytest.raises(Refused, match="storage_f and storage_g both claim array/vol1"):
        choose(ARRAY, DiskRequest("xvdb"))
    assert choose(QCOW2, DiskRequest("xvda")) is Qcow2


def test_two_of_one_name_are_two(install: Install) -> None:
    install("storage_h", CODE)
    install("storage_i", CODE, "storage_h")
    with pytest.raises(Refused, match="storage_h and storage_h both claim"):
        choose(ARRAY, DiskRequest("xvdb"))


def test_a_disk_that_ours_had_stays_with_ours(install: Install, tmp_path: Path) -> None:
    """Whatever was installed since, and even if that does not work."""
    install("storage_j", CODE.replace("disk.target", "disk.path"))
    (found,) = strategies([(QCOW2, DiskRequest("xvda"))], DiskTask("snap"), {"xvda": "qcow2"})
    assert found.kind == "qcow2"


def test_a_disk_of_a_strategy_that_is_not_installed_any_more() -> None:
    with pytest.raises(Refused, match=r"xvda: .* by strategy 'array', but 'qcow2' .* now: install"):
        strategies([(QCOW2, DiskRequest("xvda"))], DiskTask("snap"), {"xvda": "array"})


def test_a_disk_that_is_in_another_kind_of_storage_now() -> None:
    with pytest.raises(Refused, match=r"'LVM thin', but 'qcow2' .* now: move the disk back"):
        strategies([(QCOW2, DiskRequest("xvda"))], DiskTask("snap"), {"xvda": "LVM thin"})


@pytest.mark.parametrize("kind", ["qcow2", ""])
def test_one_that_calls_itself_as_ours_stops_it(install: Install, kind: str) -> None:
    """A recovery would give its disks to ours."""
    install("storage_k", CODE.replace('kind = "array"', f"kind = {kind!r}"))
    with pytest.raises(Refused, match=r"xvdb: .* has the kind"):
        strategies([(ARRAY, DiskRequest("xvdb"))], DiskTask("snap"))


class TestMisbehaving:
    """What fails when the work is done does not make it undone."""

    def taken(self, world: World) -> Snapshot:
        return operations.create(world.host, "vm1", SnapshotConfig(name="s"))

    def test_in_close(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        world.guest(world.image("xvda"))

        def close(self: FakeStrategy) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(FakeStrategy, "close", close)
        assert self.taken(world).name == "s"
        assert "a bug" in caplog.text

    def test_in_what_it_says(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        world.guest(world.image("xvda"))

        def artefacts(self: FakeStrategy, domain: str) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(FakeStrategy, "artefacts", artefacts)
        (warning,) = self.taken(world).warnings
        assert warning == "xvda: fake cannot name its disk snapshots: a bug"

    def test_in_the_end_of_a_revert(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        world.guest(world.image("xvda"))
        made = self.taken(world)
        monkeypatch.setattr(FakeStrategy, "finish_revert", lambda self, domid: None)
        wanted = SnapshotConfig(name="s", memory_path=made.memory_path)
        back = operations.revert(world.host, "vm1", wanted, Path(made.cfgfile))
        assert "could not be removed: what fake kept of xvda" in " ".join(back.warnings)


def test_an_artefact_of_the_wrong_types_is_a_warning(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot is taken all the same, and its result reaches the caller."""
    world.guest(world.image("xvda"))
    wrong = Artefact("disk snapshot", "somewhere", "rm it", vdev=None)  # type: ignore[arg-type]
    monkeypatch.setattr(FakeStrategy, "artefacts", lambda *_: [wrong])
    made = operations.create(world.host, "vm1", SnapshotConfig(name="s"))
    (warning,) = made.warnings
    assert "xvda: fake cannot name its disk snapshots: vdev: None is not of type str" in warning
    assert {a.kind for a in made.artefacts} == {"memory file", "cfgfile"}
