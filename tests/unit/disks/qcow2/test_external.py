"""External qcow2 snapshots, the frozen-base chain, with a real QEMU that reads and writes."""

import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pyxlsnap.disks import in_use
from pyxlsnap.disks.qcow2 import chain
from pyxlsnap.disks.qcow2.strategy import Qcow2, _Outcome
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import AlreadyExists, DiskError, QmpError, Refused
from pyxlsnap.model import Disk, DiskRequest
from tests.unit.support.chains import take
from tests.unit.support.qemu import DOMID, SIZE, VDEVS, Qemu, content, qemu_img, tags
from tests.unit.support.unreadable import unreadable


def external(
    disks: list[Disk],
    name: str,
    directory: Path,
    **task: Any,
) -> Qcow2:
    paths = {d.vdev: str(directory / f"{d.vdev}.{name}") for d in disks}
    requests = [(d, DiskRequest(d.vdev, paths[d.vdev], "qcow2")) for d in disks]
    return Qcow2(requests, DiskTask(name, **task))


def backing(path: str | Path) -> str:
    info = json.loads(qemu_img("info", "-U", "--output=json", str(path)))
    return str(info.get("full-backing-filename", ""))


@dataclass
class Case:
    """Two disks in a QEMU, and a directory for what is frozen."""

    disks: list[Disk]
    qemu: Qemu
    frozen: Path
    open: list[Qcow2] = field(default_factory=list)

    def strategy(self, name: str = "snap", **task: Any) -> Qcow2:
        found = external(self.disks, name, self.frozen, **task)
        self.open.append(found)
        return found

    def take(self, name: str) -> Qcow2:
        return take(self.strategy(name))

    def write(self, pattern: int) -> None:
        """As the guest would: through QEMU."""
        for disk in self.disks:
            self.qemu.write(disk.vdev, pattern)

    def chain(self, disk: Disk) -> list[Path]:
        """The frozen files of three snapshots."""
        return [self.frozen / f"{disk.vdev}.s{n}" for n in (1, 2, 3)]

    def opened(self) -> set[int]:
        """The inodes that QEMU has open."""
        links = Path(f"/proc/{self.qemu.pid}/fd").iterdir()
        return {link.stat().st_ino for link in links if link.exists()}

    def leftovers(self) -> list[Path]:
        """What is only there while an operation is under way."""
        return [p for p in self.files() if p.suffix in (".overlay", ".probe", ".pre-revert")]

    def files(self) -> set[Path]:
        top = self.frozen.parent
        return {p for p in top.rglob("*") if not p.is_dir() and not p.is_socket()}


@pytest.fixture
def case(disks: list[Disk], qemu: Qemu, tmp_path: Path) -> Iterator[Case]:
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    found = Case(disks, qemu, frozen)
    yield found
    for strategy in found.open:
        strategy.close()


class TestCreate:
    def test_three_in_a_row_stand_on_each_other_and_qemu_has_the_right_files(
        self, case: Case
    ) -> None:
        """A node that was reopened by a name that leads elsewhere reads another file's data."""
        for number in (1, 2, 3):
            case.write(number)
            case.take(f"s{number}")
        case.write(4)
        for disk in case.disks:
            frozen = case.chain(disk)
            assert {p.stat().st_ino for p in frozen} <= case.opened()
            assert Path(disk.target).stat().st_ino in case.opened()
            assert [backing(p) for p in frozen] == ["", str(frozen[0]), str(frozen[1])]
            assert backing(disk.target) == str(frozen[2])
        case.qemu.close()
        for disk in case.disks:
            assert [content(Disk("x", str(p), "qcow2")) for p in case.chain(disk)] == [1, 2, 3]
            assert content(disk) == 4
            qemu_img("check", "-q", disk.target)

    def test_the_frozen_file_is_read_only_and_the_disk_is_as_it_was(self, case: Case) -> None:
        for disk in case.disks:
            Path(disk.target).chmod(0o640)
            os.chown(disk.target, 12, 34)
            os.setxattr(disk.target, "user.mark", b"x")
        case.take("snap")
        for disk in case.disks:
            now, frozen = Path(disk.target).stat(), (case.frozen / f"{disk.vdev}.snap").stat()
            assert (stat.S_IMODE(now.st_mode), now.st_uid, now.st_gid) == (0o640, 12, 34)
            assert os.getxattr(disk.target, "user.mark") == b"x"
            assert stat.S_IMODE(frozen.st_mode) == 0o440

    def test_a_disk_behind_a_link_stays_behind_it(self, case: Case, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(case.disks[0].target)
        real = case.disks[0].target
        case.disks[0] = Disk("xvda", str(link), "qcow2")
        case.take("snap")
        assert link.is_symlink()
        assert backing(real) == str(case.frozen / "xvda.snap")

    def test_what_the_switch_needs_is_durable_before_it(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a power cut the names in both directories are there, and the overlay is whole."""
        fsync, synced = os.fsync, []

        def noted(fd: int) -> None:
            synced.append(Path(f"/proc/self/fd/{fd}").readlink())
            fsync(fd)

        strategy = case.strategy()
        strategy.check_create(DOMID)
        monkeypatch.setattr(os, "fsync", noted)
        strategy.prepare()
        assert {case.frozen, Path(case.disks[0].target).parent} <= set(synced)
        assert [p.suffix for p in synced].count(".overlay") == len(case.disks)
        strategy.undo_create()

    def test_a_link_in_the_place_of_a_new_overlay_is_not_followed(
        self, case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """By a user, in a directory of the user's own."""
        victim = tmp_path / "victim"
        victim.write_text("of root")
        run: Callable[..., str] = vars(chain)["qemu_img"]

        def slow(disk: Disk, *arguments: str) -> str:
            if arguments[0] == "create":
                [overlay] = [p for p in case.leftovers() if p.suffix == ".overlay"]
                overlay.unlink()
                overlay.symlink_to(victim)
            return run(disk, *arguments)

        monkeypatch.setattr(chain, "qemu_img", slow)
        strategy = case.strategy()
        strategy.check_create(DOMID)
        with pytest.raises(DiskError, match=r"another process replaced .*overlay"):
            strategy.prepare()
        assert victim.read_text() == "of root"
        strategy.undo_create()
        assert victim.read_text() == "of root"

    def test_a_link_in_the_place_of_the_frozen_file_is_not_followed(
        self, case: Case, tmp_path: Path
    ) -> None:
        victim = tmp_path / "victim"
        victim.touch(0o644)
        strategy = case.strategy()
        strategy.check_create(DOMID)
        strategy.prepare()
        strategy.create()
        frozen = case.frozen / f"{case.disks[0].vdev}.snap"
        frozen.unlink()
        frozen.symlink_to(victim)
        with pytest.raises(DiskError, match=f"{frozen}: "):
            strategy.finish_create()
        assert stat.S_IMODE(victim.stat().st_mode) == 0o644

    def test_with_an_internal_one_in_the_same_transaction(self, case: Case) -> None:
        a, b = case.disks
        strategy = Qcow2(
            [(a, DiskRequest("xvda")), (b, DiskRequest("xvdb", str(case.frozen / "b"), "qcow2"))],
            DiskTask("snap"),
        )
        case.open.append(strategy)
        strategy.check_create(DOMID)
        strategy.prepare()
        strategy.create()
        assert tags(a) == ["snap"]
        assert backing(b.target) == str(case.frozen / "b")

    def test_it_tells_how_to_delete_it_and_that_is_right(self, case: Case) -> None:
        case.write(1)
        case.take("s1")
        case.write(2)
        strategy = case.take("s2")
        artefact = strategy.artefacts("vm1")[0]
        assert "3 files deep" in artefact.where
        assert (artefact.vdev, artefact.chain_depth) == ("xvda", 3)
        assert "never just rm it" in artefact.where
        case.qemu.close()
        command = artefact.delete.rpartition("domain off: ")[2]
        subprocess.run(command, shell=True, check=True, capture_output=True)
        disk = case.disks[0]
        assert backing(disk.target) == str(case.frozen / "xvda.s1")
        assert not (case.frozen / "xvda.s2").exists()
        assert content(disk) == 2

    def test_a_disk_on_a_base_of_another_format(self, case: Case, tmp_path: Path) -> None:
        case.qemu.close()
        base = tmp_path / "base.raw"
        base.write_bytes(b"\7" * SIZE)
        for disk in case.disks:
            qemu_img(
                "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", disk.target, str(SIZE)
            )
        case.qemu.start()
        artefact = case.take("s1").artefacts("vm1")[0]
        assert "3 files deep" in artefact.where
        assert (artefact.vdev, artefact.chain_depth) == ("xvda", 3)
        case.qemu.close()
        command = artefact.delete.rpartition("domain off: ")[2]
        subprocess.run(command, shell=True, check=True, capture_output=True)
        assert backing(case.disks[0].target) == str(base)
        assert content(case.disks[0]) == 7


class TestUndo:
    def test_of_what_was_prepared_leaves_nothing(self, case: Case) -> None:
        before = case.files()
        strategy = case.strategy()
        strategy.check_create(DOMID)
        assert case.files() == before
        strategy.prepare()
        assert len(strategy.undo_create()) == 4
        assert case.files() == before
        assert strategy.undo_create() == []

    @pytest.mark.parametrize("outcome", [_Outcome.NOTHING, _Outcome.UNKNOWN])
    def test_an_overlay_that_cannot_be_looked_at_does_not_keep_the_guest_suspended(
        self, case: Case, monkeypatch: pytest.MonkeyPatch, outcome: _Outcome
    ) -> None:
        """QEMU was never told of it; perhaps of disk snapshots inside, and it has not answered."""
        before = case.files()
        strategy = case.strategy()
        strategy.check_create(DOMID)
        strategy.prepare()
        with monkeypatch.context() as patch:
            unreadable(patch, strategy.state()["xvdb overlay"])
            patch.setattr(strategy, "_outcome", outcome)
            strategy.settle()
            with pytest.raises(DiskError, match="Input/output error"):
                strategy.undo_create()
        strategy.undo_create()
        assert case.files() == before

    def test_of_a_transaction_that_qemu_refused_leaves_nothing(self, case: Case) -> None:
        before = case.files()
        strategy = case.strategy()
        strategy.check_create(DOMID)
        strategy.prepare()
        overlay = Path(strategy.state()["xvdb overlay"])
        whole = overlay.read_bytes()
        overlay.write_bytes(b"x" * 512)
        with pytest.raises(QmpError):
            strategy.create()
        overlay.write_bytes(whole)
        strategy.settle()
        strategy.undo_create()
        assert case.files() == before
        case.write(5)
        case.qemu.close()
        assert [content(d) for d in case.disks] == [5, 5]

    def test_of_a_finished_one_says_what_stands_and_touches_nothing(self, case: Case) -> None:
        strategy = case.take("snap")
        before = case.files()
        with pytest.raises(DiskError, match=r"stands on .* now, and is whole; to undo that"):
            strategy.undo_create()
        assert case.files() == before

    def test_of_a_switch_that_was_cut_off_protects_what_stands(self, case: Case) -> None:
        strategy = case.strategy()
        strategy.check_create(DOMID)
        strategy.prepare()
        strategy.create()
        with pytest.raises(DiskError, match="stands on"):
            strategy.undo_create()
        for vdev in VDEVS:
            assert not stat.S_IMODE((case.frozen / f"{vdev}.snap").stat().st_mode) & 0o222

    def test_somebody_elses_file_at_the_external_path_stays(self, case: Case) -> None:
        strategy = case.strategy()
        strategy.check_create(DOMID)
        other = case.frozen / "xvdb.snap"
        other.write_text("precious")
        with pytest.raises(AlreadyExists):
            strategy.prepare()
        strategy.undo_create()
        assert other.read_text() == "precious"
        assert not (case.frozen / "xvda.snap").exists()


class TestSettle:
    """Killed between QEMU's switch and the rename: the guest must not run before the rename."""

    @pytest.fixture
    def cut_off(self, case: Case, monkeypatch: pytest.MonkeyPatch) -> Qcow2:
        """The second disk's rename did not take place."""
        strategy = case.strategy()
        strategy.check_create(DOMID)
        strategy.prepare()
        rename = os.rename

        def fails(old: Path, new: Path) -> None:
            if "xvdb" in str(new):
                raise OSError(5, "Input/output error", str(new))
            rename(old, new)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", fails)
            with pytest.raises(DiskError, match="xvdb"):
                strategy.create()
        return strategy

    def check(self, case: Case) -> None:
        case.write(7)
        case.qemu.close()
        assert [content(d) for d in case.disks] == [7, 7]
        expected = [str(case.frozen / f"{v}.snap") for v in VDEVS]
        assert [backing(d.target) for d in case.disks] == expected

    def test_finishes_the_rename(self, case: Case, cut_off: Qcow2) -> None:
        cut_off.settle()
        cut_off.settle()
        self.check(case)

    def test_not_while_its_storage_fails(
        self, case: Case, cut_off: Qcow2, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The guest must not run: QEMU writes to files that have not the disks' names."""
        with monkeypatch.context() as patch:
            for vdev in VDEVS:
                unreadable(patch, cut_off.state()[f"{vdev} overlay"])
            with pytest.raises(DiskError, match="Input/output error"):
                cut_off.settle()
        cut_off.settle()
        assert not case.leftovers()

    def test_by_another_process(self, case: Case, cut_off: Qcow2) -> None:
        cut_off.close()
        self.heir(case, cut_off).settle()
        self.check(case)

    def heir(self, case: Case, cut_off: Qcow2) -> Qcow2:
        heir = case.strategy()
        heir.adopt_create(DOMID, began=0.0, state=cut_off.state())
        return heir

    def of_version_1(self, case: Case, dead: Qcow2, domid: int | None = DOMID) -> Qcow2:
        """One that adopts from a journal of version 1, which has no nodes."""
        dead.close()
        state = {key: value for key, value in dead.state().items() if not key.endswith(" node")}
        heir = case.strategy()
        heir.adopt_create(domid, began=0.0, state=state)
        return heir

    def test_does_not_guess_if_the_journal_does_not_tell_the_node(
        self, case: Case, cut_off: Qcow2
    ) -> None:
        files = case.files()
        heir = self.of_version_1(case, cut_off)
        for attempt in (heir.settle, heir.undo_create, heir.settle):
            with pytest.raises(DiskError, match=r"^xvdb: an earlier release.*\.overlay: run"):
                attempt()
            assert case.files() == files
        heir.close()
        self.heir(case, cut_off).settle()
        self.check(case)

    def test_needs_no_node_of_an_overlay_that_has_the_disks_name(self, case: Case) -> None:
        taken = case.take("snap")
        self.of_version_1(case, taken).settle()
        self.check(case)

    def test_needs_no_node_if_nothing_was_prepared(self, case: Case) -> None:
        files = case.files()
        self.of_version_1(case, case.strategy()).settle()
        assert case.files() == files

    def test_needs_no_node_without_a_domain(self, case: Case) -> None:
        files = case.files()
        strategy = case.strategy()
        strategy.check_create(DOMID)
        strategy.prepare()
        heir = self.of_version_1(case, strategy, None)
        assert len(heir.undo_create()) == 4
        assert case.files() == files

    def test_by_another_process_that_is_killed_as_well(
        self, case: Case, cut_off: Qcow2, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After each of the names that it changes."""
        rename = os.rename

        def dies(old: Path, new: Path) -> None:
            rename(old, new)
            raise KeyboardInterrupt

        cut_off.close()
        for _ in range(2):
            heir = self.heir(case, cut_off)
            with monkeypatch.context() as patch:
                patch.setattr(os, "rename", dies)
                with pytest.raises(KeyboardInterrupt):
                    heir.settle()
            heir.close()
        self.heir(case, cut_off).settle()
        self.check(case)

    def test_leaves_alone_what_was_only_prepared(self, case: Case) -> None:
        strategy = case.strategy()
        strategy.check_create(DOMID)
        strategy.prepare()
        inodes = [Path(d.target).stat().st_ino for d in case.disks]
        strategy.settle()
        assert [Path(d.target).stat().st_ino for d in case.disks] == inodes


class TestStartedAnew:
    """The domain of a killed create was destroyed, and started anew by its owner."""

    def test_nothing_is_put_in_the_place_of_its_disks(self, case: Case) -> None:
        files = case.files()
        dead = self.prepared(case)
        case.qemu.close()
        case.qemu.start()
        attached = frozenset(d.vdev for d in case.disks)
        heir = case.strategy(started_anew=True, attached=attached)
        heir.adopt_create(DOMID, began=0.0, state=dead.state())
        heir.settle()
        case.write(7)
        assert len(heir.undo_create()) == 4
        assert case.files() == files
        case.qemu.close()
        assert [content(d) for d in case.disks] == [7, 7]

    def test_nor_if_it_has_other_disks_now(self, case: Case) -> None:
        """It has written since to what its old QEMU may have left."""
        files = case.files()
        dead = self.prepared(case)
        case.qemu.close()
        inodes = [Path(d.target).stat().st_ino for d in case.disks]
        heir = case.strategy(started_anew=True)
        heir.adopt_create(DOMID, began=0.0, state=dead.state())
        heir.settle()
        assert len(heir.undo_create()) == 4
        assert case.files() == files
        assert [Path(d.target).stat().st_ino for d in case.disks] == inodes

    def prepared(self, case: Case) -> Qcow2:
        strategy = case.strategy()
        strategy.check_create(DOMID)
        strategy.prepare()
        strategy.close()
        return strategy


class TestRefused:
    def refusal(self, case: Case) -> str:
        strategy = case.strategy()
        before = case.files()
        with pytest.raises(Refused) as caught:
            strategy.check_create(DOMID)
        assert case.files() == before
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("there", ["file", "dangling link", "directory"])
    def test_an_external_path_that_exists(self, case: Case, there: str) -> None:
        path = case.frozen / "xvda.snap"
        if there == "file":
            path.write_text("x")
        elif there == "directory":
            path.mkdir()
        else:
            path.symlink_to("/nonexistent")
        assert f"{path} exists" in self.refusal(case)

    def test_a_directory_that_is_not_there(self, case: Case) -> None:
        case.frozen.rmdir()
        assert "cannot be a link to" in self.refusal(case)

    def test_another_filesystem(self, case: Case) -> None:
        if Path("/dev/shm").stat().st_dev == case.frozen.stat().st_dev:
            pytest.skip("/dev/shm is no filesystem of its own")
        case.frozen = Path("/dev/shm")
        strategy = case.strategy(f"pyxlsnap-test-{os.getpid()}")
        with pytest.raises(Refused, match="choose an external path on the same filesystem"):
            strategy.check_create(DOMID)
        assert not list(Path("/dev/shm").glob(f"*pyxlsnap-test-{os.getpid()}*"))

    def test_disk_snapshots_inside(self, case: Case) -> None:
        case.qemu.close()
        qemu_img("snapshot", "-c", "older", case.disks[1].target)
        case.qemu.start()
        says = self.refusal(case)
        assert says.startswith("xvdb: ")
        assert "(older, …), which an external snapshot would put out of reach" in says

    def test_a_relative_backing_file_that_leads_elsewhere(self, case: Case) -> None:
        case.qemu.close()
        disk = case.disks[0]
        base = Path(disk.target).with_name("base.qcow2")
        os.rename(disk.target, base)
        qemu_img("create", "-q", "-f", "qcow2", "-b", base.name, "-F", "qcow2", disk.target)
        case.qemu.start()
        assert "stands on base.qcow2, by a relative name" in self.refusal(case)


def nothing() -> None:
    """In the place of a look whether the revert was cancelled."""


class TestRevert:
    @pytest.fixture
    def taken(self, case: Case) -> Case:
        """Three snapshots, of contents 1, 2 and 3; 4 now."""
        for number in (1, 2, 3):
            case.write(number)
            case.take(f"s{number}")
        case.write(4)
        case.qemu.close()
        return case

    def test_to_the_second_the_first_the_third_and_the_frozen_files_never_change(
        self, taken: Case
    ) -> None:
        sums = {p: p.read_bytes() for p in taken.frozen.iterdir()}
        for number in (2, 1, 3, 3):
            strategy = taken.strategy(f"s{number}")
            strategy.check_revert()
            strategy.revert()
            assert [content(d) for d in taken.disks] == [number, number]
            taken.qemu.start()
            taken.write(9)
            assert strategy.finish_revert(DOMID) == []
            taken.qemu.close()
            assert [content(d) for d in taken.disks] == [9, 9]
        assert {p: p.read_bytes() for p in taken.frozen.iterdir()} == sums
        assert not taken.leftovers()

    def test_overlays_that_were_made_beforehand_are_used(self, taken: Case) -> None:
        strategy = taken.strategy("s2")
        strategy.check_revert()
        strategy.prepare_revert(nothing)
        assert [content(d) for d in taken.disks] == [4, 4]
        strategy.check_revert()
        overlays = {p.stat().st_ino for p in taken.leftovers()}
        assert len(overlays) == 2
        strategy.revert()
        assert {Path(d.target).stat().st_ino for d in taken.disks} == overlays
        assert [content(d) for d in taken.disks] == [2, 2]
        strategy.finish_revert(DOMID)
        assert not taken.leftovers()

    @pytest.mark.parametrize("change", ["frozen", "owner", "overlay"])
    def test_an_overlay_that_does_not_fit_any_more_is_made_again(
        self, taken: Case, change: str
    ) -> None:
        strategy = taken.strategy("s2")
        strategy.check_revert()
        strategy.prepare_revert(nothing)
        disk = taken.disks[0]
        [overlay] = [p for p in taken.leftovers() if p.name.startswith(f".{disk.vdev}")]
        if change == "frozen":
            os.utime(taken.frozen / f"{disk.vdev}.s2")
        elif change == "owner":
            Path(disk.target).chmod(0o606)
        else:
            overlay.rename(overlay.with_name("moved"))
            overlay.write_text("another")
            overlay.with_name("moved").unlink()
        mode = Path(disk.target).stat().st_mode
        strategy.revert()
        assert [content(d) for d in taken.disks] == [2, 2]
        assert Path(disk.target).stat().st_mode == mode
        strategy.finish_revert(DOMID)
        assert not taken.leftovers()

    @pytest.mark.parametrize("killed", [True, False])
    def test_overlays_that_were_made_beforehand_are_taken_back(
        self, taken: Case, killed: bool
    ) -> None:
        strategy, before = taken.strategy("s2"), taken.files()
        strategy.check_revert()
        strategy.undo_prepared()  # nothing is made yet
        strategy.prepare_revert(nothing)
        if killed:
            taken.strategy("s2").undo_prepared()  # which knows nothing of it
            assert len(taken.leftovers()) == 2
            strategy = external(taken.disks, "s2", taken.frozen, prepared=strategy.state())
        strategy.undo_prepared()
        strategy.undo_prepared()
        assert taken.files() == before
        assert [content(d) for d in taken.disks] == [4, 4]

    def test_a_killed_runs_overlay_is_used_up_by_the_run_that_finishes_it(
        self, taken: Case
    ) -> None:
        killed = taken.strategy("s2")
        killed.check_revert()
        killed.prepare_revert(nothing)
        again = external(taken.disks, "s2", taken.frozen, finishes=killed.state())
        again.check_revert()
        again.revert()
        assert [content(d) for d in taken.disks] == [2, 2]
        again.finish_revert(DOMID)
        assert not taken.leftovers()

    def test_what_was_there_is_kept_until_the_end(self, taken: Case) -> None:
        strategy = taken.strategy("s1")
        strategy.revert()
        kept = [Path(f"{d.target}.s1.pre-revert") for d in taken.disks]
        assert [content(Disk("x", str(p), "qcow2")) for p in kept] == [4, 4]
        strategy.revert()  # once more, as after an interruption
        assert [content(Disk("x", str(p), "qcow2")) for p in kept] == [4, 4]
        assert strategy.finish_revert(DOMID) == []
        assert not any(p.exists() for p in kept)

    @pytest.mark.parametrize("call", ["link", "rename"])
    @pytest.mark.parametrize("nth", [1, 2])
    def test_one_that_fails_can_be_run_again(
        self, taken: Case, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
    ) -> None:
        strategy = taken.strategy("s2")
        real, calls = getattr(os, call), []

        def fails(*arguments: object, **options: object) -> None:
            calls.append(arguments)
            if len(calls) == nth:
                raise OSError(28, "No space left on device", str(arguments[0]))
            real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fails)
            with pytest.raises(DiskError, match="No space left"):
                strategy.revert()
        strategy.revert()
        assert [content(d) for d in taken.disks] == [2, 2]
        strategy.finish_revert(DOMID)
        assert not taken.leftovers()

    def test_disk_snapshots_taken_inside_since_are_not_thrown_away(self, taken: Case) -> None:
        """They are in the file in whose place the revert puts another."""
        qemu_img("snapshot", "-c", "since", taken.disks[0].target)
        with pytest.raises(Refused, match=r"xvda: .* taken since \(since\); .* delete them first"):
            taken.strategy("s2").check_revert()
        qemu_img("snapshot", "-d", "since", taken.disks[0].target)
        qemu_img("snapshot", "-c", "s1.pre-revert", taken.disks[0].target)
        with pytest.raises(Refused, match=r"taken since \(s1\.pre-revert\)"):
            taken.strategy("s2").check_revert()  # an interrupted revert's, or the user's
        qemu_img("snapshot", "-d", "s1.pre-revert", taken.disks[0].target)
        taken.strategy("s2").check_revert()

    def test_a_file_of_the_user_is_refused_beforehand_and_stays(self, taken: Case) -> None:
        mine = Path(f"{taken.disks[1].target}.s1.pre-revert")
        mine.write_text("mine")
        with pytest.raises(Refused, match=f"^xvdb: {mine} exists, .*: move that file away"):
            taken.strategy("s1").check_revert()
        assert mine.read_text() == "mine"
        assert [content(d) for d in taken.disks] == [4, 4]

    def test_the_run_that_finishes_a_killed_one_knows_what_that_kept(self, taken: Case) -> None:
        killed = taken.strategy("s1")
        killed.check_revert()
        killed.revert()
        with pytest.raises(Refused, match="exists"):
            taken.strategy("s1").check_revert()
        again = external(taken.disks, "s1", taken.frozen, finishes=killed.state())
        again.check_revert()
        again.revert()
        kept = [Path(f"{d.target}.s1.pre-revert") for d in taken.disks]
        assert [content(Disk("x", str(p), "qcow2")) for p in kept] == [4, 4]
        assert again.finish_revert(DOMID) == []
        assert not taken.leftovers()

    def test_a_damaged_disk_can_be_reverted(self, taken: Case) -> None:
        Path(taken.disks[0].target).write_bytes(b"x")
        strategy = taken.strategy("s2")
        strategy.check_revert()
        strategy.revert()
        assert content(taken.disks[0]) == 2

    def test_a_frozen_file_that_has_gone_is_refused(self, taken: Case) -> None:
        (taken.frozen / "xvdb.s2").unlink()
        with pytest.raises(Refused, match=r"xvdb: there is no file .*xvdb\.s2, the disk snapshot"):
            taken.strategy("s2").check_revert()

    def test_a_frozen_file_that_is_no_image_is_refused(self, taken: Case) -> None:
        path = taken.frozen / "xvdb.s2"
        path.unlink()
        path.write_text("x")
        with pytest.raises(Refused, match="xvdb"):
            taken.strategy("s2").check_revert()

    def test_no_disk_is_touched_while_a_qemu_has_one(
        self, taken: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(in_use, "_UNUSED_S", 0.2)
        taken.qemu.start()
        taken.qemu.has_opened()
        before = taken.files()
        with pytest.raises(DiskError, match="is still in use by qemu-system"):
            taken.strategy("s1").revert()
        assert taken.files() == before
