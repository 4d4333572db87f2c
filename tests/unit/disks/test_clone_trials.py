"""The try of a clone's disks: a plan has no journal, so a kill must leave no file."""

import errno
import os
from pathlib import Path

import pytest

from pyxlsnap.disks.copy import clones as copy_clones
from pyxlsnap.disks.copy.content import copy_attributes
from pyxlsnap.disks.copy.raw_file import RawFile
from pyxlsnap.disks.qcow2 import backing, overlays, qemu
from pyxlsnap.disks.qcow2 import clones as qcow2_clones
from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.model import Disk, DiskRequest
from tests.unit.support.loop_files import looped
from tests.unit.support.qemu import qemu_img


def strategy(directory: Path, form: str) -> Qcow2 | RawFile:
    active, snapshot = directory / "a", directory / "a.snap"
    if form == "raw":
        active.write_bytes(bytes(512))
        snapshot.write_bytes(bytes(512))
    else:
        qemu_img("create", "-q", "-f", form, str(snapshot), "1M")
        qemu_img("create", "-q", "-f", form, "-b", str(snapshot), "-F", form, str(active))
    chosen = Disk("xvda", str(active), form), DiskRequest("xvda", str(snapshot), form)
    kind = RawFile if form == "raw" else Qcow2
    return kind([chosen], DiskTask("snap"))


@pytest.mark.parametrize("nameless", [True, False], ids=["nameless", "unlinked"])
@pytest.mark.parametrize("form", ["qcow2", "raw"])
def test_the_file_of_a_try_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, nameless: bool
) -> None:
    made, opening, tried = strategy(tmp_path, form), os.open, []
    before = sorted(tmp_path.iterdir())

    def look(source: int, new: int) -> None:
        tried.append(sorted(tmp_path.iterdir()))
        copy_attributes(source, new)

    def without(path: Path, flags: int, *more: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported", path)
        return opening(path, flags, *more)

    if not nameless:
        monkeypatch.setattr(os, "open", without)
    monkeypatch.setattr(qcow2_clones, "copy_attributes", look)
    monkeypatch.setattr(copy_clones, "copy_attributes", look)
    asked = DiskRequest("xvda", str(tmp_path / "own"), form)
    made.check_clone("c1", {"xvda": asked})
    made.close()
    assert tried == [before]
    assert sorted(tmp_path.iterdir()) == before


def test_what_has_not_changed_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowest, frozen = tmp_path / "lowest", tmp_path / "frozen"
    qemu_img("create", "-q", "-f", "qcow2", str(lowest), "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", str(lowest), "-F", "qcow2", str(frozen))
    asked: list[str] = []
    real = qemu.qemu_img

    def asks(disk: Disk, *words: str) -> None:
        asked.append(words[0])
        real(disk, *words)

    monkeypatch.setattr(overlays, "qemu_img", asks)
    monkeypatch.setattr(qemu, "qemu_img", asks)
    chosen = Disk("xvda", str(tmp_path / "a"), "qcow2"), DiskRequest("xvda", str(frozen), "qcow2")
    made = Qcow2([chosen], DiskTask("snap"))

    def check() -> int:
        made.check_clone("c1", {})
        return len(asked)

    assert (check(), check()) == (1, 1)
    os.utime(lowest)
    assert (check(), check()) == (2, 2)
    lowest.rename(tmp_path / "away")
    with pytest.raises(Refused, match=f"stands on {lowest}, and there is no such file"):
        check()
    made.close()
    assert {*asked} == {"create"}


def test_a_writer_of_what_has_not_changed_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = strategy(tmp_path, "qcow2")
    made.check_clone("c1", {})
    monkeypatch.setattr(backing, "_LOOKS_S", 0.0)
    monkeypatch.setattr(backing, "_is_locked", lambda file: file == tmp_path / "a.snap")
    monkeypatch.setattr(backing, "_writers", lambda _: [os.getpid()])
    with pytest.raises(Refused, match=rf"{tmp_path}/a\.snap is in use by .*may write to it"):
        made.check_clone("c1", {})
    made.close()


@pytest.mark.parametrize("which", ["broken", "loop"])
def test_a_chain_that_cannot_be_opened_is_refused_by_the_name_of_a_file(
    tmp_path: Path, which: str
) -> None:
    lowest, frozen = tmp_path / "lowest", tmp_path / "a.snap"
    made = strategy(tmp_path, "qcow2")
    qemu_img("create", "-q", "-f", "qcow2", str(lowest), "1M")
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", str(lowest), "-F", "qcow2", str(frozen))
    if which == "loop":
        qemu_img("rebase", "-u", "-f", "qcow2", "-b", str(frozen), "-F", "qcow2", str(lowest))
    else:
        lowest.write_bytes(b"no image" * 512)
    with pytest.raises((DiskError, Refused), match="a.snap" if which == "loop" else "lowest"):
        made.check_clone("c1", {})
    made.close()


def test_a_chain_on_a_block_device_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "low.img").write_bytes(bytes(1 << 20))
    made = strategy(tmp_path, "qcow2")
    with looped(tmp_path / "low.img") as device:
        backing_file = ("-b", str(device), "-F", "raw")
        qemu_img("rebase", "-u", "-f", "qcow2", *backing_file, str(tmp_path / "a.snap"))
        made.check_clone("c1", {})
        made.check_clone("c1", {})
    made.close()
