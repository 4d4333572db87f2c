"""Deleting snapshots of qcow2 disks, with a real QEMU; all that is left is compared afterwards."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pyxlsnap.cancel import Cancelled
from pyxlsnap.disks.qcow2 import stream
from pyxlsnap.disks.qcow2.qemu import GuestQemu
from pyxlsnap.disks.qcow2.qmp import QmpConnection
from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.disks.standing import backing_name
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import DiskError, PyxlsnapError, Refused
from pyxlsnap.model import Disk, DiskRequest
from tests.unit.support.chains import Chains
from tests.unit.support.qemu import DOMID, SIZE, Qemu, damage, qemu_img, tags, write
from tests.unit.support.unreadable import unreadable
from tests.unit.support.waiting import eventually


@pytest.fixture
def chains(disks: list[Disk], qemu: Qemu, tmp_path: Path) -> Chains:
    frozen = tmp_path / "frozen files"
    frozen.mkdir()
    return Chains(disks, qemu, frozen)


@pytest.fixture
def taken(chains: Chains) -> Chains:
    """Three snapshots, and a present that differs. The domain runs."""
    for number in (1, 2, 3):
        chains.write(number)
        chains.take(f"s{number}")
    chains.write(4)
    return chains


def delete(strategy: Qcow2, domid: int | None) -> list[str]:
    try:
        strategy.check_delete(domid)
        strategy.prepare_delete()
        return strategy.delete()
    finally:
        strategy.close()


def files(chains: Chains) -> set[Path]:
    top = chains.frozen.parent
    return {p for p in top.rglob("*") if p.is_file() and p.suffix != ".raw"}


@contextmanager
def _other_process(fd: int) -> Iterator[None]:
    """A process that has a file open."""
    process = subprocess.Popen(["sleep", "60"], pass_fds=[fd])
    try:
        yield
    finally:
        process.kill()
        process.wait()


ALL = {"s1": 1, "s2": 2, "s3": 3, "": 4}


def without(*names: str) -> dict[str, int]:
    return {name: last for name, last in ALL.items() if name not in names}


class TestFrozenWhileOff:
    @pytest.fixture
    def off(self, taken: Chains) -> Chains:
        taken.qemu.close()
        return taken

    @pytest.mark.parametrize("name", ["s1", "s2", "s3"])
    def test_any_of_three(self, off: Chains, name: str) -> None:
        gone = {off.frozen_file(disk, name) for disk in off.disks}
        before = files(off)
        assert delete(off.strategy(name), None) == [f"removed {path}" for path in sorted(gone)]
        assert before - files(off) == gone
        off.check(without(name))

    def test_all_of_them_and_each_twice(self, off: Chains) -> None:
        for number, name in enumerate(("s2", "s1", "s3")):
            assert len(delete(off.strategy(name), None)) == 2
            assert delete(off.strategy(name), None) == []
            off.check(without(*("s2", "s1", "s3")[: number + 1]))
        assert not list(off.frozen.glob("*.s?"))

    def test_after_a_revert_everything_that_stands_on_it_is_rebased(self, off: Chains) -> None:
        """The disk stands on s1, and so does s2."""
        off.revert("s1")
        strategy = off.strategy("s1")
        strategy.check_delete(None)
        assert len(strategy.prepare_delete()) == 4
        off.check({"s1": 1, "s2": 2, "s3": 3, "": 1})
        strategy.delete()
        off.check({"s2": 2, "s3": 3, "": 1})

    def test_what_stands_on_it_in_another_directory(self, off: Chains, tmp_path: Path) -> None:
        """The cfgfiles of the domain name the directory."""
        off.revert("s1")
        other = tmp_path / "other"
        other.mkdir()
        for disk in off.disks:
            second = off.frozen_file(disk, "s2")
            moved = other / second.name
            shutil.move(second, moved)
            third = str(off.frozen_file(disk, "s3"))
            qemu_img("rebase", "-u", "-f", "qcow2", "-b", str(moved), "-F", "qcow2", third)
        assert len(delete(off.strategy("s1", looks_in=(other,)), None)) == 2
        off.check({"s3": 3, "": 1})

    def test_on_a_base_whose_format_is_not_recorded(self, off: Chains, tmp_path: Path) -> None:
        for disk in off.disks:
            base = tmp_path / f"{disk.vdev}.base"
            base.write_bytes(bytes(SIZE))
            first = off.frozen_file(disk, "s1")
            first.chmod(0o600)
            qemu_img("rebase", "-u", "-f", "qcow2", "-b", str(base), "-F", "raw", str(first))
            data = first.read_bytes()
            first.write_bytes(data.replace(bytes.fromhex("e2792aca"), bytes.fromhex("00796173")))
        delete(off.strategy("s1"), None)
        off.check(without("s1"))
        for disk in off.disks:
            assert backing_name(off.frozen_file(disk, "s2")) == str(tmp_path / f"{disk.vdev}.base")

    def test_a_part_that_is_not_there_counts_as_deleted(self, off: Chains) -> None:
        off.revert("s2")
        off.frozen_file(off.disks[0], "s3").unlink()
        assert len(delete(off.strategy("s3"), None)) == 1
        off.check({"s1": 1, "s2": 2, "": 2})

    @pytest.mark.parametrize("after", ["", "check_delete", "prepare_delete"])
    def test_a_part_that_cannot_be_looked_at_does_not(
        self, off: Chains, monkeypatch: pytest.MonkeyPatch, after: str
    ) -> None:
        strategy, frozen = off.strategy("s3"), off.frozen_file(off.disks[0], "s3")
        if after:
            strategy.check_delete(None)
        if after == "prepare_delete":
            strategy.prepare_delete()
        with monkeypatch.context() as patch:
            unreadable(patch, frozen)
            with pytest.raises(PyxlsnapError, match="Input/output error"):
                delete(strategy, None) if not after else (
                    strategy.prepare_delete() if after == "check_delete" else strategy.delete()
                )
        strategy.close()
        assert frozen.exists()
        again = delete(off.strategy("s3"), None)
        assert f"removed {frozen}" in again
        off.check(without("s3"))

    def refusal(self, off: Chains, name: str = "s1") -> str:
        before = {path: path.read_bytes() for path in files(off)}
        strategy = off.strategy(name)
        with pytest.raises(Refused) as caught:
            strategy.check_delete(None)
        strategy.close()
        assert {path: path.read_bytes() for path in files(off)} == before
        return str(caught.value)

    def test_an_image_with_snapshots_inside_is_not_rebased(self, off: Chains) -> None:
        qemu_img("snapshot", "-c", "inside", off.disks[1].target)
        says = self.refusal(off, "s3")
        assert says.startswith(f"xvdb: {off.disks[1].target} stands on")
        assert "delete them first" in says

    def test_the_disk_itself_is_not_deleted(self, off: Chains) -> None:
        path = off.frozen_file(off.disks[0], "s1")
        path.unlink()
        os.link(off.disks[0].target, path)
        assert "is the disk itself" in self.refusal(off)

    def test_what_is_no_frozen_file_is_not_deleted(self, off: Chains) -> None:
        path = off.frozen_file(off.disks[0], "s3")
        off.revert("s1")
        path.unlink()
        path.write_text("precious")
        assert self.refusal(off, "s3").startswith("xvda: ")
        path.unlink()
        path.symlink_to(off.disks[1].target)
        assert "is no regular file" in self.refusal(off, "s3")

    def test_an_image_that_somebody_has_open(self, off: Chains) -> None:
        off.revert("s1")
        second = off.frozen_file(off.disks[0], "s2")
        with second.open("rb") as file, _other_process(file.fileno()):
            assert "xvda.s2 is in use by sleep" in self.refusal(off)

    def test_a_filesystem_without_room(self, off: Chains, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.statvfs(off.frozen)
        values = list(real)
        values[4] = 0  # f_bavail
        full = os.statvfs_result(values)
        monkeypatch.setattr(os, "statvfs", lambda _: full)
        assert "0 MiB left" in self.refusal(off)

    def test_a_running_domain_that_is_not_ours(self, taken: Chains) -> None:
        strategy = taken.strategy("s1")
        with pytest.raises(Refused, match=r"xvda: .* is in use by qemu-system"):
            strategy.check_delete(None)

    @pytest.mark.parametrize("nth", range(4))
    def test_a_rebase_that_fails_or_is_cancelled_loses_nothing(
        self, off: Chains, monkeypatch: pytest.MonkeyPatch, nth: int
    ) -> None:
        off.revert("s1")
        real, calls = subprocess.Popen, []

        def fails(command: list[str], **options: object) -> object:
            calls.extend([command] * ("rebase" in command))
            if len(calls) - 1 == nth and "rebase" in command:
                command = ["qemu-img", "rebase", "--nonsense"]
            return real(command, **options)  # type: ignore[call-overload]

        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", fails)
            strategy = off.strategy("s1")
            strategy.check_delete(None)
            with pytest.raises(DiskError, match=r"qemu-img rebase of .* failed"):
                strategy.prepare_delete()
        off.check({"s1": 1, "s2": 2, "s3": 3, "": 1})
        assert len(delete(off.strategy("s1"), None)) == 2
        off.check({"s2": 2, "s3": 3, "": 1})

    def test_one_that_is_cancelled_ends_qemu_img(self, off: Chains) -> None:
        def cancelled() -> None:
            raise Cancelled

        requests = [
            (d, DiskRequest(d.vdev, str(off.frozen_file(d, "s1")), "qcow2")) for d in off.disks
        ]
        strategy = Qcow2(requests, DiskTask("s1", check=cancelled))
        strategy.check_delete(None)
        with pytest.raises(Cancelled):
            strategy.prepare_delete()
        off.check(ALL)

    def test_nothing_is_deleted_that_something_stands_on(self, off: Chains) -> None:
        strategy = off.strategy("s1")
        strategy.check_delete(None)
        with pytest.raises(DiskError, match="stands on"):
            strategy.delete()
        off.check(ALL)


class TestFrozenWhileRunning:
    def test_the_newest_and_the_guest_writes_on(self, taken: Chains) -> None:
        assert len(delete(taken.strategy("s3"), DOMID)) == 2
        taken.write(5)
        taken.qemu.close()
        taken.check({"s1": 1, "s2": 2, "": 5})

    def test_the_oldest_though_qemu_knows_what_stands_on_it_by_a_name_of_the_past(
        self, taken: Chains
    ) -> None:
        before = files(taken)
        assert len(delete(taken.strategy("s1"), DOMID)) == 2
        assert before - files(taken) == {taken.frozen_file(d, "s1") for d in taken.disks}
        taken.write(5)
        taken.take("s5")
        taken.write(6)
        taken.qemu.close()
        taken.check({"s2": 2, "s3": 3, "s5": 5, "": 6})

    def test_one_in_the_middle_after_qemu_was_started_again(self, taken: Chains) -> None:
        taken.qemu.close()
        taken.qemu.start()
        taken.qemu.has_opened()
        assert len(delete(taken.strategy("s2"), DOMID)) == 2
        taken.write(5)
        taken.qemu.close()
        taken.check({"s1": 1, "s3": 3, "": 5})

    def test_all_of_them_one_after_the_other(self, taken: Chains) -> None:
        for name in ("s2", "s1", "s3"):
            assert len(delete(taken.strategy(name), DOMID)) == 2
        taken.qemu.close()
        taken.check({"": 4})
        assert not any(backing_name(Path(d.target)) for d in taken.disks)

    def test_a_file_that_qemu_knows_by_the_disks_name_is_not_written_to(
        self, chains: Chains
    ) -> None:
        """QEMU would open the overlay, which has that name now, and write into it."""
        chains.write(1)
        chains.take("s1")
        chains.qemu.close()
        chains.qemu.start()
        chains.write(2)
        chains.take("s2")
        chains.write(3)
        strategy = chains.strategy("s1")
        with pytest.raises(Refused, match=r"QEMU knows the file as .*: shut down the domain first"):
            strategy.check_delete(DOMID)
        strategy.close()
        chains.qemu.close()
        chains.check({"s1": 1, "s2": 2, "": 3})

    def test_what_qemu_has_not_open_is_rebased_by_qemu_img(self, taken: Chains) -> None:
        taken.qemu.close()
        taken.revert("s1")
        taken.qemu.start()
        taken.qemu.has_opened()
        assert len(delete(taken.strategy("s1"), DOMID)) == 2
        taken.qemu.close()
        taken.check({"s2": 2, "s3": 3, "": 1})

    def test_a_job_that_is_cancelled_loses_nothing(
        self, taken: Chains, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        strategy = taken.strategy("s1")
        strategy.check_delete(DOMID)
        real = stream._jobs
        calls: list[object] = []

        def first_cancelled(qemu: GuestQemu) -> list[str]:
            calls.append(qemu)
            if len(calls) == 1:
                raise Cancelled
            return real(qemu)

        monkeypatch.setattr(stream, "_jobs", first_cancelled)
        with pytest.raises(Cancelled):
            strategy.prepare_delete()
        strategy.close()
        assert not list(Path(taken.disks[0].target).parent.glob(".*.overlay"))
        taken.write(5)
        delete(taken.strategy("s1"), DOMID)
        taken.qemu.close()
        taken.check({"s2": 2, "s3": 3, "": 5})

    def test_the_second_name_that_a_killed_delete_has_left_is_removed(
        self, taken: Chains, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        strategy = taken.strategy("s1")
        strategy.check_delete(DOMID)
        disk = taken.disks[0]
        second = taken.frozen_file(disk, "s2")
        place = stream.find(strategy._qemu, disk, second, taken.frozen_file(disk, "s1"))
        assert place.name
        os.link(second, place.name)
        strategy.close()
        delete(taken.strategy("s1"), DOMID)
        assert not os.path.lexists(place.name)
        taken.qemu.close()
        taken.check({"s2": 2, "s3": 3, "": 4})


def test_a_domain_that_is_starting_and_has_not_opened_its_disks(chains: Chains) -> None:
    chains.write(1)
    chains.take("s1")
    chains.qemu.close()
    requests = [
        (d, DiskRequest(d.vdev, str(chains.frozen_file(d, "s1")), "qcow2")) for d in chains.disks
    ]
    strategy = Qcow2(requests, DiskTask("s1", attached=frozenset({"xvdb"})))
    with pytest.raises(Refused, match="xvdb: the domain has this disk, and its QEMU has not"):
        strategy.check_delete(DOMID)


class TestInside:
    @pytest.fixture
    def made(self, disks: list[Disk]) -> list[Disk]:
        for disk in disks:
            for number, name in ((1, "other"), (2, "snap")):
                write(disk, number)
                qemu_img("snapshot", "-c", name, disk.target)
            write(disk, 3)
        return disks

    def strategy(self, disks: list[Disk]) -> Qcow2:
        return Qcow2([(d, DiskRequest(d.vdev)) for d in disks], DiskTask("snap"))

    def test_while_off(self, made: list[Disk]) -> None:
        assert len(delete(self.strategy(made), None)) == 2
        assert delete(self.strategy(made), None) == []
        assert [tags(d) for d in made] == [["other"]] * 2

    def test_by_qemu_while_the_domain_runs(self, made: list[Disk], run_dir: Path) -> None:
        qemu = Qemu(run_dir, {d.vdev: d.target for d in made})
        qemu.has_opened()
        assert len(delete(self.strategy(made), DOMID)) == 2
        assert delete(self.strategy(made), DOMID) == []
        qemu.close()
        assert [tags(d) for d in made] == [["other"]] * 2
        for disk in made:
            qemu_img("check", "-q", disk.target)

    def test_an_image_that_somebody_else_has_open(self, made: list[Disk]) -> None:
        with (
            open(made[1].target, "rb") as file,
            _other_process(file.fileno()),
            pytest.raises(Refused, match=r"xvdb: .* is in use by sleep"),
        ):
            self.strategy(made).check_delete(None)
        assert [tags(d) for d in made] == [["other", "snap"]] * 2

    def test_two_of_the_same_name(self, made: list[Disk]) -> None:
        qemu_img("snapshot", "-c", "snap", made[0].target)
        with pytest.raises(Refused, match="has 2 disk snapshots named 'snap'"):
            self.strategy(made).check_delete(None)

    def test_an_image_that_qemu_does_not_open(self, made: list[Disk]) -> None:
        damage(made[1].target)
        with pytest.raises(Refused, match=r"xvdb: .*qemu-img info failed"):
            self.strategy(made).check_delete(None)
        assert tags(made[0]) == ["other", "snap"]

    def test_a_domain_that_was_started_meanwhile(self, made: list[Disk], run_dir: Path) -> None:
        strategy = self.strategy(made)
        strategy.check_delete(None)
        qemu = Qemu(run_dir, {d.vdev: d.target for d in made})
        qemu.has_opened()
        with pytest.raises(PyxlsnapError, match="was started or has ended meanwhile"):
            strategy.delete()
        qemu.close()
        assert [tags(d) for d in made] == [["other", "snap"]] * 2


def test_a_job_that_fails_loses_nothing(taken: Chains, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a filesystem that is full by now: QEMU tells it in an event, which nobody waits for."""
    execute = GuestQemu.execute

    def failing(self: GuestQemu, command: str, arguments: dict[str, object] | None = None) -> Any:
        return [] if command == "block-stream" else execute(self, command, arguments)

    strategy = taken.strategy("s1")
    strategy.check_delete(DOMID)
    with monkeypatch.context() as patch:
        patch.setattr(GuestQemu, "execute", failing)
        with pytest.raises(DiskError, match="xvda: the guest's QEMU could not copy the data of"):
            strategy.prepare_delete()
    strategy.close()
    taken.qemu.close()
    taken.check(ALL)


def test_a_job_that_a_killed_delete_has_left_is_waited_for_by_the_user(taken: Chains) -> None:
    """QEMU finishes it by itself; until then it can do nothing else with the disk."""
    own = QmpConnection(taken.qemu.own)
    strategy = taken.strategy("s3")
    strategy.check_delete(DOMID)
    node = strategy._qemu.node("xvda")
    strategy.close()
    slow: dict[str, object] = {"job-id": "xlsnap-left", "device": node, "speed": 1}
    own.execute("block-stream", slow)
    strategy = taken.strategy("s1")
    with pytest.raises(Refused, match=r"xvda, xvdb: the guest's QEMU still works .* was killed"):
        strategy.check_delete(DOMID)
    strategy.close()
    own.execute("block-job-set-speed", {"device": "xlsnap-left", "speed": 0})
    assert eventually(lambda: not own.execute("query-jobs"))
    own.close()
    for name in ("s1", "s2", "s3"):
        delete(taken.strategy(name), DOMID)
    taken.qemu.close()
    taken.check({"": 4})
