"""Overlays that are made ahead of the clones, and a world that changes before the clone."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyxlsnap.disks.qcow2 import clones, overlays
from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import Refused
from pyxlsnap.linux import files
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.results import CloneDisk
from tests.unit.support.qemu import damage, qemu_img, whole, write


class Frozen:
    """A disk whose disk snapshot is a frozen file with 2 in it, which stands on one with 1."""

    def __init__(self, directory: Path) -> None:
        self.lowest, self.frozen = directory / "lowest.qcow2", directory / "frozen.qcow2"
        self.disk = Disk("xvda", str(directory / "a.qcow2"), "qcow2")
        qemu_img("create", "-q", "-f", "qcow2", str(self.lowest), "1M")
        write(Disk("xvda", str(self.lowest), "qcow2"), 1)
        self.stand(self.frozen, self.lowest)
        write(Disk("xvda", str(self.frozen), "qcow2"), 2)
        self.stand(Path(self.disk.target), self.frozen)

    @staticmethod
    def stand(file: Path, below: Path) -> None:
        qemu_img("create", "-q", "-f", "qcow2", "-b", str(below), "-F", "qcow2", str(file))

    def keep(self, check: Callable[[], None] = lambda: None) -> bool:
        return overlays.make_ahead(self.disk, self.frozen, check)

    def clone(self) -> CloneDisk:
        request = DiskRequest("xvda", str(self.frozen), "qcow2")
        strategy = Qcow2([(self.disk, request)], DiskTask("snap"))
        (found,) = strategy.check_clone("c1", {})
        strategy.clone()
        strategy.close()
        return found


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Frozen:
    monkeypatch.setattr(overlays, "_ahead", {})
    monkeypatch.setattr(files, "_SETTLED_S", -1.0)
    return Frozen(tmp_path)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The overlays that qemu-img has made: what they stand on."""
    found: list[str] = []
    words = overlays._words

    def record(frozen: Path, here: str) -> list[str]:
        found.append(str(frozen))
        return words(frozen, here)

    monkeypatch.setattr(overlays, "_words", record)
    return found


def test_qemu_img_makes_one_for_many_clones(frozen: Frozen, made: list[str]) -> None:
    frozen.keep()
    frozen.keep()
    assert made == [str(frozen.frozen)]
    clone = frozen.clone()
    assert made == [str(frozen.frozen)]
    like = frozen.frozen.with_name("like.qcow2")
    frozen.stand(like, frozen.frozen)
    assert Path(clone.target).read_bytes() == like.read_bytes()
    assert whole(Disk("xvda", clone.target, "qcow2"))[0] == 2


def frozen_changed(case: Frozen) -> None:
    write(Disk("xvda", str(case.frozen), "qcow2"), 3)


def frozen_replaced(case: Frozen) -> None:
    case.frozen.unlink()
    case.stand(case.frozen, case.lowest)


def frozen_larger(case: Frozen) -> None:
    found = case.frozen.stat()
    qemu_img("resize", "-q", "-f", "qcow2", str(case.frozen), "2M")
    os.utime(case.frozen, ns=(found.st_atime_ns, found.st_mtime_ns))


def lowest_replaced(case: Frozen) -> None:
    case.lowest.unlink()
    qemu_img("create", "-q", "-f", "qcow2", str(case.lowest), "1M")


CHANGES = [frozen_changed, frozen_replaced, frozen_larger, lowest_replaced]


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_it_is_made_again(
    frozen: Frozen, made: list[str], change: Callable[[Frozen], None]
) -> None:
    frozen.keep()
    change(frozen)
    clone = frozen.clone()
    assert len(made) == 2
    size = len(whole(Disk("xvda", str(frozen.frozen), "qcow2")))
    assert len(whole(Disk("xvda", clone.target, "qcow2"))) == size
    frozen.keep()
    frozen.keep()
    assert len(made) == 3


def frozen_gone(case: Frozen) -> None:
    case.frozen.unlink()


def lowest_gone(case: Frozen) -> None:
    case.lowest.unlink()


def lowest_damaged(case: Frozen) -> None:
    damage(case.lowest)


def lowest_is_no_image(case: Frozen) -> None:
    case.lowest.write_bytes(b"nonsense")


@pytest.mark.parametrize("change", [frozen_gone, lowest_gone, lowest_damaged, lowest_is_no_image])
@pytest.mark.parametrize("before", [True, False], ids=["kept", "not kept"])
def test_a_clone_refuses_what_it_refused_without_it(
    frozen: Frozen, change: Callable[[Frozen], None], before: bool
) -> None:
    if before:
        frozen.keep()
    change(frozen)
    frozen.keep()
    with pytest.raises(Refused, match="xvda"):
        frozen.clone()


def test_a_file_that_was_changed_just_now_may_change_again(
    frozen: Frozen, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a sign: the kernel's clock of files has steps."""
    monkeypatch.setattr(files, "_SETTLED_S", 3600.0)
    assert not frozen.keep()
    assert made == []


def test_a_host_without_qemu_img_is_told_by_the_clone(
    frozen: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(frozen.frozen.parent))
    assert not frozen.keep()
    with pytest.raises(Refused, match="qemu-img is missing"):
        frozen.clone()


def test_a_caller_that_wants_a_worker_does_not_wait_for_qemu_img(frozen: Frozen) -> None:
    class Wanted(Exception):
        pass

    def wanted() -> None:
        raise Wanted

    with pytest.raises(Wanted):
        frozen.keep(wanted)
    assert not overlays._ahead
    assert frozen.keep()


def test_a_data_file_is_looked_for_by_each_clone(tmp_path: Path, frozen: Frozen) -> None:
    """Its name is in the header, and qemu-img opens it."""
    frozen.frozen.unlink()
    data = tmp_path / "data"
    options = f"data_file={data},data_file_raw=off"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, str(frozen.frozen), "1M")
    assert not frozen.keep()
    frozen.clone()
    data.unlink()
    with pytest.raises(Refused, match="data"):
        frozen.clone()


def test_a_full_filesystem_is_found_by_the_check(
    frozen: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int, _content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert frozen.keep()
    monkeypatch.setattr(clones, "_write", full)
    request = DiskRequest("xvda", str(frozen.frozen), "qcow2")
    with pytest.raises(Refused, match="No space left"):
        Qcow2([(frozen.disk, request)], DiskTask("snap")).check_clone("c1", {})
