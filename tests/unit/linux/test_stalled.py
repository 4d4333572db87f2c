"""A server that does not answer: nothing that only compares files waits for it."""

import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyxlsnap import cfgfile, paths
from pyxlsnap.disks import in_use
from pyxlsnap.disks.qcow2.backing import refuse_broken
from pyxlsnap.errors import Refused
from pyxlsnap.guest import checks
from pyxlsnap.guest.snapshot import saved_origin
from pyxlsnap.linux import loop, stalled
from pyxlsnap.linux.block_devices import mounts
from pyxlsnap.linux.processes import holders, links_of, open_files
from pyxlsnap.linux.stalled import exists_within, served_mounts, stat_within, stats_within
from pyxlsnap.model import Disk, DiskRequest, SnapshotConfig
from tests.unit.support.dead_server import dead_server
from tests.unit.support.loop_files import wait_for
from tests.unit.support.qemu import qemu_img
from tests.unit.support.values import OTHER_UUID
from tests.unit.support.world import World


@pytest.fixture
def dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A dead mount, and a process that has its directory open, and then a file of ours."""
    monkeypatch.setattr(stalled, "_ANSWER_S", 0.2)
    with dead_server(tmp_path / "dead") as directory:
        yield Path(f"/proc/self/fd/{directory}")


@pytest.fixture
def user(dead: Path, tmp_path: Path) -> Iterator[int]:
    directory = int(dead.name)
    (tmp_path / "image").touch()
    file = os.open(tmp_path / "image", os.O_RDWR)
    with subprocess.Popen(["sleep", "60"], pass_fds=[directory, file]) as process:
        os.close(file)
        yield process.pid
        process.kill()


def test_it_really_does_not_answer(dead: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within"):
        stat_within(dead, within_s=0.3)
    assert 0.3 <= time.monotonic() - begun < 5


def origin(path: Path) -> object:
    return saved_origin(SnapshotConfig(memory_path=str(path)), "/nowhere/snap.cfg")


@pytest.mark.parametrize("read", [cfgfile.read, origin], ids=["cfgfile", "memory file"])
def test_a_file_of_a_snapshot(dead: Path, read: Callable[[Path], object]) -> None:
    begun = time.monotonic()
    with pytest.raises(Refused, match=rf"^{dead}: no answer within .*: see whether its server"):
        read(dead)
    assert time.monotonic() - begun < 5


def test_who_has_a_file_open_is_found_beside_it(user: int, tmp_path: Path) -> None:
    begun = time.monotonic()
    assert holders(tmp_path / "image") == [user]
    assert time.monotonic() - begun < 5


def test_what_a_process_has_open_is_found_beside_it(user: int, tmp_path: Path) -> None:
    found = (tmp_path / "image").stat()
    begun = time.monotonic()
    assert (found.st_dev, found.st_ino) in open_files(user)
    assert str(tmp_path / "image") in [link.name for link in links_of(user)]
    assert time.monotonic() - begun < 5


def test_the_mount_is_known_as_one_of_a_server(dead: Path, tmp_path: Path) -> None:
    assert served_mounts("/proc/self")
    assert tmp_path.stat().st_dev not in served_mounts("/proc/self").values()


def test_a_disk_there_is_refused_and_that_of_another_guest_is_passed_over(
    dead: Path, tmp_path: Path, world: World
) -> None:
    silent = Disk("xvdb", str(tmp_path / "dead"), "raw", "phy")
    with pytest.raises(Refused, match=r"^xvdb: .*/dead: no answer within 0.2 s: see whether"):
        checks.refuse_silent([silent])
    guest = world.guest(world.image("xvda"))
    world.guest(silent, name="vm2", uuid=OTHER_UUID)
    checks.refuse_shared(world.host, guest, guest.configuration.disks)


@pytest.mark.parametrize("as_snapshot", [True, False])
def test_what_an_image_stands_on_is_there(dead: Path, tmp_path: Path, as_snapshot: bool) -> None:
    image, silent = tmp_path / "image.qcow2", str(tmp_path / "dead")
    options = ["-u", "-F", "qcow2", "-b", silent]
    qemu_img("create", "-q", "-f", "qcow2", *options, str(image), "1M")
    disk = Disk("xvda", str(image), "qcow2")
    other = Disk("xvda", str(tmp_path / "image"), "qcow2")
    snapshots = [DiskRequest("xvda", str(image), "qcow2")] if as_snapshot else []
    begun = time.monotonic()
    with pytest.raises(Refused, match=f"^xvda: {silent}: no answer within"):
        checks.refuse_silent([other if as_snapshot else disk], snapshots)
    with pytest.raises(Refused, match="no answer within"):
        refuse_broken(disk, image)
    with pytest.raises(Refused, match="no answer within"):
        checks.refuse_silent([], [DiskRequest("xvda", silent, "raw")])
    assert time.monotonic() - begun < 5


def test_a_loop_device_over_a_file_there_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(No real one can be made over a server that answers nothing.)"""
    monkeypatch.setattr(stalled, "_ANSWER_S", 0.3)
    answers = threading.Event()
    device, file = tmp_path / "loop7", tmp_path / "file"
    device.touch()
    file.touch()
    backing = tmp_path / "sys/loop7/loop/backing_file"
    backing.parent.mkdir(parents=True)
    backing.write_text(f"{file}\n")
    monkeypatch.setattr(paths, "DEV", tmp_path)
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: answers.wait())
    begun = time.monotonic()
    for _ in range(20):
        assert not in_use.is_over(backing, file)
    assert time.monotonic() - begun < 3
    answers.set()
    wait_for(lambda: loop._unanswered[device].is_set())
    monkeypatch.undo()
    assert loop.loop_file(device) is None  # a regular file


def test_many_files_of_which_one_does_not_answer(dead: Path, tmp_path: Path) -> None:
    here, none, silent = stats_within([str(tmp_path), str(tmp_path / "none"), str(dead)])
    assert here == tmp_path.stat()
    assert isinstance(none, FileNotFoundError)
    assert isinstance(silent, TimeoutError)


def test_other_files_are_as_ever(tmp_path: Path) -> None:
    found = stats_within([str(tmp_path), str(tmp_path / "none"), "a\0b"])
    assert found[0] == tmp_path.stat()
    assert isinstance(found[1], FileNotFoundError)
    assert isinstance(found[2], OSError)
    assert stat_within(tmp_path) == tmp_path.stat()
    assert exists_within(tmp_path)
    assert not exists_within(tmp_path / "none")
    assert not exists_within("a\0b")
    with pytest.raises(FileNotFoundError):
        stat_within(tmp_path / "none")


# Whoever may mount with FUSE chooses the name; the kernel escapes blanks, newlines and backslashes.
@pytest.mark.parametrize("end", [b"\r", b"\x0b", b"\x85", "\u2028".encode(), b"\xff"])
def test_a_mount_whose_name_has_what_python_takes_for_the_end_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    odd = b"50 1 0:51 / /home/a%sb rw,nosuid - fuse.sshfs x rw\n" % end
    last = b"51 1 0:52 / /net rw - nfs4 server:/x rw\n"
    (tmp_path / "mountinfo").write_bytes(odd + b"no mount\n" + last)
    assert served_mounts(str(tmp_path)) == {50: os.makedev(0, 51), 51: os.makedev(0, 52)}
    monkeypatch.setattr(paths, "PROC", tmp_path / "proc")
    for view in ("self", "1"):
        (tmp_path / "proc" / view).mkdir(parents=True)
        (tmp_path / "proc" / view / "mountinfo").write_bytes(odd + b"no mount\n" + last)
    assert mounts(os.makedev(0, 52), writable=True) == ["/net"]
    assert mounts(os.makedev(0, 51), writable=True) == [os.fsdecode(b"/home/a%sb" % end)]


@pytest.mark.parametrize(
    "info",
    ["pos:\t0\nflags:\t02000002\nUserFiles:\t1\n    0: x\n  no colon\n", "no colon\nflags:\t02\n"],
)
def test_the_fdinfo_of_an_io_uring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: str
) -> None:
    process = tmp_path / "7"
    for name in ("fd", "fdinfo"):
        (process / name).mkdir(parents=True)
    (tmp_path / "image").touch()
    (process / "fd" / "3").symlink_to(tmp_path / "image")
    (process / "fdinfo" / "3").write_text(info)
    monkeypatch.setattr(paths, "PROC", tmp_path)
    assert list(open_files(7).values()) == [(os.O_RDWR, 3)]
    assert [link.writable for link in links_of(7)] == [True]
