"""What a revert keeps: its names, and its removal."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pyxlsnap.disks.kept import KeptFiles, kept_path, refuse_long_kept
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.model import Disk

DISK = Disk("xvda", "/disk.raw", "raw")


def test_a_disk_is_kept_beside_itself() -> None:
    assert kept_path(Path("/d/disk.raw"), "snap") == Path("/d/disk.raw.snap.pre-revert")


@pytest.mark.parametrize("letter", ["x", "ä"])
def test_only_a_name_that_a_file_can_have_is_taken(tmp_path: Path, letter: str) -> None:
    room = 254 - len(os.fsencode(kept_path(tmp_path / "disk", "").name))
    fits = letter * (room // len(os.fsencode(letter)))
    refuse_long_kept(DISK, tmp_path / "disk", fits)
    (tmp_path / f".{kept_path(tmp_path / 'disk', fits).name}").touch()
    with pytest.raises(Refused, match=r"^xvda: .*shorter name"):
        refuse_long_kept(DISK, tmp_path / "disk", fits + letter)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    found = tmp_path / "disk.raw"
    found.write_text("disk")
    return found


def kept_by(finishes: Mapping[str, str] | None = None) -> KeptFiles:
    return KeptFiles(DiskTask("snap", finishes=finishes))


def test_the_disks_file_is_kept_until_it_is_removed(target: Path) -> None:
    files = kept_by()
    files.check(DISK, target)
    assert [p.name for p in target.parent.iterdir()] == ["disk.raw"]
    files.keep(DISK, target)
    assert files.path(target).samefile(target)
    assert files.remove([(DISK, target)]) == []
    assert [p.name for p in target.parent.iterdir()] == ["disk.raw"]


@pytest.mark.parametrize("what", ["file", "directory", "dangling"])
@pytest.mark.parametrize("finishes", [None, {}, {"xvda kept": "1"}])
def test_what_is_not_ours_is_refused_beforehand_and_stays(
    target: Path, what: str, finishes: Mapping[str, str] | None
) -> None:
    files = kept_by(finishes)
    there = files.path(target)
    if what == "dangling":
        there.symlink_to("nowhere")
    elif what == "directory":
        there.mkdir()
    else:
        there.touch()
    with pytest.raises(Refused, match=rf"^xvda: {there} exists, .*: move that file away"):
        files.check(DISK, target)
    (line,) = files.remove([(DISK, target)])
    assert line == f"{there}: this revert did not make that file"
    assert os.path.lexists(there)


def test_what_the_killed_run_kept_stays_and_is_ours(target: Path) -> None:
    killed = kept_by()
    killed.check(DISK, target)
    killed.keep(DISK, target)
    new = target.with_name("new")
    new.write_text("half-way back")
    new.rename(target)
    files = kept_by(killed.state())
    files.check(DISK, target)
    files.keep(DISK, target)
    assert files.path(target).read_text() == "disk"
    assert files.state() == killed.state()
    assert kept_by(files.state()).remove([(DISK, target)]) == []  # of a recovery
    assert not files.path(target).exists()


def test_a_disk_that_is_replaced_meanwhile_is_noticed(target: Path) -> None:
    files = kept_by()
    files.check(DISK, target)
    target.rename(target.with_name("old"))
    target.write_text("another")
    with pytest.raises(DiskError, match=f"^xvda: {target} was replaced .*run the command again"):
        files.keep(DISK, target)
    assert not files.path(target).exists()


def test_a_name_that_is_taken_meanwhile_is_noticed(target: Path) -> None:
    files = kept_by()
    files.check(DISK, target)
    files.path(target).write_text("another's")
    with pytest.raises(DiskError, match=r"another program made .*: move that file away, then run"):
        files.keep(DISK, target)
    assert files.path(target).read_text() == "another's"


def test_a_file_that_cannot_be_removed_is_told_and_the_others_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = [(replace(DISK, vdev=v), tmp_path / v) for v in ("xvda", "xvdb", "xvdc")]
    files = kept_by()
    for disk, target in disks:
        target.touch()
        files.keep(disk, target)
    unlink = Path.unlink

    def denied(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("xvdb"):
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", denied)
    (line,) = files.remove(disks)
    assert line == f"{tmp_path}/xvdb.snap.pre-revert (the disk before the revert): Operation " + (
        "not permitted"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("xvda", "xvdb", "xvdb.snap.pre-revert", "xvdc")
    ]
