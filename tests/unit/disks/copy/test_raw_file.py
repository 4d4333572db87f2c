"""Raw files: reflink copies and plain ones, cut off at every system call, and gone on with."""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pyxlsnap.cancel import Cancelled
from pyxlsnap.disks import in_use
from pyxlsnap.disks.copy import content, raw_file, snapshot_file
from pyxlsnap.disks.copy.raw_file import RawFile, default_request
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import AlreadyExists, DiskError, PyxlsnapError, Refused
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.text import mib
from tests.unit.support.loop_files import looped, mounted, opened
from tests.unit.support.system_calls import Fault, Killed, full_disk, unsupported
from tests.unit.support.waiting import open_descriptors

OLD = b"old" * 50_000
NEW = b"new" * 70_000
NAME = "snap"


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted("xfs", tmp_path_factory.mktemp("filesystem")) as where:
        yield where


@pytest.fixture(params=["reflink", "copy"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory where files can share blocks, and one where they cannot."""
    if request.param == "copy":
        return tmp_path
    where: Path = request.getfixturevalue("xfs") / tmp_path.name
    where.mkdir()
    return where


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest has its disk open, as far as the checks see."""
    monkeypatch.setattr(raw_file, "users", lambda _: ["loop0"])


def make_disk(directory: Path, vdev: str = "xvda") -> Disk:
    path = directory / f"{vdev}.raw"
    path.write_bytes(OLD)
    os.setxattr(path, "user.note", b"note")
    path.chmod(0o640)
    return Disk(vdev, str(path), "raw", "phy")


def made(
    disks: Sequence[Disk],
    *,
    asked: bool = True,
    path: str = "",
    finishes: Mapping[str, str] | None = None,
    prepared: Mapping[str, str] | None = None,
) -> RawFile:
    return RawFile(
        [(d, replace(default_request(d, NAME), **({"path": path} if path else {}))) for d in disks],
        DiskTask(NAME, asked=asked, finishes=finishes, prepared=prepared),
    )


def snapshot(disk: Disk) -> Path:
    return Path(f"{disk.target}.{NAME}")


def take(strategy: RawFile) -> None:
    strategy.check_create(7)
    strategy.prepare()
    strategy.create()
    strategy.settle()
    strategy.finish_create()
    strategy.close()


def listing(directory: Path) -> set[str]:
    return {p.name for p in directory.iterdir()}


# create


def test_it_is_a_strategy(tmp_path: Path) -> None:
    strategy: DiskStrategy = made([make_disk(tmp_path)])
    assert (strategy.kind, strategy.vdevs) == ("raw file", ("xvda",))
    assert default_request(Disk("xvdb", "/d/a.raw", "raw"), "s") == DiskRequest(
        "xvdb", "/d/a.raw.s", "raw"
    )


def test_a_snapshot_is_the_disk_as_it_was(place: Path, used: None) -> None:
    disks = [make_disk(place, vdev) for vdev in ("xvda", "xvdb")]
    before = open_descriptors()
    strategy = made(disks)
    take(strategy)
    for disk in disks:
        Path(disk.target).write_bytes(NEW)
        assert snapshot(disk).read_bytes() == OLD
        found = snapshot(disk).stat()
        assert stat.S_IMODE(found.st_mode) == 0o440
        assert os.getxattr(snapshot(disk), "user.note") == b"note"
    assert listing(place) == {"xvda.raw", "xvda.raw.snap", "xvdb.raw", "xvdb.raw.snap"}
    assert open_descriptors() == before


def test_a_reflink_takes_the_longer_the_more_extents_the_file_has(xfs: Path, used: None) -> None:
    (xfs / "extents").mkdir()
    times = []
    for extents in (1, 400):
        disk = Disk("xvda", str(xfs / f"extents/{extents}.raw"), "raw")
        with Path(disk.target).open("wb") as file:
            file.truncate(extents << 17)  # XFS reserves more, in extents of its own, behind the end
            for n in range(extents):
                os.pwrite(file.fileno(), b"x", n << 17)
            os.fsync(file.fileno())
        strategy = made([disk], path=f"{disk.target}.snap")
        strategy.check_create(7)
        times.append(strategy.expected_seconds())
    assert times == [pytest.approx(n * 32e-6, rel=0.2) for n in (1, 400)]


def test_a_reflink_takes_no_time_and_a_copy_is_announced(
    xfs: Path, tmp_path: Path, used: None
) -> None:
    (xfs / "announced").mkdir()
    for directory, seconds, how in (
        (xfs / "announced", 0.0, "reflink copy"),
        (tmp_path, 1.0, "copy"),
    ):
        disk = make_disk(directory)
        strategy = made([disk], path=f"{directory}/it's a snapshot")
        strategy.check_create(7)
        allocated = Path(disk.target).stat().st_blocks * 512
        expected_s = seconds * allocated / content.BYTES_PER_S
        assert strategy.expected_seconds() == pytest.approx(expected_s, abs=1e-3)
        [artefact] = strategy.artefacts("guest")
        assert artefact.where == f"{directory}/it's a snapshot (xvda; {how})"
        assert artefact.delete == f"""rm '{directory}/it'"'"'s a snapshot'"""


def unasked(disks: Sequence[Disk]) -> tuple[RawFile, list[str]]:
    """Nobody named the disks; what the strategy will say."""
    said: list[str] = []
    requests = [(disk, default_request(disk, NAME)) for disk in disks]
    return RawFile(requests, DiskTask(NAME, asked=False, warn=said.append)), said


def grow(disk: Disk, size: int) -> None:
    with Path(disk.target).open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def test_nothing_said_is_a_reflink(xfs: Path, used: None) -> None:
    (xfs / "unasked").mkdir()
    disk = make_disk(xfs / "unasked")
    grow(disk, 200 << 20)
    strategy, said = unasked([disk])
    take(strategy)
    assert said == []


def test_nothing_said_is_a_copy_that_takes_no_time(tmp_path: Path, used: None) -> None:
    disk = make_disk(tmp_path)
    grow(disk, 7 << 20)
    strategy, said = unasked([disk])
    take(strategy)
    assert 0 < strategy.expected_seconds() < 0.1
    [line] = said
    assert line.startswith(f"xvda: {disk.target} is on a filesystem that cannot share blocks")
    size = mib(Path(disk.target).stat().st_blocks * 512)
    assert line.endswith(f": {size} are copied while the guest is suspended")
    assert snapshot(disk).read_bytes() == Path(disk.target).read_bytes()


def test_what_was_asked_for_needs_no_word(tmp_path: Path, used: None) -> None:
    said: list[str] = []
    disk = make_disk(tmp_path)
    RawFile([(disk, default_request(disk, NAME))], DiskTask(NAME, warn=said.append)).check_create(7)
    assert said == []


@pytest.mark.parametrize("sizes", [(200,), (60, 60)], ids=["one", "together"])
def test_a_longer_copy_is_made_on_request_only(
    tmp_path: Path, used: None, sizes: Sequence[int]
) -> None:
    disks = [make_disk(tmp_path, f"xvd{'ab'[i]}") for i in range(len(sizes))]
    for disk, size in zip(disks, sizes, strict=True):
        grow(disk, size << 20)
    allocated = [Path(disk.target).stat().st_blocks * 512 for disk in disks]
    seconds = f"{sum(allocated) / content.BYTES_PER_S:.1f}"
    strategy, _ = unasked(disks)
    first = mib(allocated[0])
    says = rf"^xvda: .*suspended for about {seconds} s.* {first} are.*\.raw\.snap,raw,xvda"
    with pytest.raises(Refused, match=says):
        strategy.check_create(7)
    assert listing(tmp_path) == {Path(disk.target).name for disk in disks}


def test_a_disk_that_is_all_hole_is_copied_unasked(tmp_path: Path, used: None) -> None:
    disk = make_disk(tmp_path)
    Path(disk.target).write_bytes(b"")
    os.truncate(disk.target, 1 << 30)
    take(made([disk], asked=False))
    assert snapshot(disk).stat().st_size == 1 << 30
    assert snapshot(disk).stat().st_blocks * 512 < 1 << 20


def test_the_link_is_not_the_disk(place: Path, used: None) -> None:
    disk = make_disk(place)
    link = place / "link"
    link.symlink_to("xvda.raw")
    linked = replace(disk, target=str(link))
    take(made([linked]))
    Path(disk.target).write_bytes(NEW)
    again = made([linked])
    again.check_revert()
    again.revert()
    assert again.finish_revert(8) == []
    assert link.is_symlink()
    assert Path(disk.target).read_bytes() == OLD
    assert listing(place) == {"xvda.raw", "link", "link.snap"}


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (DiskRequest("xvda"), "cannot hold a snapshot inside: give a path: '/path,raw,xvda'"),
        (DiskRequest("xvda", "/d/snap", "qcow2"), "is raw, not qcow2"),
        (DiskRequest("xvda", "snap", "raw"), "must be absolute"),
        (DiskRequest("xvda", "/d/xvda.raw.snap.pre-revert", "raw"), "a revert keeps a disk"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    tmp_path: Path, used: None, request_: DiskRequest, says: str
) -> None:
    strategy = RawFile([(make_disk(tmp_path), request_)], DiskTask(NAME))
    with pytest.raises(Refused, match=says):
        strategy.check_create(7)
    with pytest.raises(Refused, match=says):
        strategy.check_revert()


@pytest.mark.parametrize("what", ["file", "link", "dangling", "directory", "fifo"])
def test_what_has_the_name_stays(tmp_path: Path, used: None, what: str) -> None:
    disk = make_disk(tmp_path)
    occupy(snapshot(disk), what)
    before = [(p, os.lstat(p).st_ino) for p in tmp_path.iterdir()]
    with pytest.raises(AlreadyExists):
        made([disk]).check_create(7)
    strategy = made([disk])
    with pytest.raises(AlreadyExists):
        strategy.prepare()
    assert strategy.undo_create() == []
    adopted = made([disk])
    adopted.adopt_create(7, began=0.0, state=strategy.state())
    assert adopted.undo_create() == []
    assert [(p, os.lstat(p).st_ino) for p in tmp_path.iterdir()] == before


def occupy(path: Path, what: str) -> None:
    if what == "file":
        path.write_bytes(NEW)
    elif what == "link":
        path.symlink_to("xvda.raw")
    elif what == "dangling":
        path.symlink_to("nowhere")
    elif what == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("what", ["dangling", "directory", "fifo"])
def test_a_disk_that_is_no_file_is_refused(tmp_path: Path, used: None, what: str) -> None:
    disk = Disk("xvda", str(tmp_path / "disk"), "raw", "phy")
    occupy(tmp_path / "disk", what)
    with pytest.raises(Refused, match=r"^xvda: "):
        made([disk]).check_create(7)
    snapshot(disk).write_bytes(OLD)
    with pytest.raises(Refused, match=r"^xvda: "):
        made([disk]).check_revert()


def test_a_file_that_nobody_uses_is_not_the_guests(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    with pytest.raises(Refused, match="is not in use"):
        made([disk]).check_create(7)
    with opened(Path(disk.target)):
        made([disk]).check_create(7)
    with looped(Path(disk.target)):
        made([disk]).check_create(7)
        os.rename(disk.target, tmp_path / "moved")
        make_disk(tmp_path)
        with pytest.raises(Refused, match="is not in use"):
            made([disk]).check_create(7)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path, used: None) -> None:
    with pytest.raises(Refused, match=f"cannot write in {tmp_path}/none"):
        made([make_disk(tmp_path)], path=f"{tmp_path}/none/snap").check_create(7)


def test_a_filesystem_without_room_is_refused(xfs: Path, tmp_path: Path, used: None) -> None:
    disk = make_disk(tmp_path)
    (xfs / "room").mkdir()
    with Path(disk.target).open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 600 << 20)
    with pytest.raises(Refused, match=rf"^xvda: {xfs}/room has \d+ MiB left .*{disk.target}"):
        made([disk], path=f"{xfs}/room/snap").check_create(7)
    assert listing(xfs / "room") == set()


def test_the_window_begins_when_the_disk_is_quiet(
    tmp_path: Path, used: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = make_disk(tmp_path)
    strategy = made([disk])
    strategy.check_create(7)
    strategy.prepare()

    def busy(disk: Disk, *_: object) -> None:
        raise DiskError("busy", vdev=disk.vdev)

    monkeypatch.setattr(snapshot_file, "wait_until_drained", busy)
    with pytest.raises(DiskError, match="busy"):
        strategy.create()
    assert snapshot(disk).stat().st_size == 0
    assert strategy.undo_create() == [f"removed {snapshot(disk)}"]
    assert strategy.undo_create() == []


def test_a_copy_beside_the_memory_is_not_made_again(tmp_path: Path, used: None) -> None:
    disk = make_disk(tmp_path)
    strategy = made([disk])
    strategy.check_create(7)
    strategy.prepare()
    assert list(strategy.beside()) == [disk.vdev]
    strategy.create_beside()
    before = snapshot(disk).stat()
    strategy.create()
    after = snapshot(disk).stat()
    assert (after.st_ctime_ns, after.st_size) == (before.st_ctime_ns, before.st_size)
    assert snapshot(disk).read_bytes() == Path(disk.target).read_bytes()
    strategy.undo_create()


def test_copies_to_one_filesystem_are_made_one_after_the_other(
    tmp_path: Path, used: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [make_disk(tmp_path, vdev) for vdev in ("xvda", "xvdb")]
    strategy = made(found)
    strategy.check_create(7)
    strategy.prepare()
    threads: list[threading.Thread] = []

    def note(*_: object, **__: object) -> None:
        threads.append(threading.current_thread())

    monkeypatch.setattr(raw_file, "copy_file", note)
    strategy.create_beside()
    assert len(threads) == 2
    assert len(set(threads)) == 1
    strategy.undo_create()


def test_what_a_loop_device_was_given_is_in_the_snapshot(place: Path) -> None:
    disk = make_disk(place)
    os.truncate(disk.target, 1 << 20)
    with looped(Path(disk.target)) as device:
        strategy = made([disk])
        strategy.check_create(7)
        strategy.prepare()
        with device.open("r+b") as file:
            file.seek(4096)
            file.write(b"just now")
            file.flush()
            os.fsync(file.fileno())
        strategy.create()
        strategy.finish_create()
        assert snapshot(disk).read_bytes()[4096:4104] == b"just now"


def test_another_process_can_finish_it(
    place: Path, used: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = make_disk(place)
    strategy = made([disk])
    strategy.check_create(7)
    strategy.prepare()
    strategy.create()
    strategy.close()
    heir = made([disk])
    heir.adopt_create(None, began=0.0, state=strategy.state())
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    for _ in range(2):
        heir.finish_create()
        assert snapshot(disk).stat().st_ino in synced
    assert stat.S_IMODE(snapshot(disk).stat().st_mode) == 0o440
    snapshot(disk).rename(place / "moved")
    snapshot(disk).write_bytes(b"somebody else's")
    with pytest.raises(DiskError, match="is not the copy"):
        heir.finish_create()
    heir.close()


def test_create_without_prepare_is_an_error(tmp_path: Path, used: None) -> None:
    with pytest.raises(DiskError, match="not prepared"):
        made([make_disk(tmp_path)]).create()


# undo


@pytest.mark.parametrize("killed", [True, False])
def test_create_can_be_undone_wherever_it_was_cut_off(
    place: Path, used: None, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    fault = Fault(monkeypatch, Killed if killed else full_disk)
    for number in range(1, 200):
        directory = place / str(number)
        directory.mkdir()
        disks = [make_disk(directory, vdev) for vdev in ("xvda", "xvdb")]
        strategy = made(disks)
        strategy.check_create(7)
        before = listing(directory)
        try:
            with fault.at(number):
                strategy.prepare()
                strategy.create()
                strategy.finish_create()
        except (Killed, PyxlsnapError):
            pass
        struck = fault.struck
        undoing = strategy
        if killed:  # another process does it
            undoing = made(disks)
            undoing.adopt_create(7, began=0.0, state=strategy.state())
        undoing.settle()
        undone = undoing.undo_create()
        assert listing(directory) == before == {"xvda.raw", "xvdb.raw"}
        assert len(undone) <= 2
        assert undoing.undo_create() == []
        assert all(Path(d.target).read_bytes() == OLD for d in disks)
        strategy.close()
        if not struck:
            assert len(undone) == 2
            return
    raise AssertionError("the end was not reached")


def test_another_process_removes_only_what_bears_the_token(place: Path, used: None) -> None:
    disk = make_disk(place)
    strategy, other = made([disk]), made([disk])
    take(strategy)
    undoing = made([disk])
    for state in (other.state(), {}):
        undoing.adopt_create(7, began=0.0, state=state)
        assert undoing.undo_create() == []
    undoing.adopt_create(7, began=0.0, state=strategy.state())
    assert undoing.undo_create() == [f"removed {snapshot(disk)}"]


def test_a_file_put_in_the_place_of_ours_stays(tmp_path: Path, used: None) -> None:
    disk = make_disk(tmp_path)
    strategy = made([disk])
    strategy.check_create(7)
    strategy.prepare()
    (tmp_path / "new").write_bytes(NEW)
    os.rename(tmp_path / "new", snapshot(disk))
    assert strategy.undo_create() == []
    assert snapshot(disk).read_bytes() == NEW


def test_without_attributes_the_time_tells(
    tmp_path: Path, used: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("getxattr", "setxattr", "listxattr"):
        monkeypatch.setattr(os, name, unsupported(errno.ENOTSUP))
    path = tmp_path / "xvda.raw"
    path.write_bytes(OLD)
    disk = Disk("xvda", str(path), "raw", "phy")
    strategy = made([disk])
    take(strategy)
    when = snapshot(disk).stat().st_ctime
    undoing = made([disk])
    undoing.adopt_create(7, began=when + 10, state=strategy.state())
    assert undoing.undo_create() == []
    undoing.adopt_create(7, began=when - 0.5, state=strategy.state())
    assert undoing.undo_create() == [f"removed {snapshot(disk)}"]


def test_where_tokens_can_be_a_full_file_without_one_is_anothers(
    tmp_path: Path, used: None
) -> None:
    disk = make_disk(tmp_path)
    snapshot(disk).write_bytes(NEW)
    undoing = made([disk])
    undoing.adopt_create(7, began=0.0, state=undoing.state())
    assert undoing.undo_create() == []


def test_what_cannot_be_removed_is_said_of_each(
    tmp_path: Path, used: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = [make_disk(tmp_path, vdev) for vdev in ("xvda", "xvdb")]
    one, both = made(disks[:1]), made(disks)
    one.prepare()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unsupported(errno.EROFS))
        with pytest.raises(DiskError, match=r"^xvda: .*Read-only"):
            one.undo_create()
    assert one.undo_create()
    both.prepare()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unsupported(errno.EROFS))
        with pytest.raises(PyxlsnapError, match=r"^xvda: .*; xvdb: .*Read-only"):
            both.undo_create()
    assert len(both.undo_create()) == 2


# revert


def changed(directory: Path, count: int = 1) -> list[Disk]:
    """Disks with snapshots, that have gone on."""
    disks = [make_disk(directory, vdev) for vdev in ("xvda", "xvdb")[:count]]
    take(made(disks))
    for disk in disks:
        Path(disk.target).write_bytes(NEW)
    return disks


def test_a_revert_brings_back_the_disk_and_keeps_it_until_the_end(place: Path, used: None) -> None:
    [disk] = changed(place)
    if not os.geteuid():
        os.chown(disk.target, 1234, 4321)
    was = Path(disk.target).stat()
    for _ in range(2):  # the snapshot is not used up
        strategy = made([disk])
        strategy.check_revert()
        assert listing(place) == {"xvda.raw", "xvda.raw.snap"}
        strategy.revert()
        assert Path(disk.target).read_bytes() == OLD
        assert (place / "xvda.raw.snap.pre-revert").read_bytes() == NEW
        now = Path(disk.target).stat()
        assert (now.st_mode, now.st_uid, now.st_gid) == (was.st_mode, was.st_uid, was.st_gid)
        assert os.getxattr(disk.target, "user.note") == b"note"
        assert strategy.finish_revert(8) == []
        assert listing(place) == {"xvda.raw", "xvda.raw.snap"}
        Path(disk.target).write_bytes(NEW)
    assert snapshot(disk).read_bytes() == OLD


def nothing() -> None:
    """In the place of a look whether the revert was cancelled."""


def test_a_copy_that_was_made_beforehand_is_used(place: Path, used: None) -> None:
    [disk] = changed(place)
    strategy = made([disk])
    strategy.check_revert()
    strategy.prepare_revert(nothing)
    assert Path(disk.target).read_bytes() == NEW
    strategy.check_revert()
    [copy] = listing(place) - {"xvda.raw", "xvda.raw.snap"}
    inode = (place / copy).stat().st_ino
    strategy.revert()
    assert Path(disk.target).stat().st_ino == inode
    assert Path(disk.target).read_bytes() == OLD
    assert os.getxattr(disk.target, "user.note") == b"note"
    assert strategy.finish_revert(8) == []
    assert listing(place) == {"xvda.raw", "xvda.raw.snap"}


def write_snapshot(disk: Disk, _copy: Path) -> None:
    snapshot(disk).chmod(0o600)
    snapshot(disk).write_bytes(b"corrected")


def write_copy(_disk: Disk, copy: Path) -> None:
    copy.chmod(0o600)
    copy.write_bytes(b"damaged")


def remove_copy(_disk: Disk, copy: Path) -> None:
    copy.unlink()


def close_disk(disk: Disk, _copy: Path) -> None:
    Path(disk.target).chmod(0o600)


@pytest.mark.parametrize("change", [write_snapshot, write_copy, remove_copy, close_disk])
def test_a_copy_that_does_not_fit_any_more_is_made_again(
    place: Path, used: None, change: Callable[[Disk, Path], None]
) -> None:
    [disk] = changed(place)
    strategy = made([disk])
    strategy.check_revert()
    strategy.prepare_revert(nothing)
    [copy] = listing(place) - {"xvda.raw", "xvda.raw.snap"}
    change(disk, place / copy)
    mode, wanted = Path(disk.target).stat().st_mode, snapshot(disk).read_bytes()
    strategy.revert()
    assert Path(disk.target).read_bytes() == wanted
    assert Path(disk.target).stat().st_mode == mode
    strategy.finish_revert(8)
    assert listing(place) == {"xvda.raw", "xvda.raw.snap"}


@pytest.mark.parametrize("killed", [True, False])
def test_copies_that_were_made_beforehand_are_taken_back(
    place: Path, used: None, killed: bool
) -> None:
    disks = changed(place, 2)
    strategy = made(disks)
    strategy.check_revert()
    strategy.undo_prepared()  # nothing is made yet
    strategy.prepare_revert(nothing)
    if killed:
        made(disks).undo_prepared()  # which knows nothing of it
        assert len(listing(place)) == 6
        strategy = made(disks, prepared=strategy.state())
    strategy.undo_prepared()
    strategy.undo_prepared()
    assert listing(place) == {f"xvd{x}.raw{end}" for x in "ab" for end in ("", ".snap")}
    assert all(Path(disk.target).read_bytes() == NEW for disk in disks)


def test_a_cancel_ends_the_copying_beforehand(tmp_path: Path, used: None) -> None:
    [disk] = changed(tmp_path)
    strategy = made([disk])
    strategy.check_revert()

    def cancelled() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        strategy.prepare_revert(cancelled)
    strategy.undo_prepared()
    assert listing(tmp_path) == {"xvda.raw", "xvda.raw.snap"}


@pytest.mark.parametrize("killed", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_revert_cut_off_anywhere_is_run_again(
    place: Path, used: None, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    fault = Fault(monkeypatch, Killed if killed else full_disk)
    for number in range(1, 200):
        directory = place / str(number)
        directory.mkdir()
        disks = changed(directory, 2)
        first = made(disks)
        first.check_revert()
        try:
            with fault.at(number):
                first.revert()
        except (Killed, DiskError):
            pass
        struck = fault.struck
        for disk in disks:
            assert Path(disk.target).read_bytes() in (OLD, NEW)
        again = made(disks, finishes=first.state())
        again.check_revert()
        again.revert()
        for disk in disks:
            assert Path(disk.target).read_bytes() == OLD
            assert Path(f"{disk.target}.snap.pre-revert").read_bytes() == NEW
        assert again.finish_revert(8) == []
        assert listing(directory) == {f"xvd{x}.raw{end}" for x in "ab" for end in ("", ".snap")}
        if not struck:
            assert number > 20
            return
    raise AssertionError("the end was not reached")


def test_a_disk_in_use_is_not_touched(
    place: Path, used: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = changed(place, 2)
    monkeypatch.setattr(in_use, "_UNUSED_S", 0.1)
    before = listing(place)
    with opened(Path(disks[1].target)), pytest.raises(DiskError, match=r"^xvdb: .*by sleep"):
        made(disks).revert()
    with looped(Path(disks[1].target)), pytest.raises(DiskError, match=r"^xvdb: .*by loop"):
        made(disks).revert()
    assert listing(place) == before
    assert Path(disks[0].target).read_bytes() == NEW


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("nothing", "No such file"),
        ("empty", "is empty"),
        ("dangling", "No such file"),
        ("fifo", "not a regular file"),
        ("directory", "not a regular file"),
        ("link", "is the disk"),
    ],
)
def test_a_snapshot_that_is_not_whole_is_refused(
    tmp_path: Path, used: None, what: str, says: str
) -> None:
    [disk] = changed(tmp_path)
    snapshot(disk).unlink()
    if what == "empty":
        snapshot(disk).touch()
    elif what != "nothing":
        occupy(snapshot(disk), what)
    with pytest.raises(Refused, match=f"^xvda: .*{says}"):
        made([disk]).check_revert()


def test_a_revert_needs_room_for_a_copy(
    tmp_path: Path, used: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    [disk] = changed(tmp_path)
    real = os.statvfs(tmp_path)

    class Full:
        f_bavail, f_frsize, f_flag = 1, real.f_frsize, 0

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    with pytest.raises(Refused, match=rf"^xvda: {tmp_path} has 0 MiB left .*{disk.target}\.snap"):
        made([disk]).check_revert()


def test_half_a_copy_of_a_killed_revert_is_room_for_the_next(
    tmp_path: Path, used: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    [disk] = changed(tmp_path)
    killed = made([disk])
    killed.check_revert()
    half = Path(killed.state()["xvda copy"])
    half.write_bytes(OLD[: len(OLD) // 2])
    os.sync()
    need = snapshot(disk).stat().st_blocks * 512
    taken = half.stat().st_blocks * 512
    assert 0 < taken < need

    class Nearly:
        f_bavail, f_frsize, f_flag = need - taken, 1, 0

    monkeypatch.setattr(os, "statvfs", lambda _: Nearly)
    made([disk], finishes=killed.state()).check_revert()
    with pytest.raises(Refused, match="left for a copy"):
        made([disk]).check_revert()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_a_revert_needs_no_links(
    place: Path, used: None, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    [disk] = changed(place)
    before = Path(disk.target).stat().st_ino
    monkeypatch.setattr(os, "link", unsupported(number))
    strategy = made([disk])
    strategy.check_revert()
    assert Path(disk.target).stat().st_ino == before
    strategy.revert()
    assert Path(disk.target).read_bytes() == OLD
    assert stat.S_IMODE(Path(disk.target).stat().st_mode) == 0o640
    assert Path(f"{disk.target}.snap.pre-revert").stat().st_ino == before
    assert strategy.finish_revert(8) == []
    assert listing(place) == {"xvda.raw", "xvda.raw.snap"}


def test_a_revert_without_links_that_was_killed_goes_on(
    tmp_path: Path, used: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk has the name under which it is kept, and no other."""
    [disk] = changed(tmp_path)
    monkeypatch.setattr(os, "link", unsupported(errno.EPERM))
    strategy = made([disk])
    strategy.check_revert()
    with monkeypatch.context() as patch:
        patch.setattr(raw_file, "_copy", unsupported(errno.EIO))
        with pytest.raises(DiskError):
            strategy.revert()
    assert not Path(disk.target).exists()
    again = made([disk], finishes=strategy.state())
    again.check_revert()
    again.revert()
    assert Path(disk.target).read_bytes() == OLD
    assert again.finish_revert(8) == []
    assert listing(tmp_path) == {"xvda.raw", "xvda.raw.snap"}


def test_without_links_the_name_of_another_is_not_taken(
    tmp_path: Path, used: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    [disk] = changed(tmp_path)
    monkeypatch.setattr(os, "link", unsupported(errno.EPERM))
    strategy = made([disk])
    strategy.check_revert()
    theirs = Path(f"{disk.target}.snap.pre-revert")
    theirs.write_text("theirs")
    with pytest.raises(DiskError, match="another program made"):
        strategy.revert()
    assert theirs.read_text() == "theirs"
    assert Path(disk.target).read_bytes() == NEW


@pytest.mark.parametrize("name", ["xvda.raw.snap.pre-revert", ".xvda.raw.snap.pre-revert"])
def test_a_file_of_the_user_stays_whatever_its_name(tmp_path: Path, used: None, name: str) -> None:
    [disk] = changed(tmp_path)
    mine = tmp_path / name
    mine.write_text("mine")
    strategy = made([disk])
    if name.startswith("."):  # not the name of a kept disk
        strategy.check_revert()
        strategy.revert()
        assert strategy.finish_revert(8) == []
    else:
        with pytest.raises(Refused, match=f"^xvda: {mine} exists, .*: move that file away"):
            strategy.check_revert()
        assert Path(disk.target).read_bytes() == NEW
    assert mine.read_text() == "mine"


def test_what_cannot_be_dropped_is_said_and_is_no_failure(
    tmp_path: Path, used: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    [disk] = changed(tmp_path)
    strategy = made([disk])
    strategy.revert()
    monkeypatch.setattr(os, "unlink", unsupported(errno.EROFS))
    [left] = strategy.finish_revert(8)
    assert left.startswith(f"{tmp_path}/xvda.raw.snap.pre-revert (the disk before the revert): ")


def test_a_copy_of_a_disk_has_its_holes(tmp_path: Path, used: None) -> None:
    disk = make_disk(tmp_path)
    os.truncate(disk.target, 1 << 30)
    take(made([disk]))
    Path(disk.target).write_bytes(NEW)
    made([disk]).revert()
    found = Path(disk.target).stat()
    assert found.st_size == 1 << 30
    assert found.st_blocks * 512 < 1 << 20


def test_the_token_is_new_each_time(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    assert made([disk]).state() != made([disk]).state()
    assert set(made([disk]).state()) == {"xvda token", "xvda copy"}
    assert len(snapshot_file.SnapshotFile(disk, DiskRequest("xvda", "/a")).token) == 32


def test_a_cancel_ends_a_copy_in_the_middle(
    tmp_path: Path, used: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest stands still meanwhile: whoever gives up waiting gets it back."""
    monkeypatch.setattr(content, "_RANGE", 4096)
    checked = []

    def cancel_at_the_third() -> None:
        checked.append(1)
        if len(checked) == 3:
            raise Cancelled

    disk = make_disk(tmp_path)
    task = DiskTask(NAME, check=cancel_at_the_third)
    strategy = RawFile([(disk, default_request(disk, NAME))], task)
    before = listing(tmp_path)
    strategy.check_create(7)
    strategy.prepare()
    with pytest.raises(Cancelled):
        strategy.create()
    strategy.undo_create()
    assert listing(tmp_path) == before
    assert Path(disk.target).read_bytes() == OLD
