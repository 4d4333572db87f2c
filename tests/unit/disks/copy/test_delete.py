"""Deleting copies of disks: only a file that pyxlsnap made, and that nobody uses."""

import os
import subprocess
from pathlib import Path

import pytest

from pyxlsnap.disks.abilities import DeletingStrategy
from pyxlsnap.disks.copy import raw_file
from pyxlsnap.disks.copy.content import MARK
from pyxlsnap.disks.copy.raw_file import RawFile, default_request
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk
from tests.unit.support.qemu import qemu_img

CONTENT = b"content" * 10_000


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Disk]:
    """Two disks, and a snapshot of each."""
    found = []
    for vdev in ("xvda", "xvdb"):
        path = tmp_path / f"{vdev}.raw"
        path.write_bytes(CONTENT)
        found.append(Disk(vdev, str(path), "raw", "phy"))
    monkeypatch.setattr(raw_file, "users", lambda _: ["loop0"])
    one = strategy(found)
    one.check_create(7)
    one.prepare()
    one.create()
    one.finish_create()
    one.close()
    return found


def strategy(disks: list[Disk], *, looks_in: tuple[Path, ...] = ()) -> RawFile:
    task = DiskTask("snap", looks_in=looks_in)
    return RawFile([(d, default_request(d, "snap")) for d in disks], task)


def copy_of(disk: Disk) -> Path:
    return Path(f"{disk.target}.snap")


def delete(disks: list[Disk]) -> list[str]:
    one = strategy(disks)
    assert isinstance(one, DeletingStrategy)
    one.check_delete(7)
    assert one.prepare_delete() == []
    return one.delete()


def test_the_copies_and_again(disks: list[Disk]) -> None:
    assert delete(disks) == [f"removed {copy_of(disk)}" for disk in disks]
    assert delete(disks) == []
    assert [Path(disk.target).read_bytes() for disk in disks] == [CONTENT] * 2


def refusal(disks: list[Disk], *, looks_in: tuple[Path, ...] = ()) -> str:
    there = [copy_of(disk).exists() for disk in disks]
    with pytest.raises(Refused) as caught:
        strategy(disks, looks_in=looks_in).check_delete(None)
    assert [copy_of(disk).exists() for disk in disks] == there
    return str(caught.value)


def test_a_file_of_somebody_else_stays(disks: list[Disk]) -> None:
    copy_of(disks[1]).unlink()
    copy_of(disks[1]).write_text("precious")
    assert "is not marked as a copy that pyxlsnap made" in refusal(disks)
    with pytest.raises(Refused, match="xvdb"):
        strategy(disks).delete()
    assert copy_of(disks[1]).read_text() == "precious"
    assert not copy_of(disks[0]).exists()


def test_the_disk_itself_stays(disks: list[Disk]) -> None:
    copy_of(disks[0]).unlink()
    os.link(disks[0].target, copy_of(disks[0]))
    os.setxattr(disks[0].target, MARK, b"x")
    assert "is not marked" in refusal(disks)
    copy_of(disks[0]).unlink()
    copy_of(disks[0]).symlink_to(disks[0].target)
    assert "is not marked" in refusal(disks)


def test_one_that_is_in_use_stays(disks: list[Disk]) -> None:
    with copy_of(disks[0]).open("rb") as file:
        other = subprocess.Popen(["sleep", "60"], pass_fds=[file.fileno()])
        try:
            assert "is in use by sleep" in refusal(disks)
        finally:
            other.kill()
            other.wait()


def test_one_that_an_image_stands_on_stays(disks: list[Disk], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    image = elsewhere / "clone.qcow2"
    base = str(copy_of(disks[0]))
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", str(image))
    assert f"the image {image} stands on {base}" in refusal(disks, looks_in=(elsewhere,))
