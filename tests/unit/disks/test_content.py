"""Copies of files, and who uses a disk: on real files, filesystems and loop devices."""

import errno
import fcntl
import os
import re
import shutil
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyxlsnap import paths
from pyxlsnap.disks.copy import content
from pyxlsnap.disks.copy.content import (
    Space,
    can_reflink,
    copy_attributes,
    copy_file,
    drained,
    new_file,
    os_errors,
    refuse_full,
    released,
    users,
)
from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.linux.files import temporary_name
from pyxlsnap.model import Disk

BLOCK = 4096
SYSTEM_CALLS = (
    *("open", "link", "rename", "unlink", "fsync", "ftruncate", "lseek", "fchown", "fchmod"),
    *("listxattr", "getxattr", "setxattr", "copy_file_range", "pread", "pwrite", "preadv"),
)


class Killed(BaseException):
    """The process is no more."""


class Fault:
    """From the Nth system call on every one fails, or only that one."""

    def __init__(self, patch: pytest.MonkeyPatch, failure: Callable[[], BaseException]) -> None:
        self._failure = failure
        self._left: int | None = None
        self.struck = False
        for module, name in [*((os, n) for n in SYSTEM_CALLS), (fcntl, "ioctl")]:
            patch.setattr(module, name, self._failing(getattr(module, name)))

    @contextmanager
    def at(self, number: int) -> Iterator[None]:
        """While the body runs."""
        self._left, self.struck = number, False
        try:
            yield
        finally:
            self._left = None

    def _failing(self, call: Callable[..., object]) -> Callable[..., object]:
        def maybe(*arguments: object, **options: object) -> object:
            if self._left is not None:
                self._left -= 1
                dead = self.struck and self._failure is Killed
                if self._left == 0 or dead:
                    self.struck = True
                    raise self._failure()
            return call(*arguments, **options)

        return maybe


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def need_root(what: str) -> None:
    if os.geteuid():
        pytest.skip(f"{what} takes root")


def run(*command: str | Path) -> str:
    """Run what may not be permitted, or not be there."""
    if not shutil.which(str(command[0])):
        pytest.skip(f"{command[0]} is missing (apt-get install btrfs-progs xfsprogs)")
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def mounted(kind: str, directory: Path) -> Iterator[Path]:
    """A new filesystem, in a file in the directory."""
    need_root("a filesystem to mount")
    image, where = directory / f"{kind}.img", directory / kind
    with image.open("wb") as file:
        file.truncate(512 << 20)
    run(f"mkfs.{kind}", "-q", image)
    where.mkdir()
    run("mount", "-o", "loop", image, where)
    try:
        yield where
    finally:
        # Lazily: a test that failed may have left a file open, and nothing else must stay.
        subprocess.run(["umount", "--lazy", str(where)], check=True)
        image.unlink()


@contextmanager
def looped(path: Path) -> Iterator[Path]:
    """A loop device over a file."""
    need_root("a loop device")
    device = Path(run("losetup", "--find", "--show", path))
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)
        wait_for(lambda: not users_of_loop(device))


def users_of_loop(device: Path) -> bool:
    return Path("/sys/block", device.name, "loop").exists()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A process that has a file open, as a QEMU has a disk."""
    with path.open("rb") as file:
        process = subprocess.Popen(["sleep", "1000"], stdin=file)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A filesystem that can share blocks between files."""
    with mounted(request.param, tmp_path_factory.mktemp("filesystem")) as where:
        yield where


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"content" * 1000)
    return Disk("xvda", str(path), "raw", "phy")


def copy(source: Path, new: Path, *, reflink: bool = False) -> None:
    with source.open("rb") as file, new_file(new) as fd:
        copy_file(file.fileno(), fd, reflink=reflink)


def data(path: Path) -> list[tuple[int, int]]:
    with path.open("rb") as file:
        return list(content._data(file.fileno(), path.stat().st_size))


# copies

LAYOUT = st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=8)


@pytest.mark.parametrize("in_kernel", [True, False])
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(layout=LAYOUT, tail=st.integers(0, BLOCK - 1))
def test_a_copy_is_the_same_and_its_holes_are_holes(
    tmp_path: Path, in_kernel: bool, layout: list[tuple[bool, int]], tail: int
) -> None:
    source, new = tmp_path / "source", temporary_name(tmp_path / "new")
    with source.open("wb") as file, pytest.MonkeyPatch.context() as patch:
        for filled, blocks in layout:
            if filled:
                file.write(os.urandom(blocks * BLOCK))
            else:
                file.seek(blocks * BLOCK, os.SEEK_CUR)
        file.truncate(file.tell() + tail)
        file.flush()
        if not in_kernel:
            patch.setattr(os, "copy_file_range", unsupported(errno.EXDEV))
            patch.setattr(content, "_CHUNK", 3 * BLOCK)  # several for one part
        copy(source, new)
    assert new.read_bytes() == source.read_bytes()
    assert data(new) == data(source)


def unsupported(number: int) -> Callable[..., object]:
    def raising(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    return raising


def test_a_copy_in_the_kernel_that_copies_nothing_is_done_by_hand(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", lambda *_, **__: 0)
    copy(Path(disk.target), tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == Path(disk.target).read_bytes()


def test_a_file_that_becomes_shorter_is_no_endless_copy(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", lambda *_, **__: 0)
    monkeypatch.setattr(os, "pread", lambda *_: b"")
    with pytest.raises(OSError, match="shorter"):
        copy(Path(disk.target), tmp_path / "new")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_error_of_the_disk_is_not_tried_again(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "copy_file_range", unsupported(number))
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        copy(Path(disk.target), tmp_path / "new")


@pytest.mark.parametrize("size", [0, 1, BLOCK, 1 << 16, (1 << 16) + 1, (5 << 20) + 7])
def test_a_reflink_is_the_same_and_takes_no_space(shared: Path, size: int) -> None:
    source, new, probe = (shared / f"{name} {size}" for name in ("source", "new", "probe"))
    content = os.urandom(size)
    source.write_bytes(content)
    with source.open("rb") as file, new_file(probe) as fd:
        assert can_reflink(file.fileno(), fd)
    subprocess.run(["sync", "-f", str(shared)], check=True)
    free = os.statvfs(shared).f_bfree
    copy(source, new, reflink=True)
    assert new.read_bytes() == content
    with source.open("r+b") as file:
        file.write(b"later"[:size])
    assert new.read_bytes() == content
    if size > 1 << 20:
        subprocess.run(["sync", "-f", str(shared)], check=True)
        assert (free - os.statvfs(shared).f_bfree) * BLOCK < size / 2


def test_a_probe_that_succeeded_is_overwritten_by_the_copy(shared: Path) -> None:
    source, new = shared / "source", shared / "copy after probe"
    source.write_bytes(bytes(1 << 20) + b"end")
    with source.open("rb") as file, new_file(new) as fd:
        assert can_reflink(file.fileno(), fd)
        copy_file(file.fileno(), fd, reflink=True)
    assert new.read_bytes() == source.read_bytes()


def test_no_reflink_across_filesystems(shared: Path, disk: Disk) -> None:
    with Path(disk.target).open("rb") as file, new_file(shared / "across") as fd:
        assert not can_reflink(file.fileno(), fd)


def test_an_image_without_copy_on_write_can_be_reflinked(
    tmp_path: Path,
) -> None:
    with mounted("btrfs", tmp_path) as where:
        source, plain, new = where / "source", where / "plain", where / "new"
        source.touch()
        run("chattr", "+C", source)
        source.write_bytes(os.urandom(1 << 20))
        with source.open("rb") as file, new_file(plain) as fd:
            assert not can_reflink(file.fileno(), fd)
        with source.open("rb") as file, new_file(new) as fd:
            copy_attributes(file.fileno(), fd)
            assert can_reflink(file.fileno(), fd)
            copy_file(file.fileno(), fd, reflink=True)
        assert new.read_bytes() == source.read_bytes()
        assert "C" in run("lsattr", new).split()[0]


@pytest.mark.parametrize("what", ["file", "link", "directory", "fifo"])
def test_a_new_file_replaces_nothing_and_follows_no_link(tmp_path: Path, what: str) -> None:
    path = tmp_path / "new"
    if what == "file":
        path.touch()
    elif what == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif what == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(FileExistsError), new_file(path):
        pass
    assert not (tmp_path / "elsewhere").exists()


# attributes


def acl(user: int, permissions: int) -> bytes:
    """owner rw, one more user, group r, mask rw, others nothing"""
    nobody = 0xFFFFFFFF
    entries = [(1, 6, nobody), (2, permissions, user), (4, 4, nobody), (0x10, 6, nobody)]
    packed = [struct.pack("<HHI", *entry) for entry in [*entries, (0x20, 0, nobody)]]
    return struct.pack("<I", 2) + b"".join(packed)


def copied_attributes(source: Path, new: Path) -> None:
    with source.open("rb") as file, new_file(new) as fd:
        copy_attributes(file.fileno(), fd)


def test_owner_mode_and_attributes_are_carried_over(tmp_path: Path) -> None:
    source, new = tmp_path / "source", tmp_path / "new"
    source.touch()
    if not os.geteuid():
        os.chown(source, 1234, 4321)
    source.chmod(0o664)
    os.setxattr(source, "user.note", b"a\0b")
    os.setxattr(source, "user.pyxlsnap", b"another snapshot's")
    os.setxattr(source, "system.posix_acl_access", acl(77, 6))
    copied_attributes(source, new)
    was, now = source.stat(), new.stat()
    assert (now.st_uid, now.st_gid, now.st_mode) == (was.st_uid, was.st_gid, was.st_mode)
    assert os.getxattr(new, "user.note") == b"a\0b"
    assert os.getxattr(new, "system.posix_acl_access") == acl(77, 6)
    assert "user.pyxlsnap" not in os.listxattr(new)


def test_a_directory_gives_nobody_more_rights(tmp_path: Path) -> None:
    source, new = tmp_path / "source", tmp_path / "new"
    source.touch(0o640)
    source.chmod(0o640)
    os.setxattr(tmp_path, "system.posix_acl_default", acl(77, 6))
    copied_attributes(source, new)
    assert "system.posix_acl_access" not in os.listxattr(new)
    assert stat.S_IMODE(new.stat().st_mode) == 0o640


def test_attributes_that_a_filesystem_does_not_know_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").touch()
    os.setxattr(tmp_path / "source", "user.note", b"note")
    monkeypatch.setattr(os, "setxattr", unsupported(errno.ENOTSUP))
    copied_attributes(tmp_path / "source", tmp_path / "new")
    monkeypatch.setattr(os, "listxattr", unsupported(errno.ENOTSUP))
    copied_attributes(tmp_path / "source", tmp_path / "newer")


def test_attributes_that_cannot_be_carried_over_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").touch()
    os.setxattr(tmp_path / "source", "user.note", b"note")
    monkeypatch.setattr(os, "setxattr", unsupported(errno.EPERM))
    with pytest.raises(PermissionError):
        copied_attributes(tmp_path / "source", tmp_path / "new")


# space, errors


def test_copies_to_one_filesystem_need_room_together(disk: Disk, tmp_path: Path) -> None:
    fs = os.statvfs(tmp_path)
    half = fs.f_bavail * fs.f_frsize * 6 // 10
    space = Space(disk, Path(disk.target), half, tmp_path)
    refuse_full([space])
    with pytest.raises(Refused, match=r"MiB left") as caught:
        refuse_full([space, space])
    assert all(text in str(caught.value) for text in ("xvda", str(tmp_path), disk.target))


def test_errors_name_the_file(disk: Disk, tmp_path: Path) -> None:
    with (
        pytest.raises(DiskError, match=r"^xvda: /some: No space") as caught,
        os_errors(disk, Path("/some")),
    ):
        raise full_disk()
    assert caught.value.vdev == "xvda"
    with pytest.raises(DiskError, match=r"^xvda: .*/none: No such"), os_errors(disk, Path("/some")):
        (tmp_path / "none").stat()
    with (
        pytest.raises(Refused, match=r"^xvda: /some: "),
        os_errors(disk, Path("/some"), refuse=True),
    ):
        os.fsync(1 << 20)


# who uses a disk


@pytest.fixture
def sys_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk) -> Path:
    """A /sys where loop9 is over the disk."""
    tree = tmp_path / "sys"
    loop = tree / "block/loop9/loop"
    loop.mkdir(parents=True)
    (loop / "backing_file").write_text(f"{disk.target}\n")
    (tree / "block/loop9/inflight").write_text("       0        0\n")
    other = tree / "block/loop8/loop"
    other.mkdir(parents=True)
    (other / "backing_file").write_text("/none (deleted)\n")
    (tree / "block/loop8/inflight").write_text("       1        1\n")
    monkeypatch.setattr(paths, "SYS", tree)
    return tree


def test_without_requests_nothing_is_waited_for(sys_tree: Path, disk: Disk) -> None:
    drained(disk, Path(disk.target))


@pytest.mark.parametrize("inflight", ["1 0", "0 1"])
def test_requests_in_flight_are_waited_for(sys_tree: Path, disk: Disk, inflight: str) -> None:
    queue = sys_tree / "block/loop9/inflight"
    queue.write_text(inflight)

    def end() -> None:
        (sys_tree / "quiet").write_text("0 0\n")
        os.rename(sys_tree / "quiet", queue)

    began = time.monotonic()
    threading.Timer(0.1, end).start()
    drained(disk, Path(disk.target))
    assert time.monotonic() - began >= 0.1


def test_a_request_that_never_ends_is_not_waited_for_for_ever(
    sys_tree: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_DRAINED_S", 0.05)
    (sys_tree / "block/loop9/inflight").write_text("0 3\n")
    with pytest.raises(DiskError, match=r"xvda: loop9, which serves .*disk\.raw"):
        drained(disk, Path(disk.target))


def test_a_device_whose_requests_nobody_knows_is_an_error(sys_tree: Path, disk: Disk) -> None:
    (sys_tree / "block/loop9/inflight").unlink()
    with pytest.raises(DiskError, match=r"xvda: .*inflight: No such"):
        drained(disk, Path(disk.target))


def test_a_real_loop_device_is_found_and_drained(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(disk.target)
    (tmp_path / "strange \n name").hardlink_to(disk.target)
    for name in (disk.target, tmp_path / "link", tmp_path / "strange \n name"):
        with looped(Path(name)) as device:
            assert users(Path(disk.target)) == [device.name]
            drained(disk, Path(disk.target))
            drained(disk, device)
    assert users(Path(disk.target)) == []


def test_who_has_a_disk_is_waited_for_and_named(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_RELEASED_S", 0.3)
    with opened(Path(disk.target)) as pid:
        wait_for(lambda: users(Path(disk.target)) == [f"sleep (pid {pid})"])
        with pytest.raises(DiskError, match=rf"xvda: .*in use by sleep \(pid {pid}\)"):
            released(disk, Path(disk.target))
    released(disk, Path(disk.target))


def test_a_loop_device_that_goes_away_is_waited_for(disk: Disk) -> None:
    need_root("a loop device")
    device = run("losetup", "--find", "--show", Path(disk.target))
    began = time.monotonic()
    # (Nobody attaches it again: by then its number may be another test's.)
    detach = subprocess.Popen(["sh", "-c", f"sleep 0.3; losetup --detach {device}"])
    try:
        released(disk, Path(disk.target))
        assert time.monotonic() - began >= 0.3
    finally:
        assert detach.wait() == 0


def test_blkback_and_devices_on_top_count_as_users(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with looped(Path(disk.target)) as device:
        number = device.stat().st_rdev
        tree = tmp_path / "sys"
        (tree / "dev/block" / f"{os.major(number)}:{os.minor(number)}" / "holders/dm-3").mkdir(
            parents=True
        )
        for name, text in ("vbd-4-51712", f"7:{os.minor(number):x}\n"), ("vbd-5-51712", "fd:1\n"):
            (tree / "bus/xen-backend/devices" / name).mkdir(parents=True)
            (tree / "bus/xen-backend/devices" / name / "physical_device").write_text(text)
        monkeypatch.setattr(paths, "SYS", tree)
        assert users(device) == ["vbd-4-51712", "dm-3"]


def test_a_disk_that_is_not_there_is_an_error(disk: Disk, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="No such file"):
        released(disk, tmp_path / "none")
