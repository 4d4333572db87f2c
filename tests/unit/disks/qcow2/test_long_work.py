"""Images in which a snapshot takes long with the cache that QEMU takes by itself."""

import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyxlsnap.disks.qcow2 import inside, qemu, qmp, tables
from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.disks.qcow2.tables import work_of
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import LeftOver
from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.linux.processes import process_name
from pyxlsnap.model import Disk, DiskRequest
from tests.unit.support.qcow2_images import scattered, write
from tests.unit.support.qemu import DOMID, Qemu, qemu_img, tags

GIB = 1 << 30
#: with QEMU's own cache, its delete takes some ten seconds
PLACES = scattered(64 * GIB, 20_000, 300_000)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    path = tmp_path / "some, disk.qcow2"
    write(path, 64 * GIB, PLACES)
    return Disk("xvda", str(path), "qcow2")


@pytest.fixture
def guest(run_dir: Path, disk: Disk) -> Iterator[Qemu]:
    running = Qemu(run_dir, {disk.vdev: disk.target})
    yield running
    running.close()


def internal(disk: Disk, name: str = "snap", waiting: Callable[[str], None] = print) -> Qcow2:
    return Qcow2([(disk, DiskRequest(disk.vdev))], DiskTask(name, waiting=waiting))


def took(do: Callable[[], object]) -> float:
    began = time.monotonic()
    do()
    return time.monotonic() - began


class TestGuest:
    """While the guest runs, or is suspended."""

    def test_the_time_is_announced_with_a_quicker_way(self, guest: Qemu, disk: Disk) -> None:
        strategy = internal(disk)
        strategy.check_create(DOMID)
        assert strategy.expected_seconds() > 1
        assert strategy.quicker() == "an external snapshot is quicker ('/path,qcow2,xvda')"
        strategy.close()
        external = DiskRequest(disk.vdev, f"{disk.target}.snap", "qcow2")
        quick = Qcow2([(disk, external)], DiskTask("snap"))
        quick.check_create(DOMID)
        assert quick.expected_seconds() < 1
        assert quick.quicker() == ""
        quick.close()

    def test_an_undo_does_not_stop_the_guest(self, guest: Qemu, disk: Disk) -> None:
        strategy = internal(disk)
        strategy.check_create(DOMID)
        strategy.create()
        with pytest.raises(DiskError, match="while the domain is off: ") as caught:
            strategy.undo_create()
        assert "would stop the guest's disks for about" in str(caught.value)
        assert isinstance(caught.value, LeftOver)
        assert caught.value.finish == str(caught.value).partition("off: ")[2]
        strategy.close()
        guest.close()
        assert tags(disk) == ["snap"]
        printed = str(caught.value).partition("off: ")[2]
        assert took(lambda: subprocess.run(printed, shell=True, check=True)) < 4
        assert tags(disk) == []
        qemu_img("check", "-q", disk.target)
        guest.start()

    def test_a_delete_that_would_stop_the_guest_is_refused(self, guest: Qemu, disk: Disk) -> None:
        strategy = internal(disk)
        strategy.check_create(DOMID)
        strategy.create()
        strategy.close()
        deleting = internal(disk)
        with pytest.raises(Refused, match=r"would stop the guest's disks for about \d+ s"):
            deleting.check_delete(DOMID)
        deleting.close()
        guest.close()
        off = internal(disk)
        off.check_delete(None)
        assert took(off.delete) < 4
        assert tags(disk) == []
        guest.start()

    @pytest.fixture
    def reverted(self, guest: Qemu, disk: Disk) -> Iterator[Qcow2]:
        """A revert, whose domain is restored."""
        guest.close()
        qemu_img("snapshot", "-c", "snap", disk.target)
        strategy = internal(disk)
        strategy.check_revert()
        strategy.revert()
        assert tags(disk) == ["snap", "snap.pre-revert"]
        guest.start()
        yield strategy
        strategy.close()

    def test_what_a_revert_kept_stays_and_the_next_one_deletes_it(
        self, guest: Qemu, disk: Disk, reverted: Qcow2
    ) -> None:
        (left,) = reverted.finish_revert(DOMID)
        assert "would stop the guest's disks for about" in left
        assert ", or revert this disk again (this is the disk before the revert)" in left
        reverted.close()
        guest.close()
        write_with_qemu_io(disk, 9)
        for name, there in (("snap", 2), ("other", 3)):
            if name == "other":
                qemu_img("snapshot", "-c", "other", disk.target)
            again = internal(disk, name)
            again.check_revert()
            again.revert()
            assert f"{name}.pre-revert" in tags(disk)
            assert len(tags(disk)) == there
            guest.start()
            assert len(again.finish_revert(DOMID)) == 1
            again.close()
            guest.close()
        guest.start()

    def test_without_a_note_it_is_taken_for_somebodys(
        self, guest: Qemu, disk: Disk, reverted: Qcow2, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

        monkeypatch.setattr(os, "setxattr", refuse)
        (left,) = reverted.finish_revert(DOMID)
        assert "revert this disk again" not in left
        reverted.close()
        with pytest.raises(Refused, match=r"snap\.pre-revert.*qemu-img snapshot -d"):
            internal(disk).check_revert()

    def test_one_of_the_same_name_that_was_made_since_is_not_deleted(
        self, guest: Qemu, disk: Disk, reverted: Qcow2
    ) -> None:
        assert len(reverted.finish_revert(DOMID)) == 1
        reverted.close()
        guest.close()
        inside.in_file(disk, "-d", "snap.pre-revert")
        inside.in_file(disk, "-c", "snap.pre-revert")
        with pytest.raises(Refused, match=r"snap\.pre-revert"):
            internal(disk).check_revert()
        guest.start()


class TestLimits:
    def test_the_limit_follows_from_the_estimate(
        self, guest: Qemu, disk: Disk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limits: dict[str, float] = {}
        run = qmp.QmpConnection._run

        def running(
            connection: qmp.QmpConnection, what: object, said: str, limit_s: float
        ) -> object:
            limits[said] = limit_s
            return run(connection, what, said, limit_s)  # type: ignore[arg-type]

        monkeypatch.setattr(qmp.QmpConnection, "_run", running)
        monkeypatch.setattr(tables, "_TABLE_S", 1.0)
        strategy = internal(disk)
        monkeypatch.setattr(inside, "_STOPS_S", 1e6)
        strategy.check_create(DOMID)
        strategy.create()
        strategy.undo_create()
        strategy.close()
        count = work_of(Path(disk.target)).tables
        assert limits["transaction"] >= qmp.COMMAND_S + 4 * count
        assert limits["blockdev-snapshot-delete-internal-sync"] >= qmp.COMMAND_S + 4 * count
        assert limits["query-block"] == qmp.COMMAND_S


class TestQemuImg:
    """After the destroy."""

    def test_a_revert_is_quick_and_right(self, disk: Disk) -> None:
        slow_s = work_of(Path(disk.target)).seconds(delete=True)
        qemu_img("snapshot", "-c", "snap", disk.target)
        strategy = internal(disk)
        strategy.check_revert()
        assert took(strategy.revert) < slow_s / 2
        assert tags(disk) == ["snap", "snap.pre-revert"]
        qemu_img("check", "-q", disk.target)

    @pytest.fixture
    def slow_qemu_img(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A qemu-img that waits before its work until a file is there."""
        go_on, tools = tmp_path / "go on", tmp_path / "bin"
        tools.mkdir()
        real = "/usr/bin/qemu-img"
        text = f"#!/bin/sh\nwhile [ $1 = snapshot ] && ! [ -e '{go_on}' ]; do sleep 0.05; done\n"
        (tools / "qemu-img").write_text(f'{text}exec {real} "$@"\n')
        (tools / "qemu-img").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        monkeypatch.setattr(qemu, "TELL_EVERY_S", 0.1)
        return go_on

    def test_it_is_left_to_finish_and_that_is_said(self, disk: Disk, slow_qemu_img: Path) -> None:
        qemu_img_now("snapshot", "-c", "snap", disk.target)
        told: list[str] = []

        def waiting(what: str) -> None:
            told.append(what)
            if len(told) == 3:
                slow_qemu_img.touch()

        strategy = internal(disk, waiting=waiting)
        slow_qemu_img.touch()
        strategy.check_revert()
        slow_qemu_img.unlink()
        strategy.revert()
        assert told[:3] == ["qemu-img to keep the disk (xvda)"] * 3
        assert tags(disk) == ["snap", "snap.pre-revert"]

    def test_an_interrupt_is_raised_when_it_has_ended(
        self, disk: Disk, slow_qemu_img: Path
    ) -> None:
        def interrupt(_: str) -> None:
            threading.Timer(0.5, slow_qemu_img.touch).start()
            os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            inside.in_file(disk, "-c", "snap", interrupt)
        assert tags(disk) == ["snap"]

    def test_a_ctrl_c_of_the_terminal_does_not_reach_it(
        self, disk: Disk, slow_qemu_img: Path
    ) -> None:
        groups: list[int] = []

        def look(_: str) -> None:
            groups.extend(os.getpgid(pid) for pid in children())
            slow_qemu_img.touch()

        inside.in_file(disk, "-c", "snap", look)
        assert groups
        assert os.getpgrp() not in groups


def write_with_qemu_io(disk: Disk, pattern: int) -> None:
    command = ["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} 0 64k", disk.target]
    subprocess.run(command, check=True, capture_output=True)


def qemu_img_now(*arguments: str) -> None:
    os.spawnv(os.P_WAIT, "/usr/bin/qemu-img", ["qemu-img", *arguments])


def children() -> list[int]:
    task = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    pids = [int(pid) for pid in task.read_text().split()]
    return [pid for pid in pids if process_name(pid) == "qemu-img"]
