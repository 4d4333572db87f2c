"""Files of disks that are gone from their places, and what has them open."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyxlsnap import cfgfile
from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk, DiskRequest, SnapshotConfig
from pyxlsnap.revert.disk_files import cut_off, refuse_lost, refuse_unopenable, replaced
from tests.unit.support.guest import FakeGuest
from tests.unit.support.operations import create, plan_revert
from tests.unit.support.qemu import qemu_img, write
from tests.unit.support.world import World

CHOSEN = list[tuple[Disk, DiskRequest]]


@pytest.fixture
def disks(world: World) -> list[Disk]:
    """Two disks whose files have the same name."""
    found = []
    for vdev in ("xvda", "xvdb"):
        path = world.root / vdev / "disk.img"
        path.parent.mkdir()
        path.touch()
        found.append(Disk(vdev, str(path), "raw", "qdisk"))
    return found


@pytest.fixture
def chosen(disks: list[Disk]) -> CHOSEN:
    return [(disk, DiskRequest(disk.vdev, f"{disk.target}.snap", "raw")) for disk in disks]


@pytest.fixture
def guest(world: World, disks: list[Disk]) -> Iterator[FakeGuest]:
    found = world.guest(*disks)
    with ExitStack() as files:
        fds = [files.enter_context(open(d.target, "r+b")).fileno() for d in disks]
        with subprocess.Popen(["sleep", "60"], pass_fds=fds) as process:
            found.device_model = process.pid
            yield found
            process.kill()


def test_all_is_well(guest: FakeGuest, chosen: CHOSEN) -> None:
    refuse_lost(guest, chosen)
    assert replaced(guest, chosen) == []


def test_the_present_place_of_a_file_is_named(
    guest: FakeGuest, chosen: CHOSEN, world: World
) -> None:
    there = world.root / "disk.img"
    os.rename(chosen[0][0].target, there)
    with pytest.raises(Refused, match=rf"^xvda: {chosen[0][0].target} was moved to {there}: move"):
        refuse_lost(guest, chosen)


def test_another_disk_of_that_name_is_not_taken_for_it(guest: FakeGuest, chosen: CHOSEN) -> None:
    os.rename(chosen[0][0].target, f"{chosen[0][0].target}.away")
    refuse_lost(guest, chosen)  # the disk's strategy says that it is not there


def test_the_command_that_is_told_saves_the_file(guest: FakeGuest, chosen: CHOSEN) -> None:
    path = Path(chosen[1][0].target)
    path.write_bytes(b"precious")
    path.unlink()
    with pytest.raises(Refused, match=r"^xvdb: .* was deleted") as caught:
        refuse_lost(guest, chosen)
    command = str(caught.value).split("`")[1]
    pause, copy, unpause = command.split(" && ")
    assert (pause, unpause) == ("xl pause vm1", "xl unpause vm1")
    subprocess.run(["sh", "-c", copy], check=True)
    assert path.read_bytes() == b"precious"
    refuse_lost(guest, chosen)
    (risk,) = replaced(guest, chosen)
    assert risk.startswith(f"xvdb: {path} is not the file that sleep")


def test_a_file_with_another_name_is_not_lost(guest: FakeGuest, chosen: CHOSEN) -> None:
    path = Path(chosen[1][0].target)
    os.link(path, path.with_name("other"))
    path.unlink()
    refuse_lost(guest, chosen)


@pytest.mark.parametrize("pid", [None, 1 << 22])
def test_without_a_qemu_nothing_is_said(guest: FakeGuest, chosen: CHOSEN, pid: int | None) -> None:
    Path(chosen[0][0].target).unlink()
    guest.device_model = pid
    refuse_lost(guest, chosen)
    assert replaced(guest, chosen) == []
    refuse_lost(None, chosen)
    assert replaced(None, chosen) == []


class TestDisksThatStay:
    """They are not put back, but the restored guest's QEMU must open them."""

    @pytest.fixture(params=[True, False], ids=["writable", "read-only"])
    def stays(self, world: World, request: pytest.FixtureRequest) -> Disk:
        top, base = world.root / "top.qcow2", world.root / "base.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", str(base), "1M")
        qemu_img("create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(top))
        return Disk("xvdc", str(top), "qcow2", readwrite=request.param)

    @pytest.fixture
    def served(self, world: World, stays: Disk) -> Iterator[FakeGuest]:
        guest = world.guest(world.image("xvda"), stays, kind="pvh")
        with ExitStack() as files:
            paths = (stays.target, str(world.root / "base.qcow2"))
            fds = [files.enter_context(open(path, "rb")).fileno() for path in paths]
            with subprocess.Popen(["sleep", "60"], pass_fds=fds) as process:
                guest.device_model = process.pid
                yield guest
                process.kill()

    def test_all_is_well(self, served: FakeGuest, stays: Disk) -> None:
        refuse_lost(served, [], [stays])
        refuse_unopenable([stays])
        assert replaced(served, [], [stays]) == []

    def test_a_backing_file_that_is_deleted_can_be_saved(
        self, served: FakeGuest, stays: Disk, world: World
    ) -> None:
        base = world.root / "base.qcow2"
        base.unlink()
        with pytest.raises(Refused, match=rf"^xvdc: {base}, on which .* was deleted") as caught:
            refuse_lost(served, [], [stays])
        subprocess.run(["sh", "-c", str(caught.value).split("`")[1]], check=True)
        refuse_lost(served, [], [stays])
        refuse_unopenable([stays])
        # (What is only read need not be the same.)
        assert bool(replaced(served, [], [stays])) is stays.readwrite

    def test_a_backing_file_that_nobody_has(self, stays: Disk, world: World) -> None:
        (world.root / "base.qcow2").unlink()
        with pytest.raises(Refused, match=r"^xvdc: .*there is no such file"):
            refuse_unopenable([stays])

    @pytest.mark.parametrize("off", [True, False])
    def test_a_plan_looks_at_them(
        self, served: FakeGuest, stays: Disk, world: World, off: bool
    ) -> None:
        wanted = SnapshotConfig(name="snap", disks=(DiskRequest("xvda"),))
        pid, served.device_model = served.device_model, None  # (the world has no real images)
        cfg = Path(create(world.host, "vm1", wanted).cfgfile)
        served.device_model = pid
        os.rename(world.root / "base.qcow2", world.root / "moved.qcow2")
        if off:
            served.destroy()
        with pytest.raises(Refused, match=r"^xvdc: .*base\.qcow2, and there is no such file"):
            plan_revert(world.host, "vm1", cfgfile.read(cfg), cfg, force=True)


class TestChainWhoseFilesHaveOneName:
    @pytest.fixture
    def chain(self, world: World) -> list[Path]:
        """From the active file down."""
        paths = [world.root / d / "disk.qcow2" for d in ("vm", "mid", "base")]
        below: list[str] = []
        for path in reversed(paths):
            path.parent.mkdir()
            qemu_img("create", "-q", "-f", "qcow2", *below, str(path), "1M")
            below = ["-F", "qcow2", "-b", str(path)]
        return paths

    @pytest.fixture
    def disk(self, chain: list[Path]) -> Disk:
        return Disk("xvda", str(chain[0]), "qcow2")

    @pytest.fixture
    def served(self, world: World, chain: list[Path], disk: Disk) -> Iterator[FakeGuest]:
        guest = world.guest(disk)
        with ExitStack() as files:
            fds = [files.enter_context(path.open("rb")).fileno() for path in chain]
            with subprocess.Popen(["sleep", "60"], pass_fds=fds) as process:
                guest.device_model = process.pid
                yield guest
                process.kill()

    def test_a_deeper_layer_is_not_taken_for_the_one_that_was_renamed(
        self, served: FakeGuest, chain: list[Path], disk: Disk
    ) -> None:
        chosen = [(disk, DiskRequest("xvda"))]
        assert replaced(served, chosen) == []
        os.rename(chain[1], chain[1].with_name("disk-old.qcow2"))
        refuse_lost(served, chosen)  # (the strategy says which file is missing)
        os.rename(chain[2], chain[1])  # as if a message had told to
        refuse_lost(served, chosen)
        (reason,) = replaced(served, chosen)
        assert f"has the image {chain[1].with_name('disk-old.qcow2')} open" in reason

    def test_the_lowest_is_found_under_its_name(
        self, served: FakeGuest, chain: list[Path], disk: Disk, world: World
    ) -> None:
        os.rename(chain[2], world.root / "disk.qcow2")
        with pytest.raises(Refused, match=f"was moved to {world.root}/disk.qcow2: move it back"):
            refuse_lost(served, [(disk, DiskRequest("xvda"))])

    def test_a_chain_that_goes_on_where_only_qemu_knows(
        self, served: FakeGuest, chain: list[Path], disk: Disk
    ) -> None:
        rebase = ["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b"]
        qemu_img(*rebase, f"json:{{'driver':'qcow2','file':'{chain[1]}'}}", str(chain[0]))
        assert replaced(served, [(disk, DiskRequest("xvda"))]) == []

    def test_two_missing_files_of_one_name(
        self, served: FakeGuest, chain: list[Path], disk: Disk, world: World
    ) -> None:
        other = world.root / "other" / "disk.qcow2"
        os.rename(chain[2], world.root / "disk.qcow2")
        refuse_lost(served, [(disk, DiskRequest("xvda"))], [Disk("xvdb", str(other), "raw")])


class TestCutOff:
    """What has lost its end is put back without an error, and the guest's data are damaged."""

    @pytest.fixture
    def images(self, tmp_path: Path) -> list[Path]:
        """A chain, from the lowest file up, with data at the end of that."""
        paths = [tmp_path / name for name in ("base.qcow2", "frozen.qcow2", "disk.qcow2")]
        below: list[str] = []
        for path in paths:
            qemu_img("create", "-q", "-f", "qcow2", *below, str(path), *([] if below else ["1M"]))
            below = ["-F", "qcow2", "-b", str(path)]
        write(Disk("xvda", str(paths[0]), "qcow2"), 1)
        return paths

    @pytest.mark.parametrize("internal", [True, False])
    def test_an_image_below(self, images: list[Path], internal: bool) -> None:
        """Two disks stand on it; it is named once."""
        request = DiskRequest("xvda") if internal else DiskRequest("xvda", str(images[1]), "qcow2")
        chosen = [(Disk("xvda", str(images[2]), "qcow2"), request)]
        stay = [Disk("xvdb", str(images[1]), "qcow2")]
        assert cut_off(chosen, stay) == []
        os.truncate(images[0], images[0].stat().st_size - (64 << 10))
        (reason,) = cut_off(chosen, stay)
        assert reason.startswith(f"xvda: the file {images[0]}, on which the disk will stand, ends")
        (reason,) = cut_off([], stay)
        assert reason.startswith(f"xvdb: the file {images[0]}, ")

    def test_what_the_disk_does_not_stand_on_after_the_revert(self, images: list[Path]) -> None:
        request = DiskRequest("xvda", str(images[0]), "qcow2")
        os.truncate(images[1], 100)
        assert cut_off([(Disk("xvda", str(images[2]), "qcow2"), request)]) == []

    @pytest.mark.parametrize("size", [None, 0, 100, 4096, 8192])
    def test_a_copy(self, disks: list[Disk], chosen: CHOSEN, size: int | None) -> None:
        """One that is missing, or empty, is refused by the disk's strategy."""
        os.truncate(disks[0].target, 4096)
        if size is not None:
            Path(chosen[0][1].path).write_bytes(bytes(size))
        found = cut_off(chosen)
        assert len(found) == (size == 100)
        assert all(f"{chosen[0][1].path} has 100 bytes, and the disk 4096" in r for r in found)
