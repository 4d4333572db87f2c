"""A create that a crash of the host interrupted: its domid means nothing, and there is no QEMU."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyxlsnap.disks import in_use
from pyxlsnap.disks.registry import strategies
from pyxlsnap.errors import NeedsAttention
from pyxlsnap.journal import CreateEntry, Journal, boot_id
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.recovery import undo_create
from pyxlsnap.results import Recovered
from tests.unit.support import operations
from tests.unit.support.entries import create_entry
from tests.unit.support.qemu import DOMID, Qemu, content, qemu_img, tags
from tests.unit.support.values import OTHER_UUID, UUID
from tests.unit.support.world import World

BEFORE = "another boot"


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """With the disk strategies of the package."""
    monkeypatch.setattr(undo_create, "strategies", strategies)
    monkeypatch.setattr(in_use, "_UNUSED_S", 0.3)
    return world


@pytest.fixture
def taken(disks: list[Disk]) -> list[Disk]:
    """Disks with the internal snapshots of a create that has not ended."""
    for disk in disks:
        qemu_img("snapshot", "-c", "snap", disk.target)
    return disks


def crashed(disks: list[Disk], /, **more: Any) -> CreateEntry:
    """The journal of the create."""
    usual: dict[str, Any] = {
        "domid": DOMID,
        "boot": BEFORE,
        "disks": tuple(DiskRequest(d.vdev) for d in disks),
        "devices": tuple(disks),
        "kinds": {d.vdev: "qcow2" for d in disks},
        "disk_state": {},
        "temporary": (),
        "started": time.time() - 5,
    }
    entry = create_entry(**{**usual, **more})
    Journal(UUID).write(entry)
    return entry


def recover(world: World) -> Recovered:
    return operations.recover(world.host, None)


def start(world: World, domid: int, disks: list[Disk], uuid: str = UUID) -> Any:
    """A domain with that domid."""
    world.host._domid = domid - 1
    return world.guest(*disks, uuid=uuid)


@pytest.fixture
def anothers(run_dir: Path) -> Iterator[Disk]:
    """The disk of another guest, which has the old domid now and a snapshot of the same name."""
    disk = Disk("xvda", str(run_dir / "another.qcow2"), "qcow2")
    qemu_img("create", "-q", "-f", "qcow2", disk.target, "1M")
    qemu_img("snapshot", "-c", "snap", disk.target)
    qemu = Qemu(run_dir, {"xlsnap-xvda-1": disk.target})
    qemu.has_opened()
    yield disk
    qemu.close()


def test_internal_snapshots_are_deleted(world: World, taken: list[Disk]) -> None:
    crashed(taken)
    recovered = recover(world)
    assert recovered.rolled_back
    assert [line.partition(": ")[2] for line in recovered.lines] == [
        f"deleted the disk snapshot 'snap' of {d.vdev}" for d in taken
    ]
    assert [tags(d) for d in taken] == [[], []]
    assert [content(d) for d in taken] == [1, 1]
    assert Journal(UUID).read() is None


@pytest.mark.parametrize("boot", [BEFORE, "", "this"])
def test_the_guest_that_has_the_old_domid_now_is_left_alone(
    world: World, taken: list[Disk], anothers: Disk, boot: str
) -> None:
    """Also if our guest has only ended, and another one was given its domid."""
    other = start(world, DOMID, [anothers], OTHER_UUID)
    other.suspended = True  # another program is saving it
    crashed(taken, boot=boot_id() if boot == "this" else boot)
    assert recover(world).rolled_back
    assert tags(anothers) == ["snap"]
    assert [tags(d) for d in taken] == [[], []]
    assert other.suspended


def test_a_snapshot_that_is_older_stays(world: World, taken: list[Disk]) -> None:
    crashed(taken, started=time.time() + 60)
    assert recover(world).lines == ()
    assert [tags(d) for d in taken] == [["snap"], ["snap"]]


def test_of_two_snapshots_of_that_name_none_is_deleted(world: World, taken: list[Disk]) -> None:
    crashed(taken)
    qemu_img("snapshot", "-c", "snap", taken[0].target)
    with pytest.raises(NeedsAttention, match="2 disk snapshots named 'snap'"):
        recover(world)
    assert [tags(d) for d in taken] == [["snap", "snap"], []]


def test_an_image_that_a_process_has_open_is_not_written(world: World, taken: list[Disk]) -> None:
    """The domain was started under another uuid."""
    crashed(taken)
    with open(taken[0].target, "rb") as image:
        user = subprocess.Popen(["sleep", "60"], stdin=image)
    try:
        with pytest.raises(NeedsAttention, match=rf"in use by sleep \(pid {user.pid}\)"):
            recover(world)
    finally:
        user.kill()
        user.wait()
    assert [tags(d) for d in taken] == [["snap"], []]
    recover(world)
    assert [tags(d) for d in taken] == [[], []]


@pytest.mark.parametrize("domid", [DOMID, DOMID + 1])
def test_the_domain_that_was_started_since_goes_on_as_it_is(
    world: World, taken: list[Disk], run_dir: Path, domid: int
) -> None:
    """It was paused before the crash, and is not paused after it. Its QEMU has the disks open."""
    guest = start(world, DOMID, taken)
    crashed(taken, paused=True)
    qemu = Qemu(run_dir, {d.vdev: d.target for d in taken})
    qemu.has_opened()
    if domid != DOMID:
        guest.domid = domid
        (run_dir / f"qmp-libxenstat-{DOMID}").rename(run_dir / f"qmp-libxenstat-{domid}")
    try:
        assert recover(world).rolled_back
    finally:
        if domid != DOMID:
            (run_dir / f"qmp-libxenstat-{domid}").rename(run_dir / f"qmp-libxenstat-{DOMID}")
        qemu.close()
    assert guest.runs
    assert [tags(d) for d in taken] == [[], []]


@pytest.mark.parametrize(("boot", "domid"), [(BEFORE, DOMID), ("this", DOMID + 1)])
def test_a_domain_that_another_program_saves_is_not_resumed(
    world: World, taken: list[Disk], boot: str, domid: int
) -> None:
    guest = start(world, domid, taken)
    guest.suspended = True
    crashed(taken, boot=boot_id() if boot == "this" else boot)
    recover(world)
    assert guest.suspended


def test_a_disk_that_was_detached_since_is_looked_at_in_its_file(
    world: World, taken: list[Disk], run_dir: Path
) -> None:
    start(world, DOMID, taken[:1])
    crashed(taken)
    qemu = Qemu(run_dir, {"xvda": taken[0].target})
    qemu.has_opened()
    assert recover(world).rolled_back
    qemu.close()
    assert [tags(d) for d in taken] == [[], []]


def test_storage_that_is_not_there_is_not_called_undone(world: World, taken: list[Disk]) -> None:
    """Its filesystem is not mounted yet."""
    target = Path(taken[1].target)
    crashed(taken)
    target.rename(target.with_suffix(".away"))
    with pytest.raises(NeedsAttention, match=f"xvdb: {target} is not there: "):
        recover(world)
    assert tags(taken[0]) == []
    target.with_suffix(".away").rename(target)
    assert recover(world).rolled_back
    assert tags(taken[1]) == []


@pytest.mark.parametrize(("vdev", "form"), [("xvda", "qcow2"), ("xvdb", "raw")])
def test_the_same_of_snapshots_in_files(world: World, tmp_path: Path, vdev: str, form: str) -> None:
    """Not only the disk is away: the snapshot's file beside it is, too."""
    away = tmp_path / "mount"
    kind = {"qcow2": "qcow2", "raw": "raw file"}[form]
    disk = Disk(vdev, str(away / "disk"), form)
    state = {f"{vdev} overlay": str(away / ".disk.overlay"), f"{vdev} token": "t"}
    crashed(
        [disk],
        disks=(DiskRequest(vdev, str(away / "disk.snap"), form),),
        kinds={vdev: kind},
        disk_state=state,
    )
    with pytest.raises(NeedsAttention, match=f"{away}.* is not there: "):
        recover(world)
    away.mkdir()
    (away / "disk").touch()
    assert recover(world).rolled_back


def test_the_same_of_the_memory_file(world: World, taken: list[Disk], tmp_path: Path) -> None:
    temporary = tmp_path / "mount" / ".snap.tmp"
    crashed(taken, temporary=(str(temporary),))
    with pytest.raises(NeedsAttention, match=f"{temporary.parent} is not there: "):
        recover(world)
    temporary.parent.mkdir()
    temporary.touch()
    assert recover(world).rolled_back
    assert not temporary.exists()


def test_a_directory_that_the_create_had_yet_to_make_is_no_hindrance(
    world: World, taken: list[Disk], tmp_path: Path
) -> None:
    directory = tmp_path / "new" / "newer"
    made = (str(directory.parent), str(directory))
    crashed(taken, temporary=(str(directory / ".snap.tmp"),), directories=made)
    assert recover(world).rolled_back


def test_an_entry_that_names_no_boot_is_of_this_one(
    world: World, taken: list[Disk], run_dir: Path
) -> None:
    """A release that wrote such entries was upgraded after the kill."""
    crashed(taken, boot="")
    guest = start(world, DOMID, taken)
    guest.suspended = True
    qemu = Qemu(run_dir, {d.vdev: d.target for d in taken})
    qemu.has_opened()
    try:
        assert f"{UUID}: resumed vm1" in recover(world).lines
    finally:
        qemu.close()
    assert guest.runs


def test_one_of_this_boot_whose_qemu_has_ended_is_not_resumed(
    world: World, taken: list[Disk]
) -> None:
    """Without its QEMU it has no disks."""
    crashed(taken, boot=boot_id())
    guest = start(world, DOMID, taken)
    guest.suspended = True
    with pytest.raises(NeedsAttention, match=r"QEMU has ended.*nothing was deleted"):
        recover(world)
    assert guest.suspended
    assert [tags(d) for d in taken] == [["snap"], ["snap"]]
