"""What a revert keeps: its names, and its removal."""

import os
from pathlib import Path

import pytest

from pyxlsnap.disks.kept import kept_path, refuse_long_kept, remove_kept_files
from pyxlsnap.errors import Refused
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


def test_files_that_cannot_be_removed_are_told(tmp_path: Path) -> None:
    first, stuck, last = (tmp_path / name for name in ("first", "stuck", "last"))
    first.touch()
    last.touch()
    stuck.mkdir()
    (line,) = remove_kept_files([first, tmp_path / "none", stuck, last])
    assert line.startswith(f"{stuck} (the disk before the revert): ")
    assert [p.name for p in tmp_path.iterdir()] == ["stuck"]
