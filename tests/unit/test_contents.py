"""What a cfgfile stands for, as a value: whole, incomplete, and with clones."""

import json
import subprocess
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pyxlsnap import cfgfile, clone_file, contents
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.clone.sequence import Cloning
from pyxlsnap.clone_file import CloneFile
from pyxlsnap.delete import plan as delete_plan
from pyxlsnap.disks import contents as disk_contents
from pyxlsnap.disks.contents import Found, look
from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import ConfigError, Refused
from pyxlsnap.journal import CloneEntry, Journal
from pyxlsnap.memory import write_header
from pyxlsnap.model import Disk, DiskRequest, Metadata, RunState, SnapshotConfig
from pyxlsnap.request import DeleteRequest, ReadRequest
from pyxlsnap.serialize import rebuild
from pyxlsnap.snapshot_info import SnapshotDisk, SnapshotInfo
from tests.unit.support import operations, streams
from tests.unit.support.clones import CLONE, SNAPSHOT, Origin
from tests.unit.support.entries import clone_entry
from tests.unit.support.faults import run_until
from tests.unit.support.guest import config_of
from tests.unit.support.lvm import FakeLvm, create, install, populate
from tests.unit.support.qemu import damage, qemu_img
from tests.unit.support.values import OTHER_UUID, UUID
from tests.unit.support.world import World


def read(cfg: Path) -> SnapshotInfo:
    return contents.read(ReadRequest(cfgfile=str(cfg)))


def test_a_snapshot_is_described(world: World) -> None:
    origin = Origin(world)
    found = read(origin.cfg)
    assert (found.name, found.domain, found.uuid) == (SNAPSHOT, "vm1", UUID)
    assert (found.guest_kind, found.state) == ("hvm", RunState.RUNNING)
    assert found.created
    assert {"xen", "pyxlsnap"} <= found.versions.keys()
    assert found.memory_kb
    assert found.size_bytes
    assert [(d.vdev, d.kind) for d in found.disks] == [("xvda", "fake"), ("xvdb", "fake")]
    assert (found.left_out, found.clones, found.missing) == ({}, (), ())
    assert rebuild(SnapshotInfo, json.loads(json.dumps(asdict(found)))) == found


CREATED = 1_700_000_000
VERSIONS = {"pyxlsnap": "1.2.3", "xen": "4.17", "qemu": "7.2.9"}
#: the types of its pages: a restore does not give the guest the last one
PAGES = (*[0] * 31, 0xF)


def sparse(path: Path) -> int:
    """Make holes where a file has zeros; returns the space that it takes then."""
    copy = path.with_suffix(".sparse")
    subprocess.run(["cp", "--sparse=always", path, copy], check=True)
    copy.rename(path)
    said = subprocess.run(["du", "-B1", path], check=True, capture_output=True, text=True)
    return int(said.stdout.split()[0])


def described(directory: Path, description: str = "before the upgrade") -> Path:
    """A snapshot of one disk of four, with its files; returns its cfgfile.

    :param description: in the memory file; the cfgfile has another one.
    """
    (directory / "a.snap").write_bytes(b"x" * 8192)
    requests = (DiskRequest("xvda", str(directory / "a.snap"), "raw"),)
    saved = config_of(
        Disk("xvda", "/srv/a", "raw"),
        Disk("xvdb", "/srv/b", "raw"),
        Disk("xvdc", "/srv/c", "raw", readwrite=False),
        Disk("hdc", "/srv/d.iso", "raw", readwrite=False, cdrom=True),
    )
    kinds = {"xvda": "raw file"}
    meta = Metadata("s", description, CREATED, RunState.PAUSED, requests, VERSIONS, kinds)
    memory = directory / "s.save"
    with memory.open("xb") as file:
        write_header(file, config_json=saved.json, metadata=meta)
        pages = streams.page_data(PAGES, fill=b"\0")
        after = [streams.emulator(2, b"key\0value\0"), streams.emulator(3)]
        file.write(streams.stream(2, streams.hvm_records([pages]), after=after))
    cfg = directory / "s.cfg"
    cfg.write_text(cfgfile.render(SnapshotConfig("s", "of the cfgfile", str(memory), requests)))
    return cfg


def test_every_value_is_that_of_the_snapshot(tmp_path: Path) -> None:
    cfg = described(tmp_path)
    memory, snap = tmp_path / "s.save", tmp_path / "a.snap"
    size = sparse(memory)
    assert 0 < size < memory.stat().st_size
    assert read(cfg) == SnapshotInfo(
        name="s",
        description="before the upgrade",
        cfgfile=str(cfg),
        memory_path=str(memory),
        domain="vm1",
        uuid=UUID,
        guest_kind="hvm",
        created=float(CREATED),
        state=RunState.PAUSED,
        versions=VERSIONS,
        memory_kb=31 * 4,
        size_bytes=size,
        disks=(SnapshotDisk("xvda", "/srv/a", "raw file", str(snap), 8192, (), ()),),
        left_out={"xvdb": "not in the snapshot", "xvdc": "read-only", "hdc": "a CD-ROM drive"},
        clones=(),
        missing=(),
    )


@pytest.mark.parametrize("memory", ["without a description", "gone"])
def test_the_description_of_the_cfgfile(tmp_path: Path, memory: str) -> None:
    cfg = described(tmp_path, "")
    if memory == "gone":
        (tmp_path / "s.save").unlink()
    found = read(cfg)
    assert found.description == "of the cfgfile"
    assert bool(found.size_bytes) == (memory != "gone")


def test_its_clones_are_named(world: World) -> None:
    origin = Origin(world)
    made = origin.clone()
    (clone,) = read(origin.cfg).clones
    assert (clone.domain, clone.uuid) == (CLONE, made.uuid)
    assert clone.disks == {d.vdev: d.target for d in made.disks}


def test_a_clone_that_is_half_made_is_named_once(world: World) -> None:
    """It keeps the snapshot from being deleted."""
    origin = Origin(world)
    run_until(Cloning(world.host, origin.plan()).steps(), "disks")
    (clone,) = read(origin.cfg).clones
    assert clone.domain == CLONE
    operations.recover(world.host, None, start_monitor=lambda _: None)
    origin.clone()
    run_until(Cloning(world.host, origin.plan(replace=True)).steps(), "journal")
    assert [c.domain for c in read(origin.cfg).clones] == [CLONE]


def test_the_clones_of_an_earlier_snapshot_of_its_name_are_not_its_own(world: World) -> None:
    origin = Origin(world)
    file = CloneFile(origin.clone().uuid)
    entry = file.entry()
    assert entry
    assert entry.created
    for created, count in ((entry.created - 1, 0), (None, 1)):
        file.rewrite(replace(entry, created=created))
        assert len(read(origin.cfg).clones) == count


def test_without_its_memory_file(world: World) -> None:
    origin = Origin(world)
    origin.memory_path.unlink()
    found = read(origin.cfg)
    assert (found.name, found.domain, found.state, found.memory_kb) == (SNAPSHOT, "", None, None)
    assert str(origin.memory_path) in found.missing[0]
    assert [d.vdev for d in found.disks] == ["xvda", "xvdb"]


def test_with_half_a_memory_file(world: World) -> None:
    origin = Origin(world)
    data = origin.memory_path.read_bytes()
    origin.memory_path.write_bytes(data[:-20])
    (why,) = read(origin.cfg).missing
    assert str(origin.memory_path) in why


def test_a_read_that_is_cancelled(world: World) -> None:
    """While the memory file is read: the end of this one is not reached."""
    origin, cancel = Origin(world), Cancel()
    cancel.set()
    origin.memory_path.write_bytes(origin.memory_path.read_bytes()[:-20])
    with pytest.raises(Cancelled):
        contents.read(ReadRequest(cfgfile=str(origin.cfg)), cancel)


def test_a_read_that_is_cancelled_between_two_disks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, cancel = Origin(world), Cancel()
    seen: list[str] = []

    def looks(disk: Disk, *_: object) -> Found:
        seen.append(disk.vdev)
        cancel.set()
        return Found("there")

    monkeypatch.setattr(disk_contents, "look", looks)
    with pytest.raises(Cancelled):
        contents.read(ReadRequest(cfgfile=str(origin.cfg)), cancel)
    assert seen == ["xvda"]


def test_a_cfgfile_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.cfg").write_text("nonsense")
    with pytest.raises(ConfigError):
        read(tmp_path / "a.cfg")


def test_a_cfgfile_of_another_memory_file(world: World) -> None:
    origin = Origin(world)
    other = replace(cfgfile.read(origin.cfg), name="other")
    origin.cfg.write_text(cfgfile.render(other))
    with pytest.raises(ConfigError, match="belongs to snapshot"):
        read(origin.cfg)


def test_a_file_of_a_clone_that_cannot_be_read(world: World) -> None:
    origin = Origin(world)
    CloneFile(UUID).path.write_text("{")
    with pytest.raises(Refused, match="cannot be read"):
        read(origin.cfg)


# disk snapshots


def test_a_frozen_file_and_what_stands_on_it(tmp_path: Path) -> None:
    base, frozen, active = (tmp_path / n for n in ("base", "frozen", "active"))
    qemu_img("create", "-q", "-f", "qcow2", str(base), "1M")
    for below, above in ((base, frozen), (frozen, active)):
        qemu_img("create", "-q", "-f", "qcow2", "-b", str(below), "-F", "qcow2", str(above))
    other = tmp_path / "clones"
    other.mkdir()
    qemu_img("create", "-q", "-f", "qcow2", "-b", str(frozen), "-F", "qcow2", str(other / "c1"))
    disk = Disk("xvda", str(active), "qcow2")
    request = DiskRequest("xvda", str(frozen), "qcow2")
    found = look(disk, request, "qcow2", "snap", [other])
    assert (found.where, found.stands_on) == (str(frozen), (str(base),))
    assert set(found.supports) == {str(active), str(other / "c1")}
    assert found.size_bytes
    assert not found.missing
    base.unlink()
    assert "is gone" in look(disk, request, "qcow2", "snap", []).missing
    frozen.unlink()
    assert "no file" in look(disk, request, "qcow2", "snap", []).missing


def test_a_disk_snapshot_inside_an_image(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", str(image), "1M")
    qemu_img("snapshot", "-c", "snap", str(image))
    disk = Disk("xvda", str(image), "qcow2")
    found = look(disk, DiskRequest("xvda"), "qcow2", "snap", [])
    assert (found.where, found.missing) == (f"snap in {image}", "")
    assert "no disk snapshot" in look(disk, DiskRequest("xvda"), "qcow2", "none", []).missing
    damage(image)
    assert "qemu-img info failed" in look(disk, DiskRequest("xvda"), "qcow2", "snap", []).missing
    image.unlink()
    assert look(disk, DiskRequest("xvda"), "qcow2", "snap", []).missing


@pytest.mark.parametrize("kind", ["raw file", "block device"])
def test_a_copy(tmp_path: Path, kind: str) -> None:
    copy = tmp_path / "a.snap"
    disk, request = Disk("xvda", "/d", "raw"), DiskRequest("xvda", str(copy), "raw")
    assert "no file" in look(disk, request, kind, "snap", []).missing
    copy.write_bytes(b"x" * 8192)
    found = look(disk, request, kind, "snap", [])
    assert (found.size_bytes, found.missing) == (8192, "")


@pytest.mark.parametrize(("kind", "depends"), [("thin", False), ("thick", True)])
def test_a_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, depends: bool
) -> None:
    fake = FakeLvm(tmp_path)
    populate(fake)
    install(fake, monkeypatch)
    disk = Disk("xvda", str(fake.path(f"{kind}-a")), "raw")
    request = DiskRequest("xvda")
    assert "no volume" in look(disk, request, f"LVM {kind}", "snap", []).missing
    create(fake, kind)
    found = look(disk, request, f"LVM {kind}", "snap", [])
    assert (bool(found.stands_on), found.missing) == (depends, "")
    if depends:  # (LVM tells it of an active one only)
        fake.lvs[f"{kind}-a-snap"].invalid = True
        assert "run full" in look(disk, request, f"LVM {kind}", "snap", []).missing


def test_a_look_that_fails_is_a_part_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(_: object) -> None:
        raise TimeoutError(110, "no answer within 5 s", "/nfs/a")

    monkeypatch.setattr(disk_contents, "stat_within", hangs)
    disk, request = Disk("xvda", "/d", "raw"), DiskRequest("xvda", "/nfs/a", "raw")
    assert look(disk, request, "raw file", "snap", []).missing == "xvda: no answer within 5 s"


# a delete


def stands(image: Path, *, half_made: bool, seen: bool) -> None:
    """A clone of another snapshot, with an overlay on an image.

    :param seen: the filesystem of the overlay is mounted.
    """
    disk = Disk("xvda", f"{image}.active", "qcow2"), DiskRequest("xvda", str(image), "qcow2")
    with closing(Qcow2([disk], DiskTask("other"))) as strategy:
        children = strategy.check_clone("c1", {})
        strategy.clone()
    Journal(OTHER_UUID).write(clone_entry(uuid=OTHER_UUID, domain="c1", children=tuple(children)))
    if not half_made:
        CloneFile(OTHER_UUID).publish()
    if not seen:
        Path(children[0].target).unlink()


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("half_made", [False, True])
@pytest.mark.parametrize("deep", [False, True])
def test_a_snapshot_on_which_a_clone_stands_is_not_deleted(
    world: World, deep: bool, half_made: bool, seen: bool
) -> None:
    """Also if a later disk snapshot is between them, if the clone's process was killed, and if the
    filesystem of the clone's disk is not mounted.
    """
    origin = Origin(world)
    frozen, later = (world.root / "images" / n for n in ("frozen", "later"))
    qemu_img("create", "-q", "-f", "qcow2", str(frozen), "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", str(frozen), "-F", "qcow2", str(later))
    stands(later if deep else frozen, half_made=half_made, seen=seen)
    wanted = DeleteRequest(cfgfile=str(origin.cfg), config=cfgfile.read(origin.cfg))
    parts = delete_plan.read_parts(wanted)
    external = tuple(replace(r, path=str(frozen), format="qcow2") for r in parts.requests)
    way = "snapshot-recover" if half_made else "delete_clone"
    with pytest.raises(Refused, match=f"the clone c1 stands on {frozen}: .*{way}"):
        delete_plan.make_plan(world.host, wanted, replace(parts, requests=external))
    later_only = tuple(replace(r, path=str(later)) for r in external)
    if not deep:  # the later one can be deleted
        delete_plan.make_plan(world.host, wanted, replace(parts, requests=later_only)).close()


def test_a_clone_that_is_finished_meanwhile_is_seen(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its journal gets another name, just when journals and the files of clones are read."""
    origin = Origin(world)
    frozen = world.root / "images" / "frozen"
    qemu_img("create", "-q", "-f", "qcow2", str(frozen), "1M")
    stands(frozen, half_made=True, seen=True)
    unfinished = clone_file.unfinished_clones

    def read_late() -> list[CloneEntry]:
        CloneFile(OTHER_UUID).publish()
        return unfinished()

    monkeypatch.setattr(delete_plan, "unfinished_clones", read_late)
    wanted = DeleteRequest(cfgfile=str(origin.cfg), config=cfgfile.read(origin.cfg))
    parts = delete_plan.read_parts(wanted)
    external = tuple(replace(r, path=str(frozen), format="qcow2") for r in parts.requests)
    with pytest.raises(Refused, match="the clone c1 stands on"):
        delete_plan.make_plan(world.host, wanted, replace(parts, requests=external))


def test_a_snapshot_whose_clones_stand_on_nothing_is_deleted(world: World) -> None:
    origin = Origin(world)
    origin.clone()
    operations.delete(world.host, origin.cfg)
    assert not origin.cfg.exists()
    assert origin.find()
