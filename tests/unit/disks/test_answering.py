"""A block device that does not answer is known before a revert destroys its guest."""

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pyxlsnap import paths
from pyxlsnap.disks import answering
from pyxlsnap.disks.answering import refuse_unanswering
from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk
from tests.unit.support.loop_files import looped
from tests.unit.support.waiting import open_descriptors


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_RESUMED_S", 0.0)
    monkeypatch.setattr(answering, "_ANSWERS_S", 0.2)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "backing").write_bytes(bytes(1 << 20))
    with looped(tmp_path / "backing") as found:
        yield found


@pytest.fixture
def disk(device: Path) -> Disk:
    return Disk("xvda", str(device), "raw", "phy")


@pytest.fixture
def mapped(device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The device in a /sys of our own, in the place of one of the device mapper."""
    number = device.stat().st_rdev
    here = tmp_path / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
    monkeypatch.setattr(paths, "SYS", tmp_path / "sys")
    make_mapped(here, "vg-web", suspended=False)
    return here


def make_mapped(here: Path, name: str, *, suspended: bool) -> None:
    (here / "slaves").mkdir(parents=True)
    (here / "dm").mkdir()
    (here / "dm/name").write_text(f"{name}\n")
    (here / "dm/suspended").write_text(f"{suspended:d}\n")


@pytest.fixture
def never() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def hangs(monkeypatch: pytest.MonkeyPatch, never: threading.Event) -> None:
    def read(_fd: int, _buffers: object, _offset: int) -> int:
        never.wait()
        return 0

    monkeypatch.setattr(os, "preadv", read)


def test_a_device_that_answers(disk: Disk, mapped: Path) -> None:
    before = open_descriptors()
    refuse_unanswering([disk])
    assert open_descriptors() == before


def test_a_device_that_is_suspended(disk: Disk, mapped: Path) -> None:
    (mapped / "dm/suspended").write_text("1\n")
    with pytest.raises(
        Refused, match=r"^xvda: /dev/loop\d+ is suspended .*`dmsetup resume vg-web`"
    ):
        refuse_unanswering([disk])


def test_a_device_below_that_is_suspended(disk: Disk, mapped: Path) -> None:
    make_mapped(mapped / "slaves/dm-3", "vg-pool_tdata", suspended=True)
    with pytest.raises(Refused, match="`dmsetup resume vg-pool_tdata`"):
        refuse_unanswering([disk])


def test_a_device_that_lvm_suspends_for_a_moment(
    disk: Disk, mapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["1", "1", "0"])
    monkeypatch.setattr(answering, "_RESUMED_S", 10.0)
    monkeypatch.setattr(answering, "attribute", lambda p: next(answers) if p.name != "name" else "")
    refuse_unanswering([disk])


def test_a_device_whose_storage_does_not_answer(
    disk: Disk, never: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs(monkeypatch, never)
    with pytest.raises(Refused, match=r"^xvda: /dev/loop\d+ has not answered a read within 0\.2 s"):
        refuse_unanswering([disk])


def test_a_device_that_cannot_be_read(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest has the same error."""

    def read(_fd: int, _buffers: object, _offset: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", read)
    refuse_unanswering([disk])


def test_what_is_no_block_device_of_dom0_is_not_read(
    disk: Disk, never: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs(monkeypatch, never)
    others = [
        replace(disk, target=str(tmp_path / "backing")),
        replace(disk, target=str(tmp_path / "none")),
        replace(disk, target=""),
        replace(disk, cdrom=True),
        replace(disk, script="block-iscsi"),
        replace(disk, backend_domain="storage"),
    ]
    refuse_unanswering(others)
