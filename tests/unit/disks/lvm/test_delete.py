"""Deleting LVM snapshots, in an LVM in memory: exactly the volume, and only one of ours."""

from pathlib import Path

import pytest

from pyxlsnap.disks.abilities import DeletingStrategy
from pyxlsnap.errors import DiskError, Refused
from tests.unit.support.lvm import (
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


def deleting(fake: FakeLvm, kind: str, name: str = "snap") -> DeletingStrategy:
    found = strategy(fake, kind, name)
    assert isinstance(found, DeletingStrategy)
    return found


def delete(fake: FakeLvm, kind: str, name: str = "snap") -> list[str]:
    one = deleting(fake, kind, name)
    one.check_delete(None)
    assert one.prepare_delete() == []
    return one.delete()


def test_one_of_two_and_again(fake: FakeLvm, kind: str) -> None:
    create(fake, kind)
    create(fake, kind, "other")
    before = set(fake.lvs)
    gone = {f"{kind}-a-snap", f"{kind}-b-snap"}
    assert delete(fake, kind) == [f"removed the volume {VG}/{name}" for name in sorted(gone)]
    assert before - set(fake.lvs) == gone
    assert delete(fake, kind) == []
    assert contents(fake, kind) == [content(1)] * 2


def test_a_thin_snapshot_that_the_disk_was_reverted_to(fake: FakeLvm) -> None:
    create(fake, "thin")
    write(fake, "thin", content(9))
    assert revert(fake, "thin") == []
    delete(fake, "thin")
    assert contents(fake, "thin") == [content(1)] * 2


@pytest.mark.parametrize("tags", [[], ["pyxlsnap"], ["pyxlsnap", "pyxlsnap.of=other"]])
def test_a_volume_that_is_not_known_as_ours_stays(
    fake: FakeLvm, kind: str, tags: list[str]
) -> None:
    create(fake, kind)
    fake.lvs[f"{kind}-b-snap"].tags = tags
    before = set(fake.lvs)
    with pytest.raises(Refused, match=f"xvdb: {VG}/{kind}-b-snap is not known as a snapshot of"):
        deleting(fake, kind).check_delete(7)
    with pytest.raises(DiskError, match="was left as it is"):
        deleting(fake, kind).delete()
    assert before - set(fake.lvs) == {f"{kind}-a-snap"}  # one that fails does not stop the others


@pytest.mark.parametrize(("state", "says"), [("open", "is in use"), ("merging", "being merged")])
def test_one_that_is_in_use_stays(fake: FakeLvm, kind: str, state: str, says: str) -> None:
    create(fake, kind)
    setattr(fake.lvs[f"{kind}-a-snap"], state, True)
    fake.lvs[f"{kind}-a-snap"].active = True
    with pytest.raises(Refused, match=says):
        deleting(fake, kind).check_delete(7)
    assert f"{kind}-a-snap" in fake.lvs


def test_one_that_has_thick_snapshots_stays(fake: FakeLvm) -> None:
    """LVM would remove them, too."""
    create(fake, "thick")
    fake.add("precious", "linear", origin="thick-a-snap")
    with pytest.raises(Refused, match=f"xvda: {VG}/thick-a-snap has snapshots of its own"):
        deleting(fake, "thick").check_delete(None)


def test_the_check_changes_nothing(fake: FakeLvm, kind: str) -> None:
    create(fake, kind)
    before = len(fake.log)
    deleting(fake, kind).check_delete(7)
    assert {command[0] for command in fake.log[before:]} == {"lvs"}


@pytest.mark.parametrize("when", ["before", "after"])
def test_one_that_was_killed_at_any_command_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, kind: str
) -> None:
    for fake, fault in at_every_command(tmp_path, monkeypatch, when):
        create(fake, kind)
        create(fake, kind, "other")
        with fault:
            delete(fake, kind)
        delete(fake, kind)
        assert not [name for name in fake.lvs if name.endswith("-snap")]
        assert {f"{kind}-{x}-other" for x in "ab"} <= set(fake.lvs)
        assert contents(fake, kind) == [content(1)] * 2
