"""Internal qcow2 snapshots, with a real QEMU that has no machine: only disks and a monitor."""

import json
import os
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyxlsnap.disks import in_use
from pyxlsnap.disks.qcow2 import internal as internal_module
from pyxlsnap.disks.qcow2 import qmp
from pyxlsnap.disks.qcow2 import strategy as strategy_module
from pyxlsnap.disks.qcow2.inside import in_file
from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import AlreadyExists, DiskError, QmpError, Refused
from pyxlsnap.model import Disk, DiskRequest
from tests.unit.support.qemu import DOMID, VDEVS, Qemu, content, qemu_img, tags, write
from tests.unit.support.waiting import open_descriptors


def internal(
    disks: list[Disk],
    name: str,
    *,
    inactive: bool = False,
    finishes: Mapping[str, str] | None = None,
) -> Qcow2:
    """The strategy for disks whose snapshots stay inside."""
    task = DiskTask(name, inactive=inactive, finishes=finishes)
    return Qcow2([(d, DiskRequest(d.vdev)) for d in disks], task)


@pytest.fixture
def strategy(disks: list[Disk]) -> Iterator[Qcow2]:
    found = internal(disks, "snap")
    yield found
    found.close()


class TestCreate:
    def test_all_disks_have_the_snapshot(
        self, qemu: Qemu, strategy: Qcow2, disks: list[Disk]
    ) -> None:
        strategy.check_create(DOMID)
        assert [tags(d) for d in disks] == [[], []]
        strategy.create()
        assert [tags(d) for d in disks] == [["snap"], ["snap"]]
        assert strategy.vdevs == VDEVS

    def test_a_name_taken_beforehand_is_refused(
        self, qemu: Qemu, strategy: Qcow2, disks: list[Disk]
    ) -> None:
        strategy.check_create(DOMID)
        strategy.create()
        strategy.close()
        again = internal(disks, "snap")
        with pytest.raises(AlreadyExists, match="xvda has a disk snapshot 'snap' already") as e:
            again.check_create(DOMID)
        again.close()
        assert e.value.where == "xvda"

    def test_a_name_taken_meanwhile_in_the_second_disk_makes_none(
        self, qemu: Qemu, strategy: Qcow2, disks: list[Disk]
    ) -> None:
        strategy.check_create(DOMID)
        self.somebody_takes(strategy, "xvdb-qcow2")
        with pytest.raises(QmpError) as caught:
            strategy.create()
        assert caught.value.refused
        assert strategy.undo_create() == []
        assert [tags(d) for d in disks] == [[], ["snap"]]

    def somebody_takes(self, strategy: Qcow2, node: str) -> None:
        """Over the same monitor, for it serves one client at a time."""
        arguments: dict[str, object] = {"device": node, "name": "snap"}
        strategy._qemu.execute("blockdev-snapshot-internal-sync", arguments)

    def test_undo_removes_what_was_made_and_nothing_else(
        self, qemu: Qemu, strategy: Qcow2, disks: list[Disk]
    ) -> None:
        other = internal(disks, "older")
        other.check_create(DOMID)
        other.create()
        other.close()
        strategy.check_create(DOMID)
        strategy.create()
        assert len(strategy.undo_create()) == 2
        assert [tags(d) for d in disks] == [["older"], ["older"]]
        assert strategy.undo_create() == []

    def test_undo_before_create_does_nothing(self, qemu: Qemu, strategy: Qcow2) -> None:
        strategy.check_create(DOMID)
        assert strategy.undo_create() == []

    def test_another_process_takes_back_what_was_made(
        self, qemu: Qemu, strategy: Qcow2, disks: list[Disk]
    ) -> None:
        began = time.time()
        strategy.check_create(DOMID)
        strategy.create()
        strategy.close()
        heir = internal(disks, "snap")
        heir.adopt_create(DOMID, began=began, state={})
        assert len(heir.undo_create()) == 2
        heir.close()
        assert [tags(d) for d in disks] == [[], []]

    @pytest.mark.parametrize("starts", [True, False])
    def test_no_image_is_changed_while_xl_may_open_it(
        self, qemu: Qemu, disks: list[Disk], starts: bool
    ) -> None:
        """QEMU ends in the undo: the guest reboots, and xl starts another one in two seconds."""
        task = DiskTask("snap", may_start=lambda: starts)
        strategy = Qcow2([(d, DiskRequest(d.vdev)) for d in disks], task)
        strategy.check_create(DOMID)
        strategy.create()
        qemu.close()
        if starts:
            with pytest.raises(DiskError, match="may be left: the guest is just being started"):
                strategy.undo_create()
        else:
            assert len(strategy.undo_create()) == 2
        strategy.close()
        assert [tags(d) for d in disks] == [["snap"] * starts] * 2

    @pytest.fixture
    def boots(
        self, run_dir: Path, disks: list[Disk], monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[list[Qemu]]:
        """Disks with snapshots, and the QEMU of a guest that boots again: it has a disk twice."""
        monkeypatch.setattr(strategy_module, "_BOOTS_POLL_S", 0.01)
        first = Qemu(run_dir, {d.vdev: d.target for d in disks})
        taken = internal(disks, "snap")
        taken.check_create(DOMID)
        taken.create()
        taken.close()
        first.close()
        link = run_dir / "link.qcow2"
        link.symlink_to(disks[0].target)
        qemus = [Qemu(run_dir, {**{d.vdev: d.target for d in disks}, "ide0": str(link)})]
        yield qemus
        qemus.pop().close()

    def test_a_guest_that_was_started_anew_boots_first(
        self, run_dir: Path, disks: list[Disk], boots: list[Qemu]
    ) -> None:
        told: list[str] = []

        def unplugs_late(what: str) -> None:
            told.append(what)
            if len(told) == 3:
                boots.pop().close()
                boots.append(Qemu(run_dir, {d.vdev: d.target for d in disks}))

        attached = frozenset(d.vdev for d in disks)
        task = DiskTask("snap", started_anew=True, attached=attached, waiting=unplugs_late)
        heir = Qcow2([(d, DiskRequest(d.vdev)) for d in disks], task)
        heir.adopt_create(DOMID, began=0.0, state={})
        assert len(heir.undo_create()) == 2
        heir.close()
        assert told == ["the guest to load its PV drivers"] * 3
        assert [tags(d) for d in disks] == [[], []]

    @pytest.mark.parametrize(("anew", "gone"), [(True, True), (False, False)])
    def test_a_guest_that_does_not_boot_is_not_waited_for(
        self, disks: list[Disk], boots: list[Qemu], anew: bool, gone: bool
    ) -> None:
        attached = frozenset(d.vdev for d in disks)
        task = DiskTask("snap", started_anew=anew, attached=attached, gone=lambda: gone)
        heir = Qcow2([(d, DiskRequest(d.vdev)) for d in disks], task)
        with pytest.raises(Refused, match="open twice"):
            heir.adopt_create(DOMID, began=0.0, state={})
        heir.close()
        assert boots

    def test_another_process_leaves_what_is_older(
        self, qemu: Qemu, strategy: Qcow2, disks: list[Disk]
    ) -> None:
        strategy.check_create(DOMID)
        strategy.create()
        strategy.close()
        heir = internal(disks, "snap")
        heir.adopt_create(DOMID, began=time.time() + 60, state={})
        assert heir.undo_create() == []
        heir.close()
        assert [tags(d) for d in disks] == [["snap"], ["snap"]]

    def test_the_commands_to_delete_it_delete_it(
        self, qemu: Qemu, strategy: Qcow2, disks: list[Disk]
    ) -> None:
        strategy.check_create(DOMID)
        strategy.create()
        artefacts = strategy.artefacts("vm1")
        strategy.close()
        assert [a.kind for a in artefacts] == ["disk snapshot"] * 2
        qemu.close()
        for disk, artefact in zip(disks, artefacts, strict=True):
            assert disk.target in artefact.where
            command = artefact.delete.partition("domain off: ")[2]
            subprocess.run(shlex.split(command), check=True)
        assert [tags(d) for d in disks] == [[], []]

    def test_the_command_for_a_running_domain_names_the_node(
        self, qemu: Qemu, strategy: Qcow2
    ) -> None:
        strategy.check_create(DOMID)
        first = strategy.artefacts("vm1")[0].delete
        running = first.partition("domain running: ")[2].partition("; domain off")[0]
        command = "snapshot_delete_blkdev_internal xvda-qcow2 snap"
        assert shlex.split(running) == ["xl", "qemu-monitor-command", "vm1", command]

    def test_nodes_are_made_active_first_where_they_may_not_be(
        self, qemu: Qemu, disks: list[Disk]
    ) -> None:
        inactive = internal(disks, "snap", inactive=True)
        inactive.check_create(DOMID)
        inactive.create()
        inactive.close()
        assert [tags(d) for d in disks] == [["snap"], ["snap"]]


class TestRefused:
    def refusal(self, strategy: Qcow2) -> str:
        before = open_descriptors()
        with pytest.raises(Refused) as caught:
            strategy.check_create(DOMID)
        strategy.close()
        assert open_descriptors() == before
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_no_qemu(self, strategy: Qcow2) -> None:
        assert "xvda, xvdb: cannot talk to the guest's QEMU" in self.refusal(strategy)

    def test_a_monitor_that_nobody_listens_at(self, run_dir: Path, strategy: Qcow2) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(run_dir / f"qmp-libxenstat-{DOMID}"))
        assert "cannot talk to the guest's QEMU" in self.refusal(strategy)

    def test_a_monitor_that_another_program_holds(
        self,
        qemu: Qemu,
        disks: list[Disk],
        strategy: Qcow2,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        holder = internal(disks, "other")
        holder.check_create(DOMID)
        monkeypatch.setattr(qmp.QmpConnection.__init__, "__kwdefaults__", {"timeout_s": 0.3})
        start = time.monotonic()
        assert "is another program (xentop?) connected" in self.refusal(strategy)
        assert time.monotonic() - start < 5
        holder.close()

    def test_a_server_that_never_greets(
        self, run_dir: Path, strategy: Qcow2, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(qmp.QmpConnection.__init__, "__kwdefaults__", {"timeout_s": 0.3})
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(run_dir / f"qmp-libxenstat-{DOMID}"))
            server.listen()
            start = time.monotonic()
            assert "within 0.3 s" in self.refusal(strategy)
            assert time.monotonic() - start < 5

    def test_a_server_that_is_no_qemu(self, run_dir: Path, strategy: Qcow2) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(run_dir / f"qmp-libxenstat-{DOMID}"))
            server.listen()

            def answer() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"220 mail.example.org ESMTP\r\n")

            thread = threading.Thread(target=answer)
            thread.start()
            with pytest.raises(Refused, match="cannot talk"):
                strategy.check_create(DOMID)
            thread.join()

    def test_a_disk_that_qemu_does_not_have(self, run_dir: Path, disks: list[Disk]) -> None:
        qemu = Qemu(run_dir, {"xvda": disks[0].target})
        says = self.refusal(internal(disks, "snap"))
        qemu.close()
        assert says.startswith(f"xvdb: the guest's QEMU does not have {disks[1].target} open: ")

    def test_a_disk_that_is_open_twice(self, run_dir: Path, disks: list[Disk]) -> None:
        target = disks[0].target
        link = run_dir / "link.qcow2"
        link.symlink_to(target)
        qemu = Qemu(run_dir, {"xvda": target, "ide0": str(link), "xvdb": disks[1].target})
        says = self.refusal(internal(disks, "snap"))
        qemu.close()
        assert f"xvda: {target} is open twice" in says
        assert "load the PV drivers" in says


def test_a_command_that_is_not_answered_is_time_limited(run_dir: Path) -> None:
    path = run_dir / "monitor"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        ended = threading.Event()

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
                asked = json.loads(connection.recv(4096))
                connection.sendall(json.dumps({"return": {}, "id": asked["id"]}).encode() + b"\n")
                ended.wait(10)

        thread = threading.Thread(target=greet)
        thread.start()
        connection = qmp.QmpConnection(path)
        with pytest.raises(QmpError, match=r"did not answer query-x on .* within 0\.2 s") as e:
            connection.execute("query-x", timeout_s=0.2)
        assert (e.value.command, e.value.refused) == ("query-x", False)
        ended.set()
        connection.close()
        connection.close()
        thread.join()


class TestRevert:
    """The domain and its QEMU are gone."""

    @pytest.fixture
    def taken(self, run_dir: Path, disks: list[Disk]) -> list[Disk]:
        qemu = Qemu(run_dir, {d.vdev: d.target for d in disks})
        strategy = internal(disks, "snap")
        strategy.check_create(DOMID)
        strategy.create()
        strategy.close()
        qemu.close()
        for disk in disks:
            write(disk, 2)
        return disks

    def test_puts_the_content_back(self, taken: list[Disk], strategy: Qcow2) -> None:
        assert [content(d) for d in taken] == [2, 2]
        strategy.check_revert()
        strategy.revert()
        assert [content(d) for d in taken] == [1, 1]
        assert [tags(d) for d in taken] == [["snap", "snap.pre-revert"]] * 2

    def test_two_images_are_put_back_at_the_same_time(
        self, taken: list[Disk], strategy: Qcow2, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """qemu-img keeps the one, and applies its snapshot, while it does so with the other."""
        both = threading.Barrier(2, timeout=60)
        met: list[str] = []

        def meeting(disk: Disk, option: str, *more: Any) -> None:
            both.wait()
            met.append(f"{option} {disk.vdev}")
            in_file(disk, option, *more)

        monkeypatch.setattr(internal_module, "in_file", meeting)
        strategy.check_revert()
        strategy.revert()
        assert sorted(met) == ["-a xvda", "-a xvdb", "-c xvda", "-c xvdb"]
        assert [content(d) for d in taken] == [1, 1]

    @pytest.mark.parametrize(("count", "fits"), [(1, True), (2, False)])
    def test_what_the_disks_write_is_summed(
        self, taken: list[Disk], count: int, fits: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else the second qemu-img would find no room, after the destroy."""

        class Filesystem:
            f_bavail, f_frsize, f_flag = 100, 1 << 20, 0

        monkeypatch.setattr(internal_module, "refuse_inapplicable", lambda *_: 60 << 20)
        monkeypatch.setattr(os, "statvfs", lambda _: Filesystem)
        strategy = internal(taken[:count], "snap")
        if fits:
            strategy.check_revert()
            strategy.check_revert()  # as the last look does
        else:
            with pytest.raises(Refused, match=r"^xvdb: .* has 40960 KiB left, and .* 61 MiB"):
                strategy.check_revert()
        strategy.close()

    def test_can_be_run_again(self, taken: list[Disk], strategy: Qcow2) -> None:
        strategy.revert()
        strategy.check_revert()
        strategy.revert()
        assert [content(d) for d in taken] == [1, 1]
        qemu_img("snapshot", "-a", "snap.pre-revert", taken[0].target)
        assert content(taken[0]) == 2  # what was there before the first one is kept

    def test_what_was_kept_is_removed_at_the_end(
        self, run_dir: Path, taken: list[Disk], strategy: Qcow2
    ) -> None:
        strategy.revert()
        qemu = Qemu(run_dir, {d.vdev: d.target for d in taken})
        assert strategy.finish_revert(DOMID) == []
        strategy.close()
        qemu.close()
        assert [tags(d) for d in taken] == [["snap"], ["snap"]]
        assert [content(d) for d in taken] == [1, 1]

    def test_what_cannot_be_removed_is_told(self, taken: list[Disk], strategy: Qcow2) -> None:
        strategy.revert()
        (line,) = strategy.finish_revert(DOMID)
        assert "the kept disk snapshots in xvda, xvdb (the disks before the revert)" in line

    def test_the_next_revert_removes_what_could_not_be_removed(self, taken: list[Disk]) -> None:
        """As after each revert of an HVM guest that stays paused: its QEMU has the disks twice."""
        for number in (2, 3, 4):
            for disk in taken:
                write(disk, number)
            strategy = internal(taken, "snap")
            strategy.check_revert()
            strategy.revert()
            (line,) = strategy.finish_revert(DOMID)
            assert line.endswith("; the next revert of these disks deletes them")
            assert [content(d) for d in taken] == [1, 1]
            assert [tags(d) for d in taken] == [["snap", "snap.pre-revert"]] * 2
        qemu_img("snapshot", "-a", "snap.pre-revert", taken[0].target)
        assert content(taken[0]) == 4  # that of the last revert

    def test_another_tag_is_not_taken_for_one_that_was_left(
        self, taken: list[Disk], strategy: Qcow2
    ) -> None:
        strategy.revert()
        strategy.finish_revert(DOMID)
        qemu_img("snapshot", "-d", "snap.pre-revert", taken[1].target)
        time.sleep(1.1)  # (qemu-img dates tags by the second)
        qemu_img("snapshot", "-c", "snap.pre-revert", taken[1].target)
        again = internal(taken, "snap")
        with pytest.raises(Refused, match=r"xvdb: .*'snap\.pre-revert'"):
            again.check_revert()

    def test_each_disk_loses_what_was_kept_of_it(
        self, run_dir: Path, taken: list[Disk], strategy: Qcow2
    ) -> None:
        """The run before this one was stopped when it had done the first disk."""
        strategy.revert()
        qemu_img("snapshot", "-d", "snap.pre-revert", taken[0].target)
        qemu = Qemu(run_dir, {d.vdev: d.target for d in taken})
        assert strategy.finish_revert(DOMID) == []
        strategy.close()
        qemu.close()
        assert [tags(d) for d in taken] == [["snap"], ["snap"]]

    def test_one_that_cannot_be_removed_does_not_keep_the_other(
        self,
        run_dir: Path,
        taken: list[Disk],
        strategy: Qcow2,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        strategy.revert()
        execute = qmp.QmpConnection.execute

        def not_of_the_first(
            connection: qmp.QmpConnection, command: str, arguments: Any = None, **words: Any
        ) -> Any:
            if arguments and arguments.get("device") == "xvda-qcow2":
                raise QmpError("no", command=command, refused=True)
            return execute(connection, command, arguments, **words)

        monkeypatch.setattr(qmp.QmpConnection, "execute", not_of_the_first)
        qemu = Qemu(run_dir, {d.vdev: d.target for d in taken})
        (line,) = strategy.finish_revert(DOMID)
        strategy.close()
        qemu.close()
        assert taken[0].target in line
        assert taken[1].target not in line
        assert [tags(d) for d in taken] == [["snap", "snap.pre-revert"], ["snap"]]

    def test_a_tag_that_is_not_ours_is_refused_beforehand_and_stays(
        self, run_dir: Path, taken: list[Disk]
    ) -> None:
        """An earlier revert left it, or it is the user's: the present would not be kept."""
        qemu_img("snapshot", "-c", "snap.pre-revert", taken[1].target)
        old = {f"{d.vdev} kept": str(time.time() + 60) for d in taken}
        for finishes in (None, {}, old):
            strategy = internal(taken, "snap", finishes=finishes)
            with pytest.raises(Refused, match=r"xvdb: .*'snap\.pre-revert'.* qemu-img snapshot -d"):
                strategy.check_revert()
            with pytest.raises(DiskError, match=r"xvdb: .*'snap\.pre-revert'"):
                strategy.revert()
        assert [content(d) for d in taken] == [2, 2]
        qemu = Qemu(run_dir, {d.vdev: d.target for d in taken})
        (line,) = strategy.finish_revert(DOMID)
        strategy.close()
        qemu.close()
        assert "this revert did not make it" in line
        assert tags(taken[1]) == ["snap", "snap.pre-revert"]

    def test_the_run_that_finishes_a_killed_one_knows_what_that_kept(
        self, run_dir: Path, taken: list[Disk]
    ) -> None:
        killed = internal(taken, "snap")
        killed.check_revert()
        killed.revert()
        for disk in taken:
            write(disk, 3)
        strategy = internal(taken, "snap", finishes=killed.state())
        strategy.check_revert()
        strategy.revert()
        assert [content(d) for d in taken] == [1, 1]
        qemu = Qemu(run_dir, {d.vdev: d.target for d in taken})
        assert strategy.finish_revert(DOMID) == []
        strategy.close()
        qemu.close()
        assert [tags(d) for d in taken] == [["snap"], ["snap"]]

    def test_a_missing_snapshot_is_refused(self, taken: list[Disk]) -> None:
        qemu_img("snapshot", "-d", "snap", taken[1].target)
        with pytest.raises(Refused, match=r"xvdb: .* has no disk snapshot 'snap'"):
            internal(taken, "snap").check_revert()

    def test_two_of_that_name_are_refused(self, taken: list[Disk]) -> None:
        qemu_img("snapshot", "-c", "snap", taken[1].target)
        with pytest.raises(Refused, match="has 2 disk snapshots named 'snap'"):
            internal(taken, "snap").check_revert()

    def test_an_image_that_cannot_be_read_is_named(self, taken: list[Disk]) -> None:
        Path(taken[0].target).write_bytes(b"x" * 4096)
        with pytest.raises(Refused, match="xvda: qemu-img info failed: "):
            internal(taken, "snap").check_revert()

    def test_a_missing_qemu_img_is_said(
        self, taken: list[Disk], strategy: Qcow2, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "/nonexistent")
        with pytest.raises(Refused, match="install qemu-utils"):
            strategy.check_revert()

    def test_an_image_that_a_process_has_open_is_not_written(
        self,
        run_dir: Path,
        taken: list[Disk],
        strategy: Qcow2,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(in_use, "_UNUSED_S", 0.3)
        qemu = Qemu(run_dir, {"xvdb": taken[1].target})
        qemu.has_opened()
        with pytest.raises(DiskError) as caught:
            strategy.revert()
        qemu.close()
        says = str(caught.value)
        assert says.startswith(f"xvdb: {taken[1].target} is still in use by qemu-system-x86")
        assert f"(pid {qemu.pid})" in says
        assert "run the command again" in says
        assert "\n" not in says
        assert [content(d) for d in taken] == [2, 2]
        assert [tags(d) for d in taken] == [["snap"], ["snap"]]

    def test_a_link_to_an_image_is_no_way_round(
        self, run_dir: Path, taken: list[Disk], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(in_use, "_UNUSED_S", 0.0)
        link = run_dir / "link.qcow2"
        link.symlink_to(taken[0].target)
        by_link = internal([replace(taken[0], target=str(link))], "snap")
        qemu = Qemu(run_dir, {"xvda": taken[0].target})
        qemu.has_opened()
        with pytest.raises(DiskError, match=f"xvda: {link} is still in use by"):
            by_link.revert()
        qemu.close()
        by_link.revert()
        assert content(taken[0]) == 1

    def test_a_qemu_that_is_about_to_end_is_waited_for(
        self, run_dir: Path, taken: list[Disk], strategy: Qcow2
    ) -> None:
        qemu = Qemu(run_dir, {d.vdev: d.target for d in taken})
        qemu.has_opened()
        ends = threading.Timer(0.5, qemu.close)
        ends.start()
        strategy.revert()
        ends.join()
        assert [content(d) for d in taken] == [1, 1]

    def test_what_this_process_has_open_is_no_obstacle(
        self, taken: list[Disk], strategy: Qcow2
    ) -> None:
        with Path(taken[0].target).open("rb"):
            strategy.revert()
        assert [content(d) for d in taken] == [1, 1]

    def test_an_image_that_has_gone_is_named(self, taken: list[Disk], strategy: Qcow2) -> None:
        Path(taken[1].target).unlink()
        with pytest.raises(DiskError, match=r"xvdb: .*xvdb disk.qcow2: No such file"):
            strategy.revert()
        assert content(taken[0]) == 2
