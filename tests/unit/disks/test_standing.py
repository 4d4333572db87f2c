"""Which images stand on a file, as their headers say; qemu-img makes the images."""

import os
from pathlib import Path

import pytest

from pyxlsnap.disks.standing import backing_name, has_snapshots_inside, standing_on
from tests.unit.support.qemu import SIZE, qemu_img


def image(path: Path, backing: str = "") -> Path:
    path.parent.mkdir(exist_ok=True)
    to = ["-u", "-b", backing, "-F", "qcow2"] if backing else []
    qemu_img("create", "-q", "-f", "qcow2", *to, str(path), str(SIZE))
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return image(tmp_path / "frozen" / "a, b.s1")


def test_by_absolute_and_relative_names_and_behind_links(base: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(base)
    found = {
        image(tmp_path / "x" / "absolute", str(base)),
        image(tmp_path / "x" / "relative", f"../frozen/{base.name}"),
        image(tmp_path / "x" / "linked", str(link)),
        image(base.parent / ".hidden", base.name),
        image(tmp_path / "x" / "json", f'json:{{"driver":"qcow2","file":"{base}"}}'),
        image(tmp_path / "x" / "file", f"file:{base}"),
    }
    image(tmp_path / "x" / "independent")
    image(tmp_path / "x" / "like it", f"{base}0")
    image(tmp_path / "x" / "indirect", str(tmp_path / "x" / "absolute"))
    (tmp_path / "x" / "text").write_text(f"QFI {base}")
    (tmp_path / "x" / "empty").touch()
    (tmp_path / "x" / "directory").mkdir()
    os.mkfifo(tmp_path / "x" / "fifo")
    directories = [tmp_path / "x", base.parent, tmp_path / "not there"]
    assert set(standing_on(base, directories)) == found


def test_each_image_once_whatever_names_it_has(base: Path, tmp_path: Path) -> None:
    first = image(tmp_path / "x" / "a", str(base))
    os.link(first, tmp_path / "x" / "b")
    (tmp_path / "y").symlink_to(tmp_path / "x")
    assert standing_on(base, [tmp_path / "x", tmp_path / "y"]) == [first]


@pytest.mark.parametrize("length", [0, 10, 64, 70])
def test_a_header_that_is_cut_off_or_damaged(base: Path, tmp_path: Path, length: int) -> None:
    whole = image(tmp_path / "x", str(base)).read_bytes()
    (tmp_path / "x").write_bytes(whole[:length])
    assert backing_name(tmp_path / "x") == ""
    (tmp_path / "x").write_bytes(whole[:16] + b"\xff" * 4 + whole[20:])
    assert backing_name(tmp_path / "x") == ""


def test_snapshots_inside(base: Path) -> None:
    assert not has_snapshots_inside(base)
    qemu_img("snapshot", "-c", "one", str(base))
    assert has_snapshots_inside(base)
    base.write_bytes(b"short")
    assert not has_snapshots_inside(base)
