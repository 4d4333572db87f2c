"""Who else uses a disk is known before a revert destroys the guest: on real loops and mounts."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from pyxlsnap import paths
from pyxlsnap.cancel import Cancelled
from pyxlsnap.disks import rivals
from pyxlsnap.disks.in_use import Servers, users, wait_until_unused
from pyxlsnap.disks.rivals import refuse_rivals, refuse_users
from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk
from tests.unit.support.loop_files import looped, mount, opened, run, wait_for

DOMID = 7


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "_LOOKS_S", 0.5)
    monkeypatch.setattr(rivals, "_LOOKERS_S", 1.0)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A raw file, as blkback serves it over a loop device."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    run("mkfs.ext4", "-q", path)
    return Disk("xvda", str(path), "raw", "phy")


@pytest.fixture
def sys_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real /sys, with blkbacks of our own."""
    tree = tmp_path / "sys"
    (tree / "bus/xen-backend/devices").mkdir(parents=True)
    for name in ("block", "dev", "devices"):
        (tree / name).symlink_to(f"/sys/{name}")
    monkeypatch.setattr(paths, "SYS", tree)
    return tree


def serve(sys_tree: Path, device: Path, *, domid: int = DOMID, vdev: int = 51712) -> None:
    """A blkback that serves a block device."""
    backend = sys_tree / f"bus/xen-backend/devices/vbd-{domid}-{vdev}"
    backend.mkdir()
    number = device.stat().st_rdev
    (backend / "physical_device").write_text(f"{os.major(number):x}:{os.minor(number):x}\n")


@pytest.fixture
def served(sys_tree: Path, disk: Disk) -> Iterator[Path]:
    """The guest's own loop device over the disk."""
    with looped(Path(disk.target)) as device:
        serve(sys_tree, device)
        yield device


def check(
    disk: Disk,
    *,
    reverted: bool = True,
    domid: int | None = DOMID,
    device_model: int | None = None,
    waiting: Callable[[str], None] = lambda _: None,
) -> None:
    refuse_rivals([disk], [disk] if reverted else [], Servers(domid, device_model), waiting)


def refusal(disk: Disk, *, reverted: bool = True) -> str:
    with pytest.raises(Refused) as caught:
        check(disk, reverted=reverted)
    text = str(caught.value)
    assert text.startswith(f"{disk.vdev}: {disk.target} is ")
    assert "\n" not in text
    return text


class TestDelete:
    """Of the disks of a clone."""

    def test_what_serves_the_clone_is_no_other_user(self, disk: Disk, served: Path) -> None:
        refuse_users([disk], Servers(DOMID), lambda _: None)

    def test_a_process_that_has_the_file(self, disk: Disk) -> None:
        with opened(Path(disk.target)) as pid:
            wait_for(lambda: users(Path(disk.target)) != [])
            text = rf"in use by sleep \(pid {pid}\), and could not be deleted with its clone"
            with pytest.raises(Refused, match=text):
                refuse_users([disk], Servers(DOMID), lambda _: None)
            refuse_users([disk], Servers(DOMID, pid), lambda _: None)

    def test_the_qemu_of_a_clone_that_was_destroyed_just_now(
        self, disk: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rivals, "_LOOKERS_S", 30.0)
        with subprocess.Popen(["sh", "-c", 'exec sleep 2 <"$0"', disk.target]):
            wait_for(lambda: users(Path(disk.target)) != [])
            refuse_users([disk], Servers(), lambda _: None)

    def test_the_wait_for_it_can_be_cancelled(
        self, disk: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rivals, "_LOOKERS_S", 30.0)

        def cancelled(_: str) -> NoReturn:
            raise Cancelled

        with opened(Path(disk.target)):
            wait_for(lambda: users(Path(disk.target)) != [])
            begun = time.monotonic()
            with pytest.raises(Cancelled):
                refuse_users([disk], Servers(), cancelled)
            assert time.monotonic() - begun < 10

    @pytest.mark.parametrize("target", ["", "disk.raw", "/none/disk.raw"])
    def test_what_is_no_file_of_this_host(
        self, disk: Disk, target: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(Path(disk.target).parent)
        with opened(Path(disk.target)):
            refuse_users([replace(disk, target=target)], Servers(DOMID), lambda _: None)


class TestRawFile:
    def test_what_serves_the_guest_is_no_rival(self, disk: Disk, served: Path) -> None:
        check(disk)
        wait_for(lambda: users(Path(disk.target)) == [f"{served.name} (vbd-7-51712)"])

    def test_another_guests_loop_device_is_one(self, disk: Disk, served: Path) -> None:
        with pytest.raises(Refused, match=rf"in use by {served.name} \(vbd-7-51712\)"):
            check(disk, domid=8)
        with pytest.raises(Refused, match=rf"in use by {served.name}"):
            check(disk, domid=None)

    def test_a_second_loop_device(self, disk: Disk, served: Path) -> None:
        with looped(Path(disk.target)) as other:
            text = refusal(disk)
        assert f"in use by {other.name}, " in text
        assert "(losetup -d)" in text
        check(disk)

    def test_a_mount_of_the_file(self, disk: Disk, served: Path, tmp_path: Path) -> None:
        """mount uses the guest's loop device, if it can."""
        with mount(Path(disk.target), tmp_path / "m", "-o", "loop,ro"):
            text = refusal(disk)
        assert f"a mount on {tmp_path / 'm'}" in text
        assert "umount" in text

    def test_a_mount_of_the_guests_own_loop_device(
        self, disk: Disk, served: Path, tmp_path: Path
    ) -> None:
        """The hotplug script detaches the loop device in vain."""
        with mount(served, tmp_path / "m", "-o", "ro"):
            assert f"in use by a mount on {tmp_path / 'm'} (on {served.name})" in refusal(disk)

    def test_a_process_that_has_the_guests_own_loop_device(self, disk: Disk, served: Path) -> None:
        with opened(served) as pid:
            wait_for(lambda: users(served, Servers(DOMID)) == [f"sleep (pid {pid})"])
            assert f"in use by sleep (pid {pid}) (on {served.name})" in refusal(disk)

    def test_a_process_that_has_the_file(self, disk: Disk, served: Path) -> None:
        with opened(Path(disk.target)) as pid:
            assert "wait for this process, or end it" in refusal(disk)
            check(disk, device_model=pid)

    def test_swap(self, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "proc").mkdir()
        monkeypatch.setattr(paths, "PROC", tmp_path / "proc")
        (tmp_path / "proc/swaps").write_text(f"Filename\n{disk.target} file 1 0 -3\n")
        assert "in use by swap, " in refusal(disk)

    def test_a_program_that_only_looks_is_waited_for(
        self, disk: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rivals, "_LOOKS_S", 10)
        answers = [["udev-worker (pid 1)"], []]
        monkeypatch.setattr(rivals, "users", lambda *_: answers.pop(0))
        check(disk)
        assert not answers

    @pytest.mark.parametrize(
        "looker",
        [
            *("lvs (pid 1273) (on loop2)", "vgs (pid 7)", "lvcreate (pid 7)", "lvm (pid 7)"),
            *("blkid (pid 7)", "systemd-udevd (pid 7)", "(udev-worker) (pid 7)", "? (pid 7)"),
        ],
    )
    def test_one_that_looks_at_all_devices_is_waited_for_longer(
        self, disk: Disk, monkeypatch: pytest.MonkeyPatch, looker: str
    ) -> None:
        monkeypatch.setattr(rivals, "_LOOKS_S", 0.0)
        monkeypatch.setattr(rivals, "_LOOKERS_S", 60.0)
        answers = [[looker], [looker], [looker], []]
        monkeypatch.setattr(rivals, "users", lambda *_: answers.pop(0) if answers else [])
        told: list[str] = []
        check(disk, waiting=told.append)
        assert not answers
        assert told == [f"{looker} to leave {disk.vdev} alone"] * 2
        monkeypatch.setattr(rivals, "users", lambda *_: [looker, "sleep (pid 8)"])
        before = time.monotonic()
        assert f"{looker}, sleep (pid 8)" in refusal(disk)
        assert time.monotonic() - before < rivals._LOOKERS_S

    def test_the_wait_for_one_can_be_cancelled(
        self, disk: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def cancelled(_: str) -> NoReturn:
            raise Cancelled

        monkeypatch.setattr(rivals, "_LOOKS_S", 0.0)
        monkeypatch.setattr(rivals, "_LOOKERS_S", 60.0)
        monkeypatch.setattr(rivals, "users", lambda *_: ["lvs (pid 7)"])
        with pytest.raises(Cancelled):
            check(disk, waiting=cancelled)

    @pytest.mark.parametrize(
        ("user", "ways"),
        [
            ("systemd-udevd (pid 7)", "wait for this process, or end it"),
            ("swapoff (pid 7) (on loop3)", "wait for this process, or end it"),
            ("loop3", "losetup -d"),
            ("loop3 (a mount on /md0)", "umount; losetup -d"),
            ("dm-3 (on loop3)", "dmsetup remove"),
            ("loop3 (dm-3)", "losetup -d; dmsetup remove"),
            ("md127", "mdadm --stop"),
            ("swap", "swapoff"),
            ("vbd-0-51712", "xl block-detach"),
            ("bcache0", "see lsblk"),
            ("dom0's kernel", "see lsblk"),
        ],
    )
    def test_the_way_out_is_that_of_the_user(
        self, disk: Disk, monkeypatch: pytest.MonkeyPatch, user: str, ways: str
    ) -> None:
        monkeypatch.setattr(rivals, "users", lambda *_: [user])
        assert refusal(disk).endswith(f"end that first ({ways})")

    def test_a_write_protected_file(self, disk: Disk, served: Path) -> None:
        """libxl's hotplug script refuses such a file, though root could write to it."""
        Path(disk.target).chmod(0o444)
        assert "write-protected" in refusal(disk)
        check(replace(disk, readwrite=False), reverted=False)
        check(replace(disk, backend="qdisk"))
        check(
            replace(disk, format="qcow2", backend="unknown")
        )  # without a choice libxl gives it to QEMU


class TestBlockDevice:
    @pytest.fixture
    def volume(self, sys_tree: Path, disk: Disk) -> Iterator[Disk]:
        with looped(Path(disk.target)) as device:
            serve(sys_tree, device)
            yield replace(disk, target=str(device))

    def test_what_serves_the_guest_is_no_rival(self, volume: Disk) -> None:
        check(volume)
        wait_for(lambda: users(Path(volume.target)) == ["vbd-7-51712"])

    def test_dom0s_own_blkback(self, volume: Disk, sys_tree: Path) -> None:
        """As after `xl block-attach 0`."""
        serve(sys_tree, Path(volume.target), domid=0)
        assert "in use by vbd-0-51712, " in refusal(volume)

    def test_a_mount(self, volume: Disk, tmp_path: Path) -> None:
        with mount(Path(volume.target), tmp_path / "m"):
            text = refusal(volume)
        assert f"in use by a mount on {tmp_path / 'm'}, " in text
        assert "(umount)" in text

    def test_a_claim_of_the_kernel_that_nobody_names(
        self, volume: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "proc").mkdir()
        with mount(Path(volume.target), tmp_path / "m"):
            monkeypatch.setattr(paths, "PROC", tmp_path / "proc")
            assert "in use by dom0's kernel, " in refusal(volume)

    def test_what_serves_the_device_is_no_rival(
        self, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """qemu-nbd has /dev/nbdN open as long as there is one."""
        with looped(Path(disk.target)) as device, opened(device) as pid:
            nbd = replace(disk, target=str(device))
            number = device.stat().st_rdev
            here = tmp_path / "sys/dev/block" / f"{os.major(number)}:{os.minor(number)}"
            here.mkdir(parents=True)
            monkeypatch.setattr(paths, "SYS", tmp_path / "sys")
            wait_for(lambda: users(device) == [f"sleep (pid {pid})"])
            assert f"in use by sleep (pid {pid})" in refusal(nbd)
            (here / "pid").write_text(f"{pid}\n")
            check(nbd)
            wait_until_unused(nbd, device)
            with opened(device) as other:
                wait_for(lambda: users(device) == [f"sleep (pid {other})"])
                assert f"in use by sleep (pid {other})" in refusal(nbd)


class TestNotReverted:
    """Disks that the restored guest will have, but that are not put back."""

    def test_a_mount_is_what_the_hotplug_script_refuses(
        self, disk: Disk, served: Path, tmp_path: Path
    ) -> None:
        with mount(Path(disk.target), tmp_path / "m", "-o", "loop"):
            assert f"in use by a mount on {tmp_path / 'm'}" in refusal(disk, reverted=False)

    def test_a_read_only_mount_of_a_read_only_disk(
        self, disk: Disk, served: Path, tmp_path: Path
    ) -> None:
        read_only = replace(disk, readwrite=False)
        with mount(Path(disk.target), tmp_path / "m", "-o", "loop,ro"):
            check(read_only, reverted=False)
            refusal(disk, reverted=False)
        with mount(Path(disk.target), tmp_path / "n", "-o", "loop"):
            refusal(read_only, reverted=False)

    def test_others_may_read_it(self, disk: Disk, served: Path) -> None:
        with looped(Path(disk.target)), opened(Path(disk.target)):
            check(disk, reverted=False)

    @pytest.mark.parametrize(
        "other", [{"backend_domain": "storage"}, {"target": "/none"}, {"target": ""}]
    )
    def test_what_is_not_here_is_not_looked_at(self, disk: Disk, other: dict[str, str]) -> None:
        there = replace(disk, **other)  # type: ignore[arg-type]
        check(there)


def test_nobody_is_told_to_end_a_qemu_img(disk: Disk, tmp_path: Path) -> None:
    tool = tmp_path / "qemu-img"
    tool.symlink_to("/usr/bin/sleep")
    with (
        open(disk.target, "rb") as file,
        subprocess.Popen([str(tool), "60"], stdin=file, executable=str(tool)) as process,
    ):
        says = refusal(disk)
        process.kill()
    assert f"in use by qemu-img (pid {process.pid})" in says
    assert "end it" not in says
    assert "end that" not in says
    assert "wait first (wait until qemu-img has finished" in says
