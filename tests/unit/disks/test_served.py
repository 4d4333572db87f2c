"""A disk is an inode, not a name: what serves it must have the file that its path leads to."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pyxlsnap import paths
from pyxlsnap.disks.served import ServedDisks
from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.model import Disk
from tests.unit.support.loop_files import looped
from tests.unit.support.qemu import DOMID, SIZE, Qemu, qemu_img


class TestQemu:
    """Disks that a QEMU serves: two qcow2 images, the first on a backing file."""

    @pytest.fixture
    def base(self, disks: list[Disk]) -> Path:
        base = Path(disks[0].target).with_name("base.qcow2")
        os.rename(disks[0].target, base)
        backing = ["-b", str(base), "-F", "qcow2"]
        qemu_img("create", "-q", "-f", "qcow2", *backing, disks[0].target)
        return base

    @pytest.fixture
    def served(self, base: Path, disks: list[Disk], qemu: Qemu) -> ServedDisks:
        qemu.has_opened()
        found = ServedDisks.of(disks, DOMID, qemu.pid)
        found.refuse_replaced()
        found.notice_replaced(["xvda", "xvdb"])
        return found

    def check(self, served: ServedDisks, vdev: str, says: str) -> None:
        other = "xvdb" if vdev == "xvda" else "xvda"
        served.notice_replaced([other])
        with pytest.raises(DiskError, match=says) as caught:
            served.notice_replaced(["xvda", "xvdb"])
        assert caught.value.vdev == vdev
        with pytest.raises(Refused, match=f"^{vdev}: {says}") as refused:
            served.refuse_replaced()
        assert "\n" not in str(refused.value)
        assert f"leave {vdev} out of `disks`" in str(refused.value)

    @pytest.mark.parametrize("kept", [True, False], ids=["kept", "unlinked"])
    def test_another_file_in_its_place(
        self, served: ServedDisks, disks: list[Disk], kept: bool
    ) -> None:
        path = Path(disks[1].target)
        shutil.copy(path, path.with_name("backup"))
        if kept:
            os.link(path, path.with_name("old"))
        os.rename(path.with_name("backup"), path)
        self.check(served, "xvdb", f"{path} is not the file that qemu-system-x86 ")

    def test_no_file_in_its_place(self, served: ServedDisks, disks: list[Disk]) -> None:
        Path(disks[1].target).unlink()
        self.check(served, "xvdb", f"{disks[1].target} is not the file that qemu-system-x86 ")

    def test_its_own_backing_file_in_its_place(
        self, served: ServedDisks, disks: list[Disk], base: Path
    ) -> None:
        """QEMU has that open, too, but only for reading."""
        Path(disks[0].target).unlink()
        os.link(base, disks[0].target)
        with pytest.raises(Refused, match=r"^xvda: .* is not the file"):
            served.refuse_replaced()

    def test_another_backing_file(self, served: ServedDisks, disks: list[Disk], base: Path) -> None:
        shutil.copy(base, base.with_name("backup"))
        os.rename(base.with_name("backup"), base)
        self.check(served, "xvda", f"{base}, a backing file of {disks[0].target}, is not ")

    def test_the_same_file_by_another_name(
        self, base: Path, disks: list[Disk], qemu: Qemu, tmp_path: Path
    ) -> None:
        qemu.has_opened()
        link = tmp_path / "link"
        link.symlink_to(disks[1].target)
        hard = tmp_path / "hard"
        os.link(disks[1].target, hard)
        for name in (link, hard):
            ServedDisks.of([replace(disks[1], target=str(name))], DOMID, qemu.pid).refuse_replaced()

    def test_an_image_whose_backing_file_is_gone(
        self, base: Path, disks: list[Disk], qemu: Qemu
    ) -> None:
        qemu.has_opened()
        base.unlink()
        with pytest.raises(Refused, match=r"^xvda: .*No such file"):
            ServedDisks.of(disks, DOMID, qemu.pid)

    def test_a_raw_image(self, run_dir: Path, disks: list[Disk], qemu: Qemu) -> None:
        """A raw disk that QEMU serves is looked at in the same way."""
        qemu.has_opened()
        raw = replace(disks[1], format="raw", backend="qdisk")
        served = ServedDisks.of([raw], DOMID, qemu.pid)
        served.refuse_replaced()
        os.rename(raw.target, run_dir / "old")
        Path(raw.target).write_bytes(b"")
        with pytest.raises(Refused, match=r"^xvdb: .* is not the file"):
            served.refuse_replaced()


class TestBlkback:
    """Raw files behind loop devices, and block devices: blkback has a device by its number."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> list[Path]:
        files = [tmp_path / "a.img", tmp_path / "b.img"]
        for file in files:
            file.write_bytes(bytes(SIZE))
        return files

    @pytest.fixture
    def devices(self, files: list[Path]) -> Iterator[list[Path]]:
        with ExitStack() as stack:
            yield [stack.enter_context(looped(file)) for file in files]

    @pytest.fixture(autouse=True)
    def sys(self, devices: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """xvda has the first loop device, xvdb the second."""
        sys = tmp_path / "sys"
        sys.mkdir()
        (sys / "dev").symlink_to("/sys/dev")
        for number, device in zip((51712, 51728), devices, strict=True):
            backend = sys / f"bus/xen-backend/devices/vbd-{DOMID}-{number}"
            backend.mkdir(parents=True)
            rdev = device.stat().st_rdev
            text = f"{os.major(rdev):x}:{os.minor(rdev):x}\n"
            (backend / "physical_device").write_text(text)
        monkeypatch.setattr(paths, "SYS", sys)

    def of(self, targets: list[Path]) -> ServedDisks:
        vdevs = ("xvda", "xvdb")
        disks = [Disk(v, str(t), "raw", "phy") for v, t in zip(vdevs, targets, strict=True)]
        return ServedDisks.of(disks, DOMID, None)

    def test_a_file_that_was_replaced(self, files: list[Path], devices: list[Path]) -> None:
        served = self.of(files)
        served.refuse_replaced()
        served.notice_replaced(["xvda", "xvdb"])
        backup = files[1].with_name("backup")
        shutil.copy(files[1], backup)
        os.rename(backup, files[1])
        says = f"{files[1]} is not the file that {devices[1].name} has open for the guest"
        with pytest.raises(Refused, match=f"^xvdb: {says}"):
            served.refuse_replaced()
        with pytest.raises(DiskError, match=says):
            served.notice_replaced(["xvdb"])
        served.notice_replaced(["xvda"])

    def test_the_file_is_put_back(self, files: list[Path]) -> None:
        """The kernel goes on calling it deleted."""
        served = self.of(files)
        os.link(files[1], files[1].with_name("old"))
        shutil.copy(files[1], files[1].with_name("backup"))
        os.rename(files[1].with_name("backup"), files[1])
        with pytest.raises(Refused):
            served.refuse_replaced()
        os.rename(files[1].with_name("old"), files[1])
        served.refuse_replaced()

    def test_two_files_that_changed_places(self, files: list[Path]) -> None:
        served = self.of(files)
        os.rename(files[0], files[0].with_name("x"))
        os.rename(files[1], files[0])
        os.rename(files[0].with_name("x"), files[1])
        with pytest.raises(Refused, match=r"^xvda: .* is not the file"):
            served.refuse_replaced()

    def test_a_block_device(self, devices: list[Path], tmp_path: Path) -> None:
        """A volume that was removed and made again has another number."""
        name = tmp_path / "volume"
        name.symlink_to(devices[0])
        served = self.of([name, devices[1]])
        served.refuse_replaced()
        name.unlink()
        name.symlink_to(devices[1])
        with pytest.raises(Refused, match=f"^xvda: {name} is not the file that {devices[0].name}"):
            served.refuse_replaced()

    def test_a_disk_that_no_blkback_serves(self, files: list[Path]) -> None:
        disk = Disk("xvdc", str(files[0]), "raw", "phy")
        ServedDisks.of([disk], DOMID, None).refuse_replaced()


@pytest.mark.parametrize(
    ("vdev", "number"),
    [
        ("xvda", 51712),
        ("xvdb", 51728),
        ("xvda2", 51714),
        ("xvdp", 51952),
        ("xvdq", 268439552),
        ("xvdaa", 268442112),
        ("hda", 768),
        ("hdb", 832),
        ("hdc", 5632),
        ("sda", 2048),
        ("sdb1", 2065),
        ("51712", 51712),
        ("0xca00", 51712),
    ],
)
def test_each_name_has_its_number(
    vdev: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in xen-vbd-interface(7)."""
    backend = tmp_path / f"bus/xen-backend/devices/vbd-{DOMID}-{number}"
    backend.mkdir(parents=True)
    (backend / "physical_device").write_text("7:99\n")
    monkeypatch.setattr(paths, "SYS", tmp_path)
    (file := tmp_path / "file").touch()
    with pytest.raises(Refused, match=f"^{vdev}: "):
        ServedDisks.of([Disk(vdev, str(file), "raw", "phy")], DOMID, None).refuse_replaced()
