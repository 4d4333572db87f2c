"""Copies of files: on real files and filesystems."""

import errno
import os
import re
import stat
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyxlsnap.disks.copy import content
from pyxlsnap.disks.copy.content import (
    Space,
    can_reflink,
    copy_attributes,
    copy_file,
    new_file,
    refuse_no_room,
)
from pyxlsnap.errors import Refused
from pyxlsnap.linux.files import temporary_name
from pyxlsnap.linux.room import Room
from pyxlsnap.model import Disk
from tests.unit.support.loop_files import mounted, run
from tests.unit.support.system_calls import unsupported

BLOCK = 4096


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


# space


def test_copies_to_one_filesystem_need_room_together(disk: Disk, tmp_path: Path) -> None:
    fs = os.statvfs(tmp_path)
    half = fs.f_bavail * fs.f_frsize * 6 // 10
    spaces = [Space(d, Path(d.target), half, tmp_path) for d in (disk, replace(disk, vdev="xvdb"))]
    for space in spaces:
        refuse_no_room([space], Room().claim)
    with pytest.raises(Refused, match=r"MiB left") as caught:
        refuse_no_room(spaces, Room().claim)
    assert all(text in str(caught.value) for text in ("xvdb", str(tmp_path), disk.target))
    room = Room()
    for _ in range(3):  # a check may be done again
        refuse_no_room(spaces[:1], room.claim)
