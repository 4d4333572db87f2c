"""Snapshots of LVM volumes and the way back, on an LVM in memory."""

import math
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap.cancel import Cancelled, Halt
from pyxlsnap.disks.abilities import BesideStrategy
from pyxlsnap.disks.lvm import commands
from pyxlsnap.disks.lvm.names import Place
from pyxlsnap.disks.lvm.thick import copy_differences, needed
from pyxlsnap.disks.lvm.thin import LvmThin
from pyxlsnap.disks.registry import strategies
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import AlreadyExists, DiskError, Refused
from pyxlsnap.model import KEPT_SUFFIX, Disk, DiskRequest
from tests.unit.support.lvm import (
    EXTENT,
    KINDS,
    MIB,
    VG,
    FakeLvm,
    at_every_command,
    content,
    contents,
    create,
    revert,
    strategy,
    write,
)


class TestCreate:
    def test_all_disks_have_the_snapshot_by_one_command_each(
        self, fake: FakeLvm, kind: str
    ) -> None:
        one = strategy(fake, kind)
        one.check_create(1)
        before = len(fake.log)
        one.create()
        made = [fake.lvs[f"{kind}-{x}-snap"] for x in "ab"]
        assert [c[0] for c in fake.log[before:]] == ["lvcreate", "lvcreate"]
        assert [lv.origin for lv in made] == [f"{kind}-a", f"{kind}-b"]
        assert [lv.active for lv in made] == [kind == "thick"] * 2
        assert all("pyxlsnap" in lv.tags for lv in made)
        assert one.vdevs == ("xvda", "xvdb")
        assert one.expected_seconds() > 0

    def test_snapshots_that_were_taken_beside_the_memory_are_not_taken_again(
        self, fake: FakeLvm, kind: str
    ) -> None:
        one = strategy(fake, kind)
        assert isinstance(one, BesideStrategy)
        one.check_create(1)
        assert list(one.beside()) == ["xvda", "xvdb"]
        one.create_beside()
        before = len(fake.log)
        one.create()
        assert fake.log[before:] == []
        one.settle()
        assert len(one.undo_create()) == 2
        assert not [name for name in fake.lvs if name.endswith("-snap")]

    def test_a_cancel_ends_it_between_two_commands(self, fake: FakeLvm, kind: str) -> None:
        """Or memory that has failed meanwhile."""
        halt = Halt()
        one = strategy(fake, kind, check=halt.check)
        one.check_create(1)
        before = len(fake.log)
        fake.hook = lambda when, _: halt.set() if when == "after" else None
        with pytest.raises(Cancelled):
            one.create()
        fake.hook = lambda when, command: None
        assert [c[0] for c in fake.log[before:]] == ["lvcreate"]
        one.settle()
        assert len(one.undo_create()) == 1
        assert not [name for name in fake.lvs if name.endswith("-snap")]

    def test_the_check_changes_nothing(self, fake: FakeLvm, kind: str) -> None:
        strategy(fake, kind).check_create(1)
        assert {command[0] for command in fake.log} <= {"lvs", "vgs"}

    def test_a_name_that_is_taken_is_refused(self, fake: FakeLvm, kind: str) -> None:
        create(fake, kind)
        with pytest.raises(AlreadyExists, match=f"{VG}/{kind}-a-snap exists") as e:
            strategy(fake, kind).check_create(1)
        assert e.value.where == "xvda"

    def test_undo_removes_what_was_made_and_nothing_else(self, fake: FakeLvm, kind: str) -> None:
        before = list(fake.lvs)
        one = create(fake, kind)
        assert one.undo_create() == [f"removed the volume {VG}/{kind}-{x}-snap" for x in "ab"]
        assert list(fake.lvs) == before
        assert one.undo_create() == []

    def test_before_anything_was_made_undo_asks_nobody(self, fake: FakeLvm, kind: str) -> None:
        one = strategy(fake, kind)
        one.settle()
        assert one.undo_create() == []
        assert fake.log == []

    def test_a_name_taken_meanwhile_stays_its_owners(self, fake: FakeLvm, kind: str) -> None:
        one = strategy(fake, kind)
        one.check_create(1)
        fake.add(f"{kind}-b-snap", "linear")
        with pytest.raises(DiskError, match=r"xvdb: lvcreate failed: .*already exists") as e:
            one.create()
        assert e.value.vdev == "xvdb"
        assert "WARNING" not in str(e.value)
        assert one.undo_create() == [f"removed the volume {VG}/{kind}-a-snap"]
        assert f"{kind}-b-snap" in fake.lvs

    def test_another_process_can_undo(self, fake: FakeLvm, kind: str) -> None:
        before = list(fake.lvs)
        one = create(fake, kind)
        assert {key.split()[0] for key in one.state()} == {"xvda", "xvdb"}
        other = strategy(fake, kind)
        assert other.undo_create() == []
        other.adopt_create(1, began=time.time(), state=one.state())
        assert len(other.undo_create()) == 2
        assert list(fake.lvs) == before

    def test_what_cannot_be_removed_is_told_and_the_others_are_done(
        self, fake: FakeLvm, kind: str
    ) -> None:
        one = create(fake, kind)
        fake.lvs[f"{kind}-a-snap"].open = True
        with pytest.raises(DiskError, match="in use") as e:
            one.undo_create()
        assert e.value.vdev == "xvda"
        assert f"{kind}-b-snap" not in fake.lvs

    def test_a_suspended_origin_is_woken_up(self, fake: FakeLvm, kind: str) -> None:
        one = create(fake, kind)
        fake.lvs[f"{kind}-b"].suspended = True
        with pytest.raises(DiskError, match=rf"suspended.*lvchange --refresh {VG}/{kind}-b"):
            one.undo_create()
        one.settle()
        assert not fake.lvs[f"{kind}-b"].suspended
        assert one.undo_create() == []

    def test_lvm_is_not_asked_before_the_guest_is_resumed(self, fake: FakeLvm, kind: str) -> None:
        """Its commands may take minutes: a recovery must not wait for them."""
        one = create(fake, kind)
        disks = [(Disk("xvda", str(fake.path(f"{kind}-a")), "raw"), DiskRequest("xvda"))]
        fake.log.clear()
        kinds = {"xvda": one.kind}
        (other,) = strategies(disks, DiskTask("snap"), kinds, trusted=True)
        other.adopt_create(1, began=0.0, state=one.state())
        other.settle()
        assert fake.log == []
        assert other.undo_create() == [f"removed the volume {VG}/{kind}-a-snap"]

    def test_artefacts_say_what_they_take_and_how_to_delete_them(
        self, fake: FakeLvm, kind: str
    ) -> None:
        first, _ = create(fake, kind).artefacts("domain")
        assert first.kind == "disk snapshot"
        assert f"{VG}/{kind}-a-snap (xvda; " in first.where
        assert "8 MiB" in first.where
        assert first.delete == f"lvremove {VG}/{kind}-a-snap"

    @pytest.mark.parametrize("killed", ["before", "after"])
    def test_whatever_command_it_dies_at_another_process_undoes_it(
        self, kind: str, killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for fake, fault in at_every_command(tmp_path, monkeypatch, killed):
            before = list(fake.lvs)
            one = strategy(fake, kind)
            with fault:
                one.check_create(1)
                one.create()
            other = strategy(fake, kind)
            other.adopt_create(1, began=0.0, state=one.state())
            other.settle()
            other.undo_create()
            assert list(fake.lvs) == before


class TestRoom:
    @pytest.mark.parametrize("what", ["data", "metadata"])
    def test_a_full_pool_is_refused(self, fake: FakeLvm, what: str) -> None:
        setattr(fake.lvs["pool"], what, "95.01")
        with pytest.raises(Refused, match=rf"xvda: .* {VG}/pool .* {what} space 95.01 % full"):
            strategy(fake, "thin").check_create(1)

    @pytest.mark.parametrize("health", ["metadata_read_only", "failed", "out_of_data"])
    def test_a_pool_that_is_not_well_is_refused(self, fake: FakeLvm, health: str) -> None:
        fake.lvs["pool"].health = health
        with pytest.raises(Refused, match=f"has a problem .{health}"):
            strategy(fake, "thin").check_create(1)

    def test_the_group_must_have_room_for_all_disks(self, fake: FakeLvm) -> None:
        fake.free = 2 * needed(8 * MIB, EXTENT)
        strategy(fake, "thick").check_create(1)
        fake.free -= EXTENT
        with pytest.raises(
            Refused, match=rf"xvda, xvdb: the volume group {VG} has 20 MiB free.*takes 24 MiB"
        ):
            strategy(fake, "thick").check_create(1)
        assert "lvcreate" not in [command[0] for command in fake.log]

    @given(st.integers(1, 2**24), st.integers(0, 8))
    def test_every_chunk_of_the_origin_has_room(self, chunks: int, power: int) -> None:
        extent = MIB << power
        need = needed(chunks * 4096, extent)
        # a header, then areas of one chunk of metadata and 256 of data; the last is not full
        assert need >= (1 + chunks + math.ceil((chunks + 1) / 256)) * 4096
        assert need % extent == 0
        assert need < chunks * 4096 * 257 / 256 + 3 * 4096 + extent

    def test_a_volume_of_another_kind_is_refused(self, fake: FakeLvm, kind: str) -> None:
        other = "thick" if kind == "thin" else "thin"
        disk = Disk("xvda", str(fake.path(f"{other}-a")), "raw")
        with pytest.raises(Refused, match=r"xvda: .* (no|a) thin volume"):
            KINDS[kind]([(disk, DiskRequest("xvda"))], DiskTask("x")).check_create(1)

    def test_a_merge_under_way_is_refused(self, fake: FakeLvm, kind: str) -> None:
        fake.lvs[f"{kind}-b"].merging = True
        with pytest.raises(Refused, match=f"xvdb: .*merged into {VG}/{kind}-b"):
            strategy(fake, kind).check_create(1)

    def test_a_thick_snapshot_of_a_thick_snapshot_is_refused(self, fake: FakeLvm) -> None:
        fake.lvs["thick-b"].origin = "thick-a"
        with pytest.raises(Refused, match=f"xvdb: .* is a snapshot of {VG}/thick-a"):
            strategy(fake, "thick").check_create(1)

    def test_lvm_that_does_not_answer_is_a_refusal(
        self, fake: FakeLvm, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing(command: list[str], timeout_s: float) -> tuple[int, str, str]:
            raise FileNotFoundError(command[0])

        monkeypatch.setattr(commands, "execute", missing)
        with pytest.raises(Refused, match="lvs is missing: install lvm2"):
            strategy(fake, kind).check_create(1)
        with pytest.raises(Refused, match="lvs is missing: install lvm2"):
            strategy(fake, kind).check_revert()


class TestRevert:
    def test_again_and_again_in_any_order(self, fake: FakeLvm, kind: str) -> None:
        for seed, name in ((10, "one"), (20, "two")):
            write(fake, kind, content(seed))
            create(fake, kind, name)
        volumes = sorted(fake.lvs)
        for turn, name in enumerate(("one", "one", "two", "one", "two")):
            write(fake, kind, content(100 + turn))
            assert revert(fake, kind, name) == []
            assert contents(fake, kind) == [content(10 if name == "one" else 20)] * 2
            assert sorted(fake.lvs) == volumes
            assert fake.lvs[f"{kind}-a"].tags == ["owner"]

    def test_what_is_replaced_is_kept_until_the_end(self, fake: FakeLvm) -> None:
        create(fake, "thin")
        write(fake, "thin", content(7))
        one = strategy(fake, "thin")
        one.check_revert()
        one.revert()
        assert fake.path(f"thin-a.snap{KEPT_SUFFIX}").read_bytes() == content(7)
        one.finish_revert(2)
        assert not [name for name in fake.lvs if name.endswith(KEPT_SUFFIX)]

    def test_what_cannot_be_dropped_is_told(self, fake: FakeLvm) -> None:
        create(fake, "thin")
        one = strategy(fake, "thin")
        one.revert()
        fake.lvs[f"thin-a.snap{KEPT_SUFFIX}"].open = True
        (line,) = one.finish_revert(2)
        assert f"{VG}/thin-a.snap{KEPT_SUFFIX} (the disk before the revert)" in line
        assert f"thin-b.snap{KEPT_SUFFIX}" not in fake.lvs

    def test_the_owners_snapshots_of_the_old_disk_do_not_go_with_it(self, fake: FakeLvm) -> None:
        create(fake, "thin")
        one = strategy(fake, "thin")
        one.revert()
        fake.add("owners", "linear", origin=f"thin-a.snap{KEPT_SUFFIX}")
        fake.lvs[f"thin-a.snap{KEPT_SUFFIX}"].layout = "linear"
        (line,) = one.finish_revert(2)
        assert "has snapshots of its own" in line
        assert "owners" in fake.lvs

    def test_inactive_volumes_are_activated(self, fake: FakeLvm, kind: str) -> None:
        create(fake, kind)
        for lv in fake.lvs.values():
            lv.active = False
        fake.links()
        assert commands.is_lvm(str(fake.path(f"{kind}-a")))
        revert(fake, kind)
        assert contents(fake, kind) == [content(1)] * 2

    def test_nothing_is_written_while_a_disk_is_open(self, fake: FakeLvm, kind: str) -> None:
        create(fake, kind)
        fake.lvs[f"{kind}-b"].open = True
        before = len(fake.log)
        with pytest.raises(DiskError, match=f"xvdb: {VG}/{kind}-b is still in use by"):
            strategy(fake, kind).revert()
        assert {command[0] for command in fake.log[before:]} == {"lvs"}

    def test_a_snapshot_that_is_not_there_is_refused(self, fake: FakeLvm, kind: str) -> None:
        with pytest.raises(Refused, match=f"xvda: there is no volume {VG}/{kind}-a-snap"):
            strategy(fake, kind).check_revert()

    def test_something_else_of_that_name_is_refused(self, fake: FakeLvm, kind: str) -> None:
        fake.add(f"{kind}-a-snap", fake.lvs[f"{kind}-a"].layout)
        with pytest.raises(Refused, match=f"xvda: {VG}/{kind}-a-snap is n"):
            strategy(fake, kind).check_revert()

    def test_a_thick_snapshot_that_overflowed_is_refused(self, fake: FakeLvm) -> None:
        create(fake, "thick")
        fake.lvs["thick-b-snap"].invalid = True
        with pytest.raises(Refused, match=f"xvdb: {VG}/thick-b-snap is invalid"):
            strategy(fake, "thick").check_revert()
        with pytest.raises(DiskError, match="invalid"):
            strategy(fake, "thick").revert()

    def test_a_thick_volume_that_is_read_only_is_refused(self, fake: FakeLvm) -> None:
        create(fake, "thick")
        fake.lvs["thick-a"].read_only = True
        with pytest.raises(Refused, match=f"xvda: {VG}/thick-a is read-only: `lvchange -prw"):
            strategy(fake, "thick").check_revert()

    @pytest.mark.parametrize(
        ("attr", "missing", "says"),
        [
            ("wz-pn-", 1, "1 of the physical volumes of .* are missing"),
            ("rz--n-", 0, "is read-only"),
            ("wzx-n-", 0, "vgimport"),
        ],
    )
    def test_a_group_that_lvm_does_not_change_is_refused(
        self, fake: FakeLvm, attr: str, missing: int, says: str
    ) -> None:
        create(fake, "thin")
        fake.attr, fake.missing = attr, missing
        with pytest.raises(Refused, match=f"^xvda: .*{says}"):
            strategy(fake, "thin").check_revert()
        for kind in KINDS:
            with pytest.raises(Refused, match=f"^xvd[ab]: .*{says}"):
                strategy(fake, kind, "other").check_create(1)

    def test_a_group_is_asked_once_for_all_its_disks(self, fake: FakeLvm) -> None:
        create(fake, "thin")
        before = len(fake.log)
        strategy(fake, "thin").check_revert()
        assert [command[0] for command in fake.log[before:]] == ["lvs", "vgs"]

    def test_a_thick_volume_with_a_part_missing_is_refused(self, fake: FakeLvm) -> None:
        create(fake, "thick")
        fake.missing = 1  # of another volume's: nothing is made or renamed
        strategy(fake, "thick").check_revert()
        fake.lvs["thick-b-snap"].health = "partial"
        with pytest.raises(Refused, match=f"^xvdb: {VG}/thick-b-snap is partial"):
            strategy(fake, "thick").check_revert()

    def test_a_strangers_volume_under_our_name_is_left_alone(self, fake: FakeLvm) -> None:
        create(fake, "thin")
        fake.add(f"thin-a.snap.new{KEPT_SUFFIX}", "linear")
        with pytest.raises(Refused, match="is in the way"):
            strategy(fake, "thin").check_revert()
        with pytest.raises(DiskError, match="is in the way"):
            strategy(fake, "thin").revert()

    def test_a_volume_that_was_kept_before_is_refused_and_the_present_one_stays(
        self, fake: FakeLvm
    ) -> None:
        """An earlier revert kept it, or the user made it: it is not the present state."""
        create(fake, "thin")
        write(fake, "thin", content(7))
        fake.add(f"thin-b.snap{KEPT_SUFFIX}", "thin,sparse", content(3))
        before = len(fake.log)
        one = strategy(fake, "thin")
        with pytest.raises(Refused, match=rf"^xvdb: the volume {VG}/thin-b.snap.* rename it"):
            one.check_revert()
        with pytest.raises(DiskError, match=rf"^xvdb: the volume {VG}/thin-b.snap.* rename it"):
            one.revert()
        assert {command[0] for command in fake.log[before:]} <= {"lvs", "vgs"}
        assert contents(fake, "thin") == [content(7)] * 2
        (line,) = one.finish_revert(2)
        assert line.endswith("this revert did not make it")
        assert fake.path(f"thin-b.snap{KEPT_SUFFIX}").read_bytes() == content(3)

    def test_a_disk_that_is_neither_old_nor_new_is_not_removed(self, fake: FakeLvm) -> None:
        """After the kill its owner has put another volume in its place."""
        create(fake, "thin")
        killed = strategy(fake, "thin", lvs="a")
        killed.check_revert()
        killed.revert()
        fake.lvs["thin-a"].origin = ""
        again = strategy(fake, "thin", lvs="a", finishes=killed.state())
        with pytest.raises(Refused, match=f"xvda: the volume {VG}/thin-a is in the way"):
            again.check_revert()
        with pytest.raises(DiskError, match="is in the way"):
            again.revert()
        assert "thin-a" in fake.lvs

    def test_a_new_volume_of_a_killed_run_is_only_the_killed_ones(self, fake: FakeLvm) -> None:
        create(fake, "thin")
        fake.add(f"thin-a.snap.new{KEPT_SUFFIX}", "thin,sparse", origin="thin-a-snap")
        with pytest.raises(Refused, match="is in the way"):
            strategy(fake, "thin").check_revert()
        strategy(fake, "thin", finishes={}).check_revert()

    def test_a_disk_that_is_replaced_while_the_revert_is_prepared_is_noticed(
        self, fake: FakeLvm
    ) -> None:
        create(fake, "thin")
        one = strategy(fake, "thin")
        one.check_revert()
        del fake.lvs["thin-b"]
        fake.add("thin-b", "thin,sparse", content(8))
        with pytest.raises(DiskError, match=rf"xvdb: {VG}/thin-b was replaced .*again"):
            one.revert()
        assert contents(fake, "thin") == [content(1), content(8)]

    def test_a_path_that_udev_does_not_make_is_told(
        self, fake: FakeLvm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create(fake, "thin")
        monkeypatch.setattr(commands, "device_number", lambda path: None)
        with pytest.raises(DiskError, match="does not lead to the volume"):
            strategy(fake, "thin").revert()

    @pytest.mark.parametrize("killed", ["before", "after"])
    def test_whatever_command_it_dies_at_a_second_run_ends_well(
        self, kind: str, killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for fake, fault in at_every_command(tmp_path, monkeypatch, killed):
            create(fake, kind)
            volumes = sorted(fake.lvs)
            write(fake, kind, content(9))
            first = strategy(fake, kind)
            first.check_revert()
            with fault:
                first.revert()
                first.finish_revert(2)
            if kind == "thin":
                self.nothing_is_lost(fake)
            assert all(commands.is_lvm(str(fake.path(f"{kind}-{x}"))) for x in "ab")
            assert all(
                commands.is_thin(str(fake.path(f"{kind}-{x}"))) == (kind == "thin") for x in "ab"
            )
            assert revert(fake, kind, finishes=first.state()) == []
            assert contents(fake, kind) == [content(1)] * 2
            assert sorted(fake.lvs) == volumes
            assert fake.lvs[f"{kind}-b"].tags == ["owner"]

    def nothing_is_lost(self, fake: FakeLvm) -> None:
        """Until it is finished, each disk's old state is under one name or the other."""
        finishing = any(command[0] == "lvremove" for command in fake.log)
        for x in "ab":
            kept = fake.lvs.get(f"thin-{x}.snap{KEPT_SUFFIX}") or fake.lvs[f"thin-{x}"]
            assert finishing or fake.data(kept.name).read_bytes() == content(9)


class TestCopy:
    @given(st.lists(st.booleans(), max_size=600), st.integers(0, 4095))
    def test_no_more_than_differs_is_written(self, same: list[bool], rest: int) -> None:
        old = b"".join(bytes([1]) * 4096 for _ in same) + bytes(rest)
        new = b"".join(bytes([1 if s else 2]) * 4096 for s in same) + bytes(rest)
        with tempfile.TemporaryDirectory() as directory:
            source, target = Path(directory, "source"), Path(directory, "target")
            source.write_bytes(old)
            target.write_bytes(new)
            assert copy_differences(source, target) == same.count(False) * 4096
            assert target.read_bytes() == old

    def test_a_device_that_fails_is_a_disk_error(self, fake: FakeLvm) -> None:
        create(fake, "thick")
        fake.data("thick-a-snap").unlink()
        fake.data("thick-a-snap").mkdir()
        with pytest.raises(
            DiskError, match=f"xvda: copying {VG}/thick-a-snap to .*run the command"
        ):
            strategy(fake, "thick").revert()


def disks_of(*paths: str) -> LvmThin:
    chosen = [
        (Disk(f"xvd{letter}", path, "raw"), DiskRequest(f"xvd{letter}"))
        for letter, path in zip("abcd", paths, strict=False)
    ]
    return LvmThin(chosen, DiskTask("snap"))


def test_disks_of_two_groups_are_put_back_side_by_side() -> None:
    both = threading.Barrier(2)
    disks_of("/dev/vg-0/a", "/dev/vg-1/b").put_each_back(lambda at: both.wait(10))


def test_disks_of_one_group_are_put_back_one_after_the_other() -> None:
    """LVM locks the group."""
    busy = threading.Lock()
    done: list[str] = []

    def put_back(at: Place) -> None:
        assert busy.acquire(blocking=False)
        time.sleep(0.05)
        done.append(at.lv)
        busy.release()

    disks_of("/dev/vg-0/a", "/dev/vg-0/b", "/dev/vg-0/c").put_each_back(put_back)
    assert done == ["a", "b", "c"]
