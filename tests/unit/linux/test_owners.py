"""Who can change a file: on real files of several users."""

import os
import struct
import subprocess
from pathlib import Path

import pytest

from pyxlsnap.linux.owners import who_can_change
from tests.unit.support.loop_files import need_root

SOMEBODY = 12345


@pytest.fixture
def top(public: Path) -> Path:
    """A directory that everybody may enter."""
    return public


@pytest.fixture
def file(top: Path) -> Path:
    path = top / "dir" / "web1.save"
    path.parent.mkdir(mode=0o755)
    path.touch(0o600)
    return path


def give(path: Path) -> None:
    need_root("another owner")
    os.lchown(path, SOMEBODY, SOMEBODY)


def test_nobody(file: Path) -> None:
    assert who_can_change(file) is None
    file.chmod(0o644)
    assert who_can_change(file) is None


def test_its_owner(file: Path) -> None:
    give(file)
    assert who_can_change(file) == f"{file} belongs to the user {SOMEBODY}"


def test_everybody(file: Path) -> None:
    file.chmod(0o602)
    assert who_can_change(file) == f"{file} is writable for everybody"


def test_its_group(file: Path) -> None:
    need_root("another group")
    file.chmod(0o660)
    assert who_can_change(file) is None  # the group of root
    os.chown(file, 0, SOMEBODY)
    assert who_can_change(file) == f"{file} is writable for the group {SOMEBODY}"


def test_a_user_whom_an_acl_names(file: Path) -> None:
    need_root("an ACL")
    entries = ((1, 6, -1), (2, 6, SOMEBODY), (4, 0, -1), (16, 6, -1), (32, 0, -1))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.chown(file, 0, SOMEBODY)
    os.setxattr(file, "system.posix_acl_access", acl)
    assert who_can_change(file) == f"{file} is writable for the group {SOMEBODY}"


@pytest.mark.parametrize("mode", [0o757, 0o1757])
def test_a_directory_that_everybody_can_write(file: Path, mode: int) -> None:
    file.parent.chmod(mode)
    sticky = mode & 0o1000
    expected = None if sticky else f"{file.parent} is writable for everybody"
    assert who_can_change(file) == expected


def test_somebody_elses_directory(file: Path) -> None:
    give(file.parent)
    file.parent.chmod(0o1755)
    assert who_can_change(file) == f"{file.parent} belongs to the user {SOMEBODY}"


def test_a_directory_that_others_cannot_enter(file: Path) -> None:
    file.chmod(0o666)
    file.parent.chmod(0o700)
    assert who_can_change(file) is None


def test_a_closed_directory_that_others_can_replace(file: Path, top: Path) -> None:
    file.parent.chmod(0o700)
    top.chmod(0o777)
    assert who_can_change(file) == f"{top} is writable for everybody"


def test_somebody_elses_link(file: Path, top: Path) -> None:
    link = top / "link"
    link.symlink_to(file)
    assert who_can_change(link) is None
    give(link)
    assert who_can_change(link) == f"{link} belongs to the user {SOMEBODY}"


def test_a_link_from_a_safe_place_to_another(file: Path, top: Path) -> None:
    file.chmod(0o602)
    (top / "link").symlink_to(file.parent)
    named = top / "link" / file.name
    assert who_can_change(named) == f"{named} is writable for everybody"


def test_a_file_that_is_not_there(file: Path) -> None:
    file.unlink()
    with pytest.raises(FileNotFoundError):
        who_can_change(file)


def test_what_it_says_is_so(file: Path) -> None:
    """Another user tries."""
    need_root("another user")
    for mode, changed in ((0o644, False), (0o646, True)):
        file.chmod(mode)
        command = ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"]
        done = subprocess.run([*command, "sh", "-c", f"echo x >{file}"], stderr=subprocess.DEVNULL)
        assert (done.returncode == 0) is changed
        assert (who_can_change(file) is not None) is changed
