"""The disks of clones: overlays, reflinks, copies and thin volumes, made, cut off and deleted."""

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import pytest

from pyxlsnap.cancel import Cancelled
from pyxlsnap.disks import in_use
from pyxlsnap.disks.abilities import CloningStrategy
from pyxlsnap.disks.copy import child
from pyxlsnap.disks.copy.content import MARK
from pyxlsnap.disks.copy.raw_file import RawFile
from pyxlsnap.disks.lvm import commands
from pyxlsnap.disks.lvm.clones import CLONE_TAG
from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import LeftOver
from pyxlsnap.errors import AlreadyExists, DiskError, Refused
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.results import CloneDisk
from tests.unit.support.loop_files import mounted, opened
from tests.unit.support.lvm import (
    VG,
    FakeLvm,
    Killed,
    at_every_command,
    content,
    create,
    install,
    populate,
)
from tests.unit.support.lvm import strategy as of_lvm
from tests.unit.support.qemu import damage, qemu_img, whole, write
from tests.unit.support.system_calls import Fault
from tests.unit.support.system_calls import Killed as Dead
from tests.unit.support.unreadable import unreadable
from tests.unit.support.waiting import eventually, open_descriptors

NAME, CLONE = "snap", "c1"
NOTHING: Mapping[str, DiskRequest] = {}


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted("xfs", tmp_path_factory.mktemp("filesystem")) as where:
        yield where


@pytest.fixture
def place(xfs: Path, tmp_path: Path) -> Path:
    """A directory where files can share blocks."""
    where = xfs / tmp_path.name
    where.mkdir()
    return where


def frozen_disk(directory: Path) -> tuple[Disk, DiskRequest]:
    """A disk that stands on a frozen file with 1 in it, and has 2 itself."""
    active, frozen = directory / "a.qcow2", directory / "a.snap"
    qemu_img("create", "-q", "-f", "qcow2", str(frozen), "1M")
    write(Disk("xvda", str(frozen), "qcow2"), 1)
    qemu_img("create", "-q", "-f", "qcow2", "-b", str(frozen), "-F", "qcow2", str(active))
    write(Disk("xvda", str(active), "qcow2"), 2)
    frozen.chmod(0o440)
    return Disk("xvda", str(active), "qcow2"), DiskRequest("xvda", str(frozen), "qcow2")


def raw_disk(directory: Path) -> tuple[Disk, DiskRequest]:
    active, snapshot = directory / "a.raw", directory / "a.raw.snap"
    active.write_bytes(b"new" * 50_000)
    snapshot.write_bytes(b"old" * 50_000)
    snapshot.chmod(0o440)
    return Disk("xvda", str(active), "raw", "phy"), DiskRequest("xvda", str(snapshot), "raw")


def qcow2(directory: Path, *, make: bool = True) -> Qcow2:
    chosen = frozen_disk(directory) if make else again(directory, "a.qcow2", "a.snap", "qcow2")
    return Qcow2([chosen], DiskTask(NAME))


def again(directory: Path, disk: str, snapshot: str, form: str) -> tuple[Disk, DiskRequest]:
    request = DiskRequest("xvda", str(directory / snapshot), form)
    return Disk("xvda", str(directory / disk), form), request


def raw(directory: Path, *, make: bool = True) -> RawFile:
    chosen = raw_disk(directory) if make else again(directory, "a.raw", "a.raw.snap", "raw")
    return RawFile([chosen], DiskTask(NAME))


def to(directory: Path, name: str, form: str) -> dict[str, DiskRequest]:
    return {"xvda": DiskRequest("xvda", str(directory / name), form)}


def cloned(
    strategy: CloningStrategy, wanted: Mapping[str, DiskRequest] = NOTHING
) -> list[CloneDisk]:
    """Make the disks of a clone."""
    found = list(strategy.check_clone(CLONE, wanted))
    assert list(strategy.check_clone(CLONE, wanted)) == found
    strategy.clone()
    strategy.close()
    return found


def listing(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_the_strategies_are_cloning_ones(tmp_path: Path) -> None:
    assert isinstance(raw(tmp_path), CloningStrategy)
    assert isinstance(qcow2(tmp_path), CloningStrategy)


# qcow2


def test_an_overlay_has_the_state_of_the_frozen_file_and_keeps_its_writes(tmp_path: Path) -> None:
    strategy, before = qcow2(tmp_path), open_descriptors()
    frozen = (tmp_path / "a.snap").read_bytes()
    (made,) = cloned(strategy)
    assert (made.how, made.format, made.stands_on) == ("overlay", "qcow2", str(tmp_path / "a.snap"))
    assert made.target == str(tmp_path / "a.snap.c1")
    own = Disk("xvda", made.target, "qcow2")
    assert whole(own)[0] == 1
    write(own, 3)
    assert whole(own)[0] == 3
    assert (tmp_path / "a.snap").read_bytes() == frozen
    assert whole(Disk("xvda", str(tmp_path / "a.qcow2"), "qcow2"))[0] == 2
    assert stat.S_IMODE(Path(made.target).stat().st_mode) == 0o640
    assert open_descriptors() == before


def test_an_overlay_is_the_file_that_qemu_img_makes(tmp_path: Path) -> None:
    """The plan has made it; the clone only writes it, without its blocks of zeros."""
    (made,) = cloned(qcow2(tmp_path))
    like = str(tmp_path / "like.qcow2")
    frozen = str(tmp_path / "a.snap")
    qemu_img("create", "-q", "-f", "qcow2", "-b", frozen, "-F", "qcow2", like)
    assert Path(made.target).read_bytes() == Path(like).read_bytes()
    assert Path(made.target).stat().st_blocks <= Path(like).stat().st_blocks


def test_a_frozen_file_that_is_replaced_after_the_plan(tmp_path: Path) -> None:
    """The look just before the clone is made makes the overlay anew."""
    strategy = qcow2(tmp_path)
    strategy.check_clone(CLONE, NOTHING)
    (tmp_path / "a.snap").unlink()
    qemu_img("create", "-q", "-f", "qcow2", str(tmp_path / "a.snap"), "2M")
    (made,) = cloned(strategy)
    assert len(whole(Disk("xvda", made.target, "qcow2"))) == 2 << 20


def test_the_check_of_an_overlay_leaves_nothing(tmp_path: Path) -> None:
    strategy = qcow2(tmp_path)
    before = listing(tmp_path)
    strategy.check_clone(CLONE, NOTHING)
    assert listing(tmp_path) == before


def test_a_frozen_file_that_is_not_there_or_broken(tmp_path: Path) -> None:
    strategy = qcow2(tmp_path)
    (tmp_path / "a.snap").write_bytes(b"nonsense")
    with pytest.raises(Refused, match="xvda"):
        strategy.check_clone(CLONE, NOTHING)
    (tmp_path / "a.snap").unlink()
    with pytest.raises(Refused, match="there is no file"):
        strategy.check_clone(CLONE, NOTHING)


def inside(directory: Path, check: Callable[[], None] = lambda: None) -> Qcow2:
    active = directory / "i.qcow2"
    disk = Disk("xvda", str(active), "qcow2")
    qemu_img("create", "-q", "-f", "qcow2", str(active), "1M")
    write(disk, 1)
    qemu_img("snapshot", "-c", NAME, str(active))
    write(disk, 2)
    return Qcow2([(disk, DiskRequest("xvda"))], DiskTask(NAME, check=check))


def test_a_disk_snapshot_inside_an_image_is_copied_on_request(tmp_path: Path) -> None:
    strategy = inside(tmp_path)
    with pytest.raises(Refused, match="would have to be copied"):
        strategy.check_clone(CLONE, NOTHING)
    (made,) = cloned(strategy, to(tmp_path, "own.qcow2", "qcow2"))
    assert (made.how, made.stands_on) == ("copy", "")
    assert whole(Disk("xvda", made.target, "qcow2"))[0] == 1
    strategy.delete_clone([made], strategy.state())
    assert listing(tmp_path) <= {"i.qcow2", "own.raw"}


def test_a_copy_that_is_cancelled_is_ended_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real qemu-img, and one that takes long to convert."""
    programs, real = tmp_path / "bin", shutil.which("qemu-img")
    programs.mkdir()
    (programs / "qemu-img").write_text(
        f'#!/bin/sh\n[ "$1" != convert ] || exec sleep 60\nexec {real} "$@"\n'
    )
    (programs / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    looks: list[int] = []

    def check() -> None:
        looks.append(0)
        if len(looks) > 3:
            raise Cancelled

    strategy = inside(tmp_path, check)
    made = strategy.check_clone(CLONE, to(tmp_path, "own.qcow2", "qcow2"))
    with pytest.raises(Cancelled):
        strategy.clone()
    strategy.delete_clone(made, strategy.state())
    strategy.close()
    assert not (tmp_path / "own.qcow2").exists()


def test_an_image_that_is_in_use_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = inside(tmp_path)
    with opened(tmp_path / "i.qcow2"), pytest.raises(Refused, match="is in use by"):
        strategy.check_clone(CLONE, to(tmp_path, "own.qcow2", "qcow2"))


def test_an_image_that_qemu_does_not_open_is_not_copied(tmp_path: Path) -> None:
    strategy = inside(tmp_path)
    damage(tmp_path / "i.qcow2")
    with pytest.raises(Refused, match=r"qemu-img info failed"):
        strategy.check_clone(CLONE, to(tmp_path, "own.qcow2", "qcow2"))


# raw files


def test_a_reflink_where_the_filesystem_can(place: Path) -> None:
    (made,) = cloned(raw(place))
    assert (made.how, made.target) == ("reflink copy", str(place / "a.raw.snap.c1"))
    own = Path(made.target)
    assert own.read_bytes() == (place / "a.raw.snap").read_bytes()
    own.write_bytes(b"mine")
    assert (place / "a.raw.snap").read_bytes() == b"old" * 50_000


def test_elsewhere_a_copy_on_request(tmp_path: Path) -> None:
    strategy = raw(tmp_path)
    with pytest.raises(Refused, match="would have to be copied"):
        strategy.check_clone(CLONE, NOTHING)
    (made,) = cloned(strategy, to(tmp_path, "own.raw", "raw"))
    assert made.how == "copy"
    assert Path(made.target).read_bytes() == b"old" * 50_000


@pytest.mark.parametrize("form", ["qcow2", ""])
def test_a_raw_disk_in_another_format(place: Path, form: str) -> None:
    with pytest.raises(Refused, match="in the format raw"):
        raw(place).check_clone(CLONE, to(place, "own", form))


# both


@pytest.mark.parametrize("make", [raw, qcow2])
def test_a_name_that_is_taken(place: Path, make: type[RawFile]) -> None:
    strategy = make(place)  # type: ignore[call-arg,arg-type]
    (found,) = strategy.check_clone(CLONE, NOTHING)
    Path(found.target).write_text("mine")
    with pytest.raises(AlreadyExists):
        strategy.check_clone(CLONE, NOTHING)
    with pytest.raises(AlreadyExists):
        strategy.clone()
    assert strategy.delete_clone([found], strategy.state()) == []
    assert Path(found.target).read_text() == "mine"


def without_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, and on an older tmpfs."""

    def unsupported(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    for name in ("getxattr", "setxattr", "listxattr"):
        monkeypatch.setattr(os, name, unsupported)


@pytest.mark.parametrize("content", ["", "mine"])
@pytest.mark.parametrize("attributes", [True, False])
def test_the_file_of_another_program_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, attributes: bool
) -> None:
    """Two clones with one path: the one that finds the name taken leaves the other's disk."""
    if not attributes:
        without_attributes(monkeypatch)
    strategy = qcow2(tmp_path)
    (found,) = strategy.check_clone(CLONE, NOTHING)
    Path(found.target).write_text(content)
    with pytest.raises(AlreadyExists):
        strategy.clone()
    assert qcow2(tmp_path, make=False).delete_clone([found], strategy.state()) == []
    assert Path(found.target).read_text() == content


def test_without_attributes_a_file_is_known_by_its_inode_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_attributes(monkeypatch)
    strategy = qcow2(tmp_path)
    (made,) = cloned(strategy)
    noted = {key: value for key, value in strategy.state().items() if "inode" not in key}
    with pytest.raises(LeftOver, match="not known as the file"):
        qcow2(tmp_path, make=False).delete_clone([made], noted)
    assert Path(made.target).exists()
    done = qcow2(tmp_path, make=False).delete_clone([made], strategy.state())
    assert done == [f"removed {made.target}"]


def test_a_file_that_becomes_another_programs_meanwhile_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone that is killed before it has made its file, while another one makes the same."""
    strategy = qcow2(tmp_path)
    (found,) = strategy.check_clone(CLONE, NOTHING)
    Path(found.target).touch()

    def is_written(_: object, path: Path) -> None:
        path.write_text("theirs")

    monkeypatch.setattr(child, "wait_until_unused", is_written)
    with pytest.raises(LeftOver):
        qcow2(tmp_path, make=False).delete_clone([found], strategy.state())
    assert Path(found.target).read_text() == "theirs"


def test_a_delete_on_a_new_object(place: Path) -> None:
    first = raw(place)
    (made,) = cloned(first)
    done = raw(place, make=False).delete_clone([made], first.state())
    assert done == [f"removed {made.target}"]
    assert raw(place, make=False).delete_clone([made], first.state()) == []
    assert listing(place) == {"a.raw", "a.raw.snap"}


@pytest.mark.parametrize("make", [raw, qcow2])
def test_a_file_that_cannot_be_looked_at_does_not_count_as_deleted(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], RawFile | Qcow2],
) -> None:
    strategy = make(place)
    (made,) = cloned(strategy)
    with monkeypatch.context() as patch:
        unreadable(patch, made.target)
        with pytest.raises(DiskError, match="Input/output error"):
            strategy.delete_clone([made], strategy.state())
    assert strategy.delete_clone([made], strategy.state()) == [f"removed {made.target}"]


def test_a_file_that_has_replaced_the_disk_is_left(place: Path) -> None:
    """As a snapshot of the clone does: its overlay has the disk's name then."""
    strategy = raw(place)
    (made,) = cloned(strategy)
    (place / "other").write_bytes(b"x")
    os.setxattr(place / "other", MARK, strategy.state()["xvda child"].encode())
    (place / "other").rename(made.target)
    with pytest.raises(LeftOver) as caught:
        strategy.delete_clone([made], strategy.state())
    assert caught.value.finish == f"rm {made.target}"
    assert Path(made.target).exists()


def test_a_disk_on_which_an_image_stands_is_left(tmp_path: Path) -> None:
    strategy = qcow2(tmp_path)
    (made,) = cloned(strategy)
    above = str(tmp_path / "above.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", made.target, "-F", "qcow2", above)
    with pytest.raises(DiskError, match="stands on"):
        strategy.delete_clone([made], strategy.state())
    assert Path(made.target).exists()


def test_a_disk_that_is_in_use_is_left(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_use, "_UNUSED_S", 0.0)
    strategy = raw(place)
    (made,) = cloned(strategy)
    with opened(Path(made.target)), pytest.raises(DiskError, match="still in use"):
        strategy.delete_clone([made], strategy.state())
    assert Path(made.target).exists()


def test_a_clone_that_dies_at_any_system_call_can_be_taken_back(place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fault = Fault(patch, Dead)
        for number in range(1, 200):
            directory = place / str(number)
            directory.mkdir()
            strategy = raw(directory)
            found = strategy.check_clone(CLONE, NOTHING)
            noted = strategy.state()
            try:
                with fault.at(number):
                    strategy.clone()
            except Dead:
                pass
            else:
                assert number > 5
                break
            raw(directory, make=False).delete_clone(found, noted)
            assert listing(directory) == {"a.raw", "a.raw.snap"}


# LVM


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLvm:
    found = FakeLvm(tmp_path)
    populate(found)
    install(found, monkeypatch)
    return found


def thin(fake: FakeLvm, waiting: Callable[[str], None] = lambda _: None) -> CloningStrategy:
    made = of_lvm(fake, "thin", waiting=waiting)
    assert isinstance(made, CloningStrategy)
    return made


def test_thin_volumes_are_snapshots_of_the_snapshot(fake: FakeLvm) -> None:
    create(fake, "thin")
    fake.path("thin-a").write_bytes(content(7))
    before = set(fake.lvs)
    strategy = thin(fake)
    made = cloned(strategy)
    assert [d.target for d in made] == [str(fake.path(f"thin-{x}-snap.c1")) for x in "ab"]
    assert fake.path("thin-a-snap.c1").read_bytes() == content(1)
    assert fake.lvs["thin-a-snap.c1"].active
    thin(fake).delete_clone(made, strategy.state())
    assert set(fake.lvs) == before


def test_a_thin_volume_under_another_name(fake: FakeLvm) -> None:
    create(fake, "thin")
    wanted = {"xvda": DiskRequest("xvda", str(fake.path("own")), "raw")}
    made = cloned(thin(fake), wanted)
    assert made[0].delete == f"lvremove {VG}/own"
    elsewhere = {"xvda": DiskRequest("xvda", "/srv/own", "raw")}
    with pytest.raises(Refused, match="a thin volume of"):
        thin(fake).check_clone("c2", elsewhere)


def test_a_volume_that_is_somebody_elses_is_left(fake: FakeLvm) -> None:
    create(fake, "thin")
    strategy = thin(fake)
    made = strategy.check_clone(CLONE, NOTHING)
    fake.add("thin-a-snap.c1", "thin,sparse", tags=["owner"])
    with pytest.raises(AlreadyExists):
        strategy.check_clone(CLONE, NOTHING)
    with pytest.raises(LeftOver, match="not known as the volume that was made") as caught:
        strategy.delete_clone(made, strategy.state())
    assert caught.value.finish == f"lvremove {VG}/thin-a-snap.c1"
    assert "thin-a-snap.c1" in fake.lvs


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_clone_of_thin_volumes_that_dies_can_be_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    for fake, fault in at_every_command(tmp_path, monkeypatch, when):
        create(fake, "thin")
        before, strategy = set(fake.lvs), thin(fake)
        made = strategy.check_clone(CLONE, NOTHING)
        try:
            with fault:
                strategy.clone()
        except Killed:
            pass
        thin(fake).delete_clone(made, strategy.state())
        assert set(fake.lvs) == before


class LastCommand:
    """The lvcreate of a clone that was killed: it waits for a lock that another command holds."""

    def __init__(self, fake: FakeLvm, made: CloneDisk, state: Mapping[str, str]) -> None:
        self._fake, self._name = fake, Path(made.target).name
        self._tag = f"{CLONE_TAG}{state[f'{made.vdev} clone']}"
        self.told: list[str] = []
        # It ends when its input does.
        words = ["lvcreate", "-c", "read line", "-s", "--addtag", self._tag]
        shell = shutil.which("sh")
        self.process = subprocess.Popen(words, executable=shell, stdin=subprocess.PIPE)
        # (The kernel starts a program before it sets its command line.)
        words_of = Path(f"/proc/{self.process.pid}/cmdline")
        assert eventually(lambda: b"lvcreate" in words_of.read_bytes())

    def gets_the_lock(self, what: str) -> None:
        """The volume is made while somebody waits."""
        self.told.append(what)
        if self._name not in self._fake.lvs:
            self._fake.add(self._name, "thin,sparse", tags=[self._tag])
            self.end()

    def end(self) -> None:
        self.process.communicate()


def test_the_volume_of_an_lvcreate_that_outlives_its_process_is_removed(fake: FakeLvm) -> None:
    create(fake, "thin")
    before, strategy = set(fake.lvs), thin(fake)
    made = strategy.check_clone(CLONE, NOTHING)
    last = LastCommand(fake, made[0], strategy.state())
    thin(fake, waiting=last.gets_the_lock).delete_clone(made, strategy.state())
    assert last.told == ["lvcreate to finish its work for xvda"]
    assert set(fake.lvs) == before


def test_an_lvcreate_that_does_not_end_is_named(
    fake: FakeLvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_ENDING_S", 0.0)
    create(fake, "thin")
    strategy = thin(fake)
    made = strategy.check_clone(CLONE, NOTHING)
    last = LastCommand(fake, made[0], strategy.state())
    try:
        with pytest.raises(DiskError, match=rf"pid {last.process.pid}\) .* still runs"):
            thin(fake).delete_clone(made, strategy.state())
    finally:
        last.end()
    assert thin(fake).delete_clone(made, strategy.state()) == []


def test_a_thick_volume_is_copied_on_request_only(fake: FakeLvm) -> None:
    create(fake, "thick")
    strategy = of_lvm(fake, "thick", lvs="a")
    assert isinstance(strategy, CloningStrategy)
    with pytest.raises(Refused, match="would have to be copied"):
        strategy.check_clone(CLONE, NOTHING)


def test_a_snapshot_that_is_gone(fake: FakeLvm) -> None:
    with pytest.raises(Refused, match="there is no volume"):
        thin(fake).check_clone(CLONE, NOTHING)
