"""The new volumes of a revert, made while the domain still runs."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from pyxlsnap.disks.abilities import PreparingStrategy
from pyxlsnap.disks.lvm import commands
from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.model import KEPT_SUFFIX
from tests.unit.support import lvm
from tests.unit.support.lvm import VG, FakeLvm, at_every_command, content, contents, create, write


def preparing(
    fake: FakeLvm,
    *,
    finishes: Mapping[str, str] | None = None,
    prepared: Mapping[str, str] | None = None,
) -> PreparingStrategy:
    found = lvm.strategy(fake, "thin", finishes=finishes, prepared=prepared)
    assert isinstance(found, PreparingStrategy)
    return found


def nothing() -> None:
    """In the place of a look whether the revert was cancelled."""


@pytest.fixture
def taken(fake: FakeLvm) -> FakeLvm:
    create(fake, "thin")
    write(fake, "thin", content(9))
    return fake


def ready(fake: FakeLvm) -> PreparingStrategy:
    """Two volumes are made, and looked at once more."""
    one = preparing(fake)
    one.check_revert()
    one.prepare_revert(nothing)
    one.check_revert()
    return one


def uuids(fake: FakeLvm) -> list[int]:
    return [fake.lvs[f"thin-{x}"].minor for x in "ab"]


def test_they_are_used(taken: FakeLvm) -> None:
    volumes = sorted(taken.lvs)
    one = ready(taken)
    assert contents(taken, "thin") == [content(9)] * 2
    made = [taken.lvs[f"thin-{x}.snap.new{KEPT_SUFFIX}"].minor for x in "ab"]
    before = len(taken.log)
    one.revert()
    assert not [command for command in taken.log[before:] if command[0] == "lvcreate"]
    # Each start of an LVM command takes time in which the domain is off.
    assert [command[0] for command in taken.log[before:]] == ["lvs", *["lvrename"] * 4]
    assert uuids(taken) == made
    assert contents(taken, "thin") == [content(1)] * 2
    assert one.finish_revert(2) == []
    assert sorted(taken.lvs) == volumes
    assert taken.lvs["thin-a"].tags == ["owner"]


def test_one_that_does_not_fit_any_more_is_made_again(taken: FakeLvm) -> None:
    one = ready(taken)
    taken.lvs["thin-a"].tags.append("since")
    one.revert()
    assert taken.lvs["thin-a"].tags == ["owner", "since"]
    assert contents(taken, "thin") == [content(1)] * 2


def test_one_whose_snapshot_was_replaced_is_in_the_way(taken: FakeLvm) -> None:
    one = ready(taken)
    del taken.lvs["thin-a-snap"]
    taken.lvs[f"thin-a.snap.new{KEPT_SUFFIX}"].origin = ""
    with pytest.raises(Refused, match="is in the way"):
        one.check_revert()


def test_another_programs_volume_of_that_name_stays(taken: FakeLvm) -> None:
    one = ready(taken)
    name = f"thin-b.snap.new{KEPT_SUFFIX}"
    del taken.lvs[name]
    taken.add(name, "thin,sparse", content(5), origin="thin-b-snap")
    with pytest.raises(Refused, match="is in the way"):
        one.check_revert()
    with pytest.raises(DiskError, match=f"{VG}/{name} is in the way"):
        one.undo_prepared()
    assert taken.data(name).read_bytes() == content(5)
    assert f"thin-a.snap.new{KEPT_SUFFIX}" not in taken.lvs


@pytest.mark.parametrize("when", ["before", "after"])
def test_whatever_command_it_dies_at_it_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    for fake, fault in at_every_command(tmp_path, monkeypatch, when):
        create(fake, "thin")
        volumes = sorted(fake.lvs)
        one = preparing(fake)
        one.check_revert()
        with fault:
            one.prepare_revert(nothing)
        preparing(fake, prepared=one.state()).undo_prepared()
        assert sorted(fake.lvs) == volumes


@pytest.mark.parametrize("when", ["before", "after"])
def test_whatever_command_fails_the_same_object_takes_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    for fake, fault in at_every_command(tmp_path, monkeypatch, when):
        create(fake, "thin")
        volumes = sorted(fake.lvs)
        one = preparing(fake)
        one.check_revert()
        with fault:
            one.prepare_revert(nothing)
        one.undo_prepared()
        one.undo_prepared()
        assert sorted(fake.lvs) == volumes


def test_without_anything_prepared_lvm_is_not_asked(taken: FakeLvm) -> None:
    one, before = preparing(taken), len(taken.log)
    one.undo_prepared()
    assert len(taken.log) == before


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_revert_that_dies_anywhere_after_it_is_finished_by_a_second_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    for fake, fault in at_every_command(tmp_path, monkeypatch, when):
        create(fake, "thin")
        volumes = sorted(fake.lvs)
        write(fake, "thin", content(9))
        one = ready(fake)
        with fault:
            one.revert()
        again = preparing(fake, finishes=one.state())
        again.check_revert()
        again.revert()
        assert contents(fake, "thin") == [content(1)] * 2
        assert again.finish_revert(2) == []
        assert sorted(fake.lvs) == volumes


def test_a_new_volume_that_got_another_device_is_found(
    taken: FakeLvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody activates the volume anew just before it is renamed."""
    monkeypatch.setattr(commands, "_PATH_S", 5.0)
    one = ready(taken)

    def reactivate(when: str, command: list[str]) -> None:
        if when == "before" and command[0] == "lvrename" and command[2].endswith(KEPT_SUFFIX):
            taken.renumber(command[2])

    taken.hook = reactivate
    one.revert()
    assert contents(taken, "thin") == [content(1)] * 2
