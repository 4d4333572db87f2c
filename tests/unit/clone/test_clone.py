"""A clone with a fault at every step, killed after every step: there is a whole clone, or none."""

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pyxlsnap import paths
from pyxlsnap.cancel import Cancel
from pyxlsnap.clone import plan as clone_plan
from pyxlsnap.clone import removal
from pyxlsnap.clone.delete import delete_clone
from pyxlsnap.clone.names import lock_name
from pyxlsnap.clone.plan import make_plan
from pyxlsnap.clone.sequence import Cloning
from pyxlsnap.clone_file import CloneFile, all_clones, find_clone, is_gone, mounts, not_mounted
from pyxlsnap.disks.undo import LeftOver
from pyxlsnap.errors import (
    AlreadyExists,
    Busy,
    DiskError,
    DomainNotFound,
    Interrupted,
    NeedsAttention,
    OperationFailed,
    Refused,
    Risky,
    UsageError,
    XenError,
)
from pyxlsnap.guest.snapshot import state_after
from pyxlsnap.journal import CloneEntry, Journal
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.model import Disk, DiskRequest, DomainConfig, RunState
from pyxlsnap.request import Callbacks, DeleteCloneRequest
from pyxlsnap.results import CloneDisk, Deleted
from tests.unit.support import operations
from tests.unit.support.clones import CLONE, CLONE_UUID, SNAPSHOT, Origin, clone_steps
from tests.unit.support.entries import clone_entry
from tests.unit.support.faults import FailsAtStep, run_until
from tests.unit.support.guest import FakeGuest
from tests.unit.support.qemu import qemu_img
from tests.unit.support.strategy import FakeStrategy
from tests.unit.support.unreadable import unreadable
from tests.unit.support.values import BRIDGE, OTHER_UUID, UUID
from tests.unit.support.world import World

NEW = clone_steps(replaces=False)
REPLACED = clone_steps(replaces=True)
NIC = {"devid": 0, "mac": "00:16:3e:00:00:01", "bridge": BRIDGE, "nictype": "vif_ioemu"}
FAULTS: dict[str, Callable[[], BaseException]] = {
    "xen": lambda: XenError("no", rc=-3, operation="some call"),
    "full": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "bug": lambda: RuntimeError("a bug"),
    "ctrl-c": KeyboardInterrupt,
}


class Faulty(FailsAtStep, Cloning):
    """A clone that fails at one of its steps."""


@pytest.fixture
def origin(world: World) -> Origin:
    return Origin(world)


def words(**found: Any) -> dict[str, Any]:
    """Words of a request."""
    return found


def faulty(origin: Origin, step: str, when: str, fault: Callable[[], None]) -> Faulty:
    cloning = Faulty(origin.world.host, origin.plan(replace=True))
    cloning.at, cloning.when, cloning.fault = step, when, fault
    return cloning


def raising(make: Callable[[], BaseException]) -> Callable[[], None]:
    def fault() -> None:
        raise make()

    return fault


def delete(origin: Origin, name: str = CLONE, cancel: Cancel | None = None) -> Deleted:
    return delete_clone(origin.world.host, DeleteCloneRequest(domain=name), Callbacks(), cancel)


def recover(origin: Origin) -> tuple[str, ...]:
    recovered = operations.recover(origin.world.host, CLONE_UUID, start_monitor=lambda _: None)
    return recovered.lines


def assert_cloned(origin: Origin, *, paused: bool = False) -> None:
    found = origin.find()
    assert found
    assert (found.memory, found.paused) == ("then", paused)
    assert found.uuid != UUID
    assert set(found.disk_targets()) == {
        str(origin.world.root / "images" / name) for name in origin.children()
    }
    assert len(origin.children()) == 2
    assert Journal(found.uuid).read() is None
    entry = find_clone(CLONE)
    assert entry
    assert entry.uuid == found.uuid
    assert origin.guest.exists
    assert origin.guest.memory == "since"


def test_a_clone_has_the_memory_and_its_own_disks(origin: Origin) -> None:
    made = origin.clone()
    assert_cloned(origin)
    found = origin.find()
    assert found
    assert (made.domid, made.uuid, made.name) == (found.domid, found.uuid, SNAPSHOT)
    assert [a.kind for a in made.artefacts] == ["domain", "disk", "disk", "clone file"]
    assert origin.world.photo().disk_snapshots == origin.before.disk_snapshots


def test_a_clone_says_what_it_has_of_its_own(world: World) -> None:
    """Also the clone that replaces another one, and a plan."""
    nic = {**NIC, "nictype": "vif"}
    origin = Origin(world, nics=[nic], emulated={"ms_vm_genid": [*range(16)]})
    for again in (False, True):
        with closing(origin.plan(replace=again)) as plan:
            planned = plan.summary().warnings
        mac, generation = origin.clone(replace=again).changes
        assert mac.startswith("network device 0: MAC ")
        assert generation == "VM generation ID: a new one"
        assert generation in planned


def test_the_destroy_comes_when_the_new_disks_are_there() -> None:
    assert REPLACED.index("disks") + 1 == REPLACED.index("destroy")
    assert set(REPLACED) - set(NEW) == {"destroy", "old disks"}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", NEW)
def test_a_fault_at_any_step_leaves_nothing(
    origin: Origin, step: str, when: str, fault: str
) -> None:
    with pytest.raises(OperationFailed) as caught:
        faulty(origin, step, when, raising(FAULTS[fault])).run()
    assert type(caught.value) is (Interrupted if fault == "ctrl-c" else OperationFailed)
    origin.assert_as_before()


@pytest.mark.parametrize("step", NEW)
def test_a_clone_that_is_killed_is_cloned_or_gone(origin: Origin, step: str) -> None:
    run_until(Cloning(origin.world.host, origin.plan()).steps(), step)
    lines = recover(origin)
    if NEW.index(step) >= NEW.index("restore"):
        assert_cloned(origin)
    else:
        origin.assert_as_before()
    if step not in ("prepare", "memory", "check again", "clone file"):
        assert lines
    assert recover(origin) == ()


@pytest.mark.parametrize("replace", [False, True])
def test_a_clone_that_has_run_and_is_off_keeps_its_disks(origin: Origin, replace: bool) -> None:
    """Its operation was killed after the restore, and recovered late: it may have been used."""
    uuid = origin.clone().uuid if replace else CLONE_UUID
    run_until(Cloning(origin.world.host, origin.plan(replace=replace)).steps(), "restore")
    found = origin.find()
    assert found
    found.exists = False
    (line,) = operations.recover(origin.world.host, uuid).lines
    assert "its disks were kept" in line
    assert "pyxlsnap.delete_clone('vm1-a')" in line
    entry = find_clone(CLONE)
    assert entry
    assert {Path(child.target).name for child in entry.children} == origin.children()
    assert len(entry.children) == 2
    origin.clone(replace=True)
    assert_cloned(origin)


def test_a_domain_that_a_killed_restore_has_left_is_destroyed(origin: Origin) -> None:
    cloning = Cloning(origin.world.host, origin.plan())
    run_until(cloning.steps(), "disks")
    left = origin.world.host.start(origin.plan("vm1-b").config.with_name(CLONE))
    left.uuid, left.has_run, left.paused = CLONE_UUID, False, True
    recover(origin)
    assert not left.exists
    origin.assert_as_before()


def restore_leaves(
    origin: Origin, monkeypatch: pytest.MonkeyPatch, *, has_run: bool
) -> list[FakeGuest]:
    """Let the restore fail, and leave a domain; the list has it then."""
    found: list[FakeGuest] = []

    def restore(config: DomainConfig, _: int) -> NoReturn:
        found.append(origin.world.host.start(config))
        found[0].has_run, found[0].paused = has_run, not has_run
        raise XenError("the incomplete domain could not be removed", rc=-3, operation="restore")

    monkeypatch.setattr(origin.world.host, "restore", restore)
    return found


@pytest.mark.parametrize("replace", [False, True])
def test_a_domain_that_a_failed_restore_has_left_is_destroyed(
    origin: Origin, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    if replace:
        origin.clone()
    found = restore_leaves(origin, monkeypatch, has_run=False)
    with pytest.raises(OperationFailed, match="could not be removed") as caught:
        origin.clone(replace=replace)
    assert isinstance(caught.value, NeedsAttention) == replace
    assert not found[0].exists
    origin.assert_as_before()


def test_a_domain_that_somebody_has_started_meanwhile_keeps_its_disks(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = restore_leaves(origin, monkeypatch, has_run=True)
    with pytest.raises(NeedsAttention, match="was started with the uuid of the clone") as caught:
        origin.clone()
    assert caught.value.finish == f"pyxlsnap snapshot-recover {found[0].uuid}"
    assert found[0].exists
    assert len(origin.children()) == 2
    assert Journal(found[0].uuid).read()


def test_a_clone_that_cannot_be_destroyed_keeps_its_disks(origin: Origin) -> None:
    uuid = origin.clone().uuid
    origin.world.fail("destroy", XenError("it stays", rc=-3, operation="destroy"))
    with pytest.raises(NeedsAttention, match="undoing it failed: it stays"):
        origin.clone(replace=True)
    old = origin.find()
    assert old
    assert {Path(target).name for target in old.disk_targets()} <= origin.children()
    origin.world.faults.clear()
    operations.recover(origin.world.host, uuid)
    origin.assert_as_before()


def test_the_file_of_a_clone_that_is_gone_does_not_mislead_a_recovery(origin: Origin) -> None:
    """Its parts were deleted by hand, and its uuid is used again."""
    made, gone = origin.clone(), origin.find()
    assert gone
    gone.exists = False
    for disk in made.disks:
        Path(disk.target).unlink()
    plan = make_plan(origin.world.host, origin.request(), made.uuid, None, Cancel())
    run_until(Cloning(origin.world.host, plan).steps(), "disks")
    left = origin.world.host.start(plan.config)
    left.has_run, left.paused = False, True
    operations.recover(origin.world.host, made.uuid)
    assert not left.exists
    origin.assert_as_before()


def test_a_domain_that_somebody_has_started_is_left_to_a_person(origin: Origin) -> None:
    run_until(Cloning(origin.world.host, origin.plan()).steps(), "disks")
    left = origin.world.host.start(origin.plan("vm1-b").config.with_name(CLONE))
    left.uuid = CLONE_UUID
    with pytest.raises(NeedsAttention, match="was started with the uuid of the clone"):
        recover(origin)
    assert left.exists
    assert len(origin.children()) == 2


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", REPLACED[: REPLACED.index("destroy")])
def test_a_replacement_that_fails_before_the_destroy_changes_nothing(
    origin: Origin, step: str, when: str
) -> None:
    origin.clone()
    old, before = origin.find(), origin.world.photo()
    with pytest.raises(OperationFailed):
        faulty(origin, step, when, raising(FAULTS["xen"])).run()
    assert origin.find() is old
    assert origin.world.photo() == before


@pytest.mark.parametrize("step", REPLACED[REPLACED.index("restore") : -1])
def test_a_replacement_that_fails_later_leaves_nothing_and_says_so(
    origin: Origin, step: str
) -> None:
    origin.clone()
    with pytest.raises(NeedsAttention, match="is destroyed") as caught:
        faulty(origin, step, "before", raising(FAULTS["xen"])).run()
    origin.assert_as_before()
    assert "snapshot-clone" in caught.value.finish
    assert "--replace" in caught.value.finish


@pytest.mark.parametrize("step", REPLACED)
def test_a_replacement_that_is_killed_is_cloned_or_gone(origin: Origin, step: str) -> None:
    uuid = origin.clone().uuid
    old = origin.find()
    run_until(Cloning(origin.world.host, origin.plan(replace=True)).steps(), step)
    operations.recover(origin.world.host, uuid, start_monitor=lambda _: None)
    if REPLACED.index(step) < REPLACED.index("destroy"):
        assert origin.find() is old
        assert_cloned(origin)
    elif REPLACED.index(step) < REPLACED.index("restore"):
        origin.assert_as_before()
    else:
        assert origin.find() is not old
        assert_cloned(origin)


def test_a_clone_is_replaced_again_and_again(origin: Origin) -> None:
    made = [origin.clone(replace=True) for _ in range(4)]
    assert_cloned(origin)
    assert len({m.uuid for m in made}) == 1
    assert [m.replaced for m in made] == [False, True, True, True]
    assert made[1].disks != made[2].disks == made[0].disks


@pytest.fixture
def stuck(origin: Origin) -> Origin:
    """A clone that has replaced one whose disk xvda could not be deleted."""
    origin.clone()
    origin.world.fail("delete clone xvda", DiskError("busy", vdev="xvda"))
    (warning,) = origin.clone(replace=True).warnings
    assert "busy" in warning
    assert f"rm {origin.world.root}/images/xvda.vm1-a" in warning
    assert "xvdb" not in warning
    assert origin.children() == {"xvda.vm1-a", "xvda.vm1-a.r", "xvdb.vm1-a.r"}
    return origin


def test_an_old_disk_that_cannot_be_deleted_does_not_block_the_loop(stuck: Origin) -> None:
    for _ in range(3):
        assert stuck.clone(replace=True).warnings
    assert find_clone(CLONE)
    stuck.world.faults.clear()
    assert stuck.clone(replace=True).warnings == ()
    assert_cloned(stuck)


def test_an_old_disk_that_was_left_is_deleted_with_the_clone(stuck: Origin) -> None:
    stuck.world.faults.clear()
    delete(stuck)
    stuck.assert_as_before()


def test_an_old_disk_that_a_recovery_leaves_is_deleted_with_the_clone(stuck: Origin) -> None:
    found = find_clone(CLONE)
    assert found
    uuid = found.uuid
    run_until(Cloning(stuck.world.host, stuck.plan(replace=True)).steps(), "restore")
    operations.recover(stuck.world.host, uuid, start_monitor=lambda _: None)
    assert "xvda.vm1-a" in stuck.children()
    stuck.world.faults.clear()
    delete(stuck)
    stuck.assert_as_before()


def test_an_old_disk_that_is_in_use_is_found_before_a_delete(stuck: Origin) -> None:
    stuck.world.faults.clear()
    left = Path(stuck.world.root / "images" / "xvda.vm1-a")
    disk = Disk("xvdh", str(left), "raw")
    stuck.world.guest(disk, name="vm2", uuid=OTHER_UUID)
    with pytest.raises(Refused, match=r"domain vm2 uses .*xvda\.vm1-a"):
        delete(stuck)
    assert find_clone(CLONE)
    assert left.exists()


def test_an_old_disk_that_was_asked_for_and_is_left(stuck: Origin) -> None:
    """The new disk gets another name, whatever name was asked for."""
    left = str(stuck.world.root / "images" / "xvda.vm1-a")
    entry = find_clone(CLONE)
    assert entry
    asked = (DiskRequest("xvda", left, "qcow2"), DiskRequest("xvdb"))
    found = clone_plan._asked(stuck.request(disks=asked), stuck.plan(replace=True).chosen, entry)
    assert {vdev: request.path for vdev, request in found.items()} == {
        "xvda": f"{left}.r.r",
        "xvdb": "",
    }


def test_the_names_differ_from_those_in_a_directory_of_the_clone_before(origin: Origin) -> None:
    """A strategy of another package may make a directory for the disks of each clone."""
    child = CloneDisk("xvda", f"/srv/x.{CLONE}/disks/a.img", "raw", "snapshot", "rm")
    label = clone_plan._label(origin.request(), clone_entry(children=(child,)))
    assert label == f"{CLONE}.r"
    again = replace(child, target=f"/srv/x.{label}/disks/a.img")
    assert clone_plan._label(origin.request(), clone_entry(children=(again,))) == CLONE


def test_a_clone_that_is_off_is_not_forgotten_with_an_old_disk(stuck: Origin) -> None:
    found, entry = stuck.find(), find_clone(CLONE)
    assert found
    assert entry
    found.exists = False
    for disk in entry.children:
        Path(disk.target).unlink()
    with pytest.raises(AlreadyExists, match="there is a clone"):
        stuck.clone()


def test_a_clone_of_that_name_is_kept_without_replace(origin: Origin) -> None:
    origin.clone()
    with pytest.raises(AlreadyExists, match="there is a clone vm1-a"):
        origin.clone()
    assert_cloned(origin)


def test_a_strategy_that_cannot_clone_is_refused(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of another package; the others, which can, are closed, too."""

    class CanNot:
        """As a strategy was before there were clones."""

        kind, vdevs = "elder", ("xvdb",)

        def close(self) -> None:
            origin.world.events.append("close xvdb")

    def found(*words: Any) -> tuple[object, ...]:
        return (origin.world.strategies(*words)[0], CanNot())

    monkeypatch.setattr(clone_plan, "strategies", found)
    for make in (origin.clone, origin.preview):
        origin.world.events.clear()
        with pytest.raises(Refused) as caught:
            make()
        assert str(caught.value) == (
            "xvdb: the disk strategy 'elder' cannot make the disks of a clone: use a newer release "
            "of the strategy"
        )
        assert origin.world.events == ["close xvda", "close xvdb"]
        origin.assert_as_before()


def test_a_domain_that_is_no_clone_is_never_replaced(origin: Origin) -> None:
    with pytest.raises(Refused, match="holds vm1"):
        origin.clone("vm1", replace=True)
    origin.assert_as_before()


def test_a_clone_of_another_snapshot_is_not_replaced(origin: Origin) -> None:
    origin.clone()
    entry = find_clone(CLONE)
    assert entry
    CloneFile(entry.uuid).rewrite(replace(entry, origin=CLONE_UUID))
    with pytest.raises(Refused, match="delete it first"):
        origin.clone(replace=True)


def test_a_clone_of_an_earlier_snapshot_of_the_same_name_is_not_replaced(origin: Origin) -> None:
    """The snapshot was deleted, and taken again: the cfgfile has the same name, too."""
    origin.clone()
    entry = find_clone(CLONE)
    assert entry
    assert entry.created
    CloneFile(entry.uuid).rewrite(replace(entry, created=entry.created - 1))
    with pytest.raises(Refused, match="made from an earlier snapshot than that of"):
        origin.clone(replace=True)
    assert_cloned(origin)


def test_a_delete_removes_all_of_a_clone(origin: Origin) -> None:
    origin.clone()
    done = delete(origin)
    assert done.lines[0].startswith("destroyed vm1-a")
    assert len(done.lines) == 3
    origin.assert_as_before()
    with pytest.raises(DomainNotFound, match="no clone"):
        delete(origin)


def test_the_disks_of_a_clone_that_is_off_are_deleted(origin: Origin) -> None:
    origin.clone()
    found = origin.find()
    assert found
    found.exists = False
    delete(origin)
    origin.assert_as_before()


def test_a_delete_that_fails_is_finished_by_a_recovery(origin: Origin) -> None:
    uuid = origin.clone().uuid
    origin.world.fail("delete clone xvda", DiskError("busy", vdev="xvda"))
    with pytest.raises(NeedsAttention, match="busy") as caught:
        delete(origin)
    assert caught.value.finish == f"pyxlsnap snapshot-recover {uuid}"
    assert origin.find() is None
    assert origin.children() == {"xvda.vm1-a"}
    origin.world.faults.clear()
    operations.recover(origin.world.host, uuid)
    origin.assert_as_before()


def test_a_clone_whose_parts_were_deleted_by_hand_is_forgotten(origin: Origin) -> None:
    made = origin.clone()
    found = origin.find()
    assert found
    found.exists = False
    for disk in made.disks:
        (origin.world.root / disk.target).unlink()
    assert origin.clone().uuid == made.uuid
    assert_cloned(origin)


@pytest.fixture
def unmount(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Callable[[], None]]:
    """The directory of the disks is a mount point; call this to unmount it, and the result to
    mount it again.
    """
    images, away = world.root / "images", world.root / "away"
    mounted = {str(images)}
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) in {os.sep, *mounted})

    def mount() -> None:
        images.rmdir()
        away.rename(images)
        mounted.add(str(images))

    def unmount() -> Callable[[], None]:
        images.rename(away)
        images.mkdir()
        mounted.clear()
        return mount

    return unmount


@pytest.mark.parametrize("replace", [None, False, True])
def test_a_clone_whose_disks_are_not_mounted_is_not_forgotten(
    origin: Origin, unmount: Callable[[], Callable[[], None]], replace: bool | None
) -> None:
    origin.clone()
    found = origin.find()
    assert found
    found.exists = False
    mount = unmount()
    with pytest.raises(Refused, match="there is a clone" if replace is False else "mount it first"):
        delete(origin) if replace is None else origin.clone(replace=replace)
    assert find_clone(CLONE)
    mount()
    assert len(origin.children()) == 2
    delete(origin)
    origin.assert_as_before()


@pytest.mark.parametrize("replace", [None, False, True])
def test_a_clone_whose_disk_cannot_be_looked_at_is_not_forgotten(
    origin: Origin, monkeypatch: pytest.MonkeyPatch, replace: bool | None
) -> None:
    disk, found = origin.clone().disks[0], origin.find()
    assert found
    found.exists = False
    with monkeypatch.context() as patch:
        unreadable(patch, disk.target)
        with pytest.raises(Refused, match=f"{disk.target}: Input/output error"):
            delete(origin) if replace is None else origin.clone(replace=replace)
        assert find_clone(CLONE)
    delete(origin)
    origin.assert_as_before()


def test_an_old_disk_that_cannot_be_looked_at_does_not_cost_the_new_clone(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    origin.clone()
    with monkeypatch.context() as patch:
        patch.setattr(removal, "not_mounted", fails)
        made = origin.clone(replace=True)
    assert "Input/output error" in str(made.warnings)
    assert origin.find()
    delete(origin)
    origin.assert_as_before()


def test_a_recovery_does_not_take_a_disk_that_cannot_be_looked_at_for_a_deleted_one(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(Cloning(origin.world.host, (plan := origin.plan())).steps(), "disks")
    with monkeypatch.context() as patch:
        unreadable(patch, plan.children[0].target)
        with pytest.raises(NeedsAttention, match="Input/output error"):
            recover(origin)
    assert len(origin.children()) == 1
    recover(origin)
    origin.assert_as_before()


def test_a_recovery_does_not_take_a_disk_that_is_not_mounted_for_a_deleted_one(
    origin: Origin, unmount: Callable[[], Callable[[], None]]
) -> None:
    """After a reboot of the host, the recovery may run before the filesystem is mounted."""
    run_until(Cloning(origin.world.host, origin.plan()).steps(), "disks")
    mount = unmount()
    with pytest.raises(NeedsAttention, match="no filesystem is mounted at"):
        recover(origin)
    mount()
    recover(origin)
    origin.assert_as_before()


def test_a_volume_that_is_not_seen_may_be_inactive() -> None:
    made = CloneDisk("xvda", "/dev/vg-of-nobody/c1", "raw", "thin snapshot", "lvremove")
    volume = clone_entry(children=(made,), mounts=mounts((made,)))
    assert not is_gone(volume, made)
    assert not not_mounted(volume, made)


@pytest.mark.parametrize("paused", [False, True])
def test_a_clone_that_is_left_paused_has_run_no_instruction(origin: Origin, paused: bool) -> None:
    made = origin.clone(**words(paused=paused))
    assert made.state is (RunState.PAUSED if paused else RunState.RUNNING)
    found = origin.find()
    assert found
    assert (found.paused, found.has_run) == (paused, not paused)


@pytest.mark.parametrize(
    ("running", "paused", "saved", "after"),
    [
        (False, False, RunState.RUNNING, RunState.RUNNING),
        (False, False, RunState.PAUSED, RunState.PAUSED),
        (True, False, RunState.PAUSED, RunState.RUNNING),
        (False, True, RunState.RUNNING, RunState.PAUSED),
        (False, False, None, RunState.RUNNING),
        (False, True, None, RunState.PAUSED),
    ],
)
def test_the_state_afterwards(
    origin: Origin, running: bool, paused: bool, saved: RunState | None, after: RunState
) -> None:
    meta = origin.plan().saved.metadata
    assert meta
    said = replace(meta, state=saved) if saved else None
    assert state_after(running, paused, said) is after


def test_a_cancel_before_the_restore_is_undone(origin: Origin) -> None:
    cancel = Cancel()
    origin.world.on_event = lambda verb: cancel.set() if verb == "clone xvdb" else None
    with pytest.raises(Interrupted):
        origin.clone(cancel=cancel)
    origin.assert_as_before()


def test_an_undo_that_fails_leaves_the_journal(origin: Origin) -> None:
    origin.world.fail("restore", XenError("no", rc=-3, operation="restore"))
    origin.world.fail("delete clone xvdb", DiskError("busy", vdev="xvdb"))
    with pytest.raises(NeedsAttention, match="undoing it failed") as caught:
        origin.clone()
    assert "snapshot-recover" in caught.value.finish
    (entry,) = [Journal(p.stem).read() for p in paths.JOURNALS.glob("*.journal")]
    assert isinstance(entry, CloneEntry)
    with pytest.raises(Refused, match="was killed or failed"):
        origin.clone()
    origin.world.faults.clear()
    operations.recover(origin.world.host, entry.uuid)
    origin.assert_as_before()


@pytest.mark.parametrize("replace", [False, True])
def test_an_undo_that_fails_after_the_restore_is_finished_by_a_recovery(
    origin: Origin, replace: bool
) -> None:
    """The clone has never run: a recovery must not keep its disks."""
    if replace:
        origin.clone()
    origin.world.fail("unpause", XenError("no", rc=-3, operation="unpause"))
    origin.world.fail("delete clone xvdb", DiskError("busy", vdev="xvdb"))
    with pytest.raises(NeedsAttention, match="undoing it failed"):
        origin.clone(replace=replace)
    assert origin.find() is None
    (entry,) = [Journal(p.stem).read() for p in paths.JOURNALS.glob("*.journal")]
    assert entry
    origin.world.faults.clear()
    operations.recover(origin.world.host, entry.uuid)
    origin.assert_as_before()


def test_an_undo_that_is_killed_before_the_destroy_is_finished_by_a_recovery(
    origin: Origin,
) -> None:
    cloning = Cloning(origin.world.host, origin.plan())
    run_until(cloning.steps(), "unpause")
    cloning._note_undo()
    recover(origin)
    origin.assert_as_before()


def test_an_undo_that_cannot_be_noted_leaves_the_clone(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a recovery would take a clone without disks for one that has run."""
    rewrite = Journal.rewrite

    def full(journal: Journal, entry: Any) -> None:
        if entry.undo_begun:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rewrite(journal, entry)

    monkeypatch.setattr(Journal, "rewrite", full)
    origin.world.fail("unpause", XenError("no", rc=-3, operation="unpause"))
    with pytest.raises(NeedsAttention, match=r"undoing it failed: .*No space left"):
        origin.clone()
    origin.world.faults.clear()
    found = origin.find()
    assert found
    operations.recover(origin.world.host, found.uuid, start_monitor=lambda _: None)
    assert_cloned(origin)


NOT_OURS = "xvdb: is not the clone's: `rm xvdb.vm1-a` if nobody needs it"


def not_ours() -> LeftOver:
    return LeftOver("is not the clone's", vdev="xvdb", finish="rm xvdb.vm1-a")


def test_a_disk_that_another_program_made_is_left_and_named(origin: Origin) -> None:
    """Nothing of the clone is left, so neither a person nor a recovery has anything to do."""
    origin.world.fail("clone xvdb", AlreadyExists("xvdb.vm1-a exists", where="xvdb.vm1-a"))
    origin.world.fail("delete clone xvdb", not_ours())
    with pytest.raises(OperationFailed, match="vm1-a exists") as caught:
        origin.clone()
    assert type(caught.value) is OperationFailed
    assert caught.value.left == (NOT_OURS,)
    origin.assert_as_before()


def test_a_recovery_names_a_disk_that_another_program_made(origin: Origin) -> None:
    run_until(Cloning(origin.world.host, origin.plan()).steps(), "journal")
    origin.world.fail("delete clone xvdb", not_ours())
    assert NOT_OURS in recover(origin)
    origin.assert_as_before()


def test_a_disk_that_is_not_the_clones_does_not_hide_one_that_is(origin: Origin) -> None:
    run_until(Cloning(origin.world.host, origin.plan()).steps(), "disks")
    origin.world.fail("delete clone xvdb", not_ours())
    origin.world.fail("delete clone xvda", DiskError("busy", vdev="xvda"))
    with pytest.raises(NeedsAttention, match=r"xvda: busy.*not the clone's"):
        recover(origin)
    assert Journal(CLONE_UUID).read()


def test_only_one_operation_makes_a_clone_of_a_name(origin: Origin) -> None:
    def again(verb: str) -> None:
        if verb == "clone xvda":
            with pytest.raises(Busy):
                origin.clone()

    origin.world.on_event = again
    origin.clone()
    assert_cloned(origin)


def test_another_clone_is_made_meanwhile(origin: Origin) -> None:
    def another(verb: str) -> None:
        if verb == "clone xvdb":
            origin.world.on_event = lambda _: None
            origin.clone("vm1-b")

    origin.world.on_event = another
    origin.clone()
    assert origin.find("vm1-a")
    assert origin.find("vm1-b")
    assert len(origin.children()) == 4


def test_a_clone_is_made_while_an_operation_on_the_original_is_under_way(origin: Origin) -> None:
    lock = DomainLock(UUID, domain="vm1")
    try:
        origin.clone()
    finally:
        lock.release()
    assert_cloned(origin)


def test_the_snapshot_is_not_deleted_meanwhile(origin: Origin) -> None:
    def delete_it(verb: str) -> None:
        if verb == "clone xvda":
            with pytest.raises(Busy):
                operations.delete(origin.world.host, origin.cfg)

    origin.world.on_event = delete_it
    origin.clone()
    assert_cloned(origin)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a/b", "7", "a b", "a:b", "a.r", "x" * 65])
def test_a_name_that_no_clone_can_have(origin: Origin, name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        origin.clone(name)


def test_a_disk_that_the_snapshot_does_not_have(origin: Origin) -> None:
    with pytest.raises(UsageError, match="has no disk xvdz"):
        origin.clone(disks=(DiskRequest("xvdz", "/x", "raw"),))


def test_an_outdated_memory_file(origin: Origin) -> None:
    cloning = Cloning(origin.world.host, origin.plan())
    origin.memory_path.write_bytes(origin.memory_path.read_bytes() + b" ")
    with pytest.raises(OperationFailed, match="was changed while the operation was prepared"):
        cloning.run()


def test_the_plan_of_a_clone(origin: Origin) -> None:
    plan = origin.plan().summary()
    assert (plan.operation, plan.name, plan.domain, plan.uuid) == (
        "clone",
        SNAPSHOT,
        CLONE,
        CLONE_UUID,
    )
    assert [d.how for d in plan.disks] == ["overlay", "overlay"]
    origin.assert_as_before()


class TestADryRun:
    def test_describes_the_run_and_changes_nothing(self, origin: Origin) -> None:
        plan = origin.preview(paused=True)
        assert (plan.operation, plan.name, plan.domain, plan.state) == (
            *("clone", SNAPSHOT, CLONE),
            RunState.PAUSED,
        )
        assert (plan.memory_path, plan.cfgfile) == (str(origin.memory_path), str(origin.cfg))
        assert (plan.live, plan.seconds_suspended) == (False, None)
        assert origin.world.events[-2:] == ["close xvda", "close xvdb"]
        origin.assert_as_before()
        made = origin.clone(paused=True)  # the locks are free again
        assert [(d.vdev, d.target, d.how) for d in plan.disks] == [
            (d.vdev, d.target, d.how) for d in made.disks
        ]
        assert plan.state is made.state

    def test_of_a_replacement_leaves_the_clone(self, origin: Origin) -> None:
        made = origin.clone()
        old, before = origin.find(), origin.world.photo()
        plan = origin.preview(replace=True)
        assert plan.uuid == made.uuid
        assert {d.target for d in plan.disks}.isdisjoint(d.target for d in made.disks)
        assert origin.find() is old
        assert origin.world.photo() == before
        again = origin.clone(replace=True)
        assert [d.target for d in plan.disks] == [d.target for d in again.disks]

    def test_is_refused_as_the_run_would_be(self, origin: Origin) -> None:
        lock = lock_name(CLONE)
        with pytest.raises(Busy):
            origin.preview()
        lock.release()
        origin.clone()
        with pytest.raises(AlreadyExists, match="there is a clone vm1-a"):
            origin.preview()
        origin.world.kernel.unlink()
        with pytest.raises(Refused, match="vmlinuz"):
            origin.preview(replace=True)
        origin.world.kernel.touch()
        assert_cloned(origin)

    def test_is_risky_as_the_run_would_be(self, world: World) -> None:
        origin = Origin(world, nics=[NIC])
        with pytest.raises(Risky, match="vm1 has the MAC"):
            origin.preview()
        (warning,) = origin.preview(force=True).warnings
        assert "vm1 has the MAC" in warning
        origin.assert_as_before()

    def test_can_be_cancelled(self, origin: Origin) -> None:
        cancel = Cancel()
        cancel.set()
        with pytest.raises(Interrupted, match="the clone vm1-a was interrupted"):
            origin.preview(cancel=cancel)
        origin.clone()
        assert_cloned(origin)


def test_a_delete_that_is_cancelled_before_it_has_begun_changes_nothing(origin: Origin) -> None:
    origin.clone()
    cancel = Cancel()
    cancel.set()
    with pytest.raises(Interrupted):
        delete(origin, cancel=cancel)
    assert_cloned(origin)


@pytest.mark.parametrize("replace", [False, True])
def test_a_disk_on_which_an_image_stands_is_found_before_the_destroy(
    origin: Origin, replace: bool
) -> None:
    origin.clone()
    images = origin.world.root / "images"
    below, above = str(images / f"xvda.{CLONE}"), str(images / "above.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", below, "-F", "raw", above, "1M")
    with pytest.raises(Refused, match=r"above\.qcow2 stands on its disk"):
        origin.clone(replace=True) if replace else delete(origin)
    assert_cloned(origin)


@pytest.mark.parametrize("replace", [False, True])
def test_a_disk_that_another_domain_uses_is_kept(origin: Origin, replace: bool) -> None:
    origin.clone()
    disk = Disk("xvdh", str(origin.world.root / "images" / f"xvda.{CLONE}"), "raw")
    origin.world.guest(disk, name="vm2", uuid=OTHER_UUID)
    with pytest.raises(Refused, match=r"xvda: domain vm2 uses .*, too: detach it there"):
        origin.clone(replace=True) if replace else delete(origin)
    assert_cloned(origin)


@pytest.mark.parametrize("replace", [False, True])
def test_a_disk_with_disk_snapshots_inside_is_kept(origin: Origin, replace: bool) -> None:
    """A snapshot of the clone has them there by default."""
    origin.clone()
    disk = str(origin.world.root / "images" / f"xvda.{CLONE}")
    qemu_img("create", "-q", "-f", "qcow2", disk, "1M")
    qemu_img("snapshot", "-c", "mine", disk)
    with pytest.raises(Refused, match=r"disk snapshots inside its disk .*xvda\.vm1-a"):
        origin.clone(replace=True) if replace else delete(origin)
    assert_cloned(origin)
    qemu_img("snapshot", "-d", "mine", disk)
    delete(origin)
    origin.assert_as_before()


def test_a_disk_that_was_deleted_with_its_directory_is_no_failure(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.clone()
    (entry,) = all_clones()
    lost = replace(entry.children[0], target=str(origin.world.root / "lost" / "disk"))
    children = (lost, *entry.children[1:])
    there = {lost.vdev: mounts([lost])[lost.vdev]}
    CloneFile(entry.uuid).rewrite(replace(entry, children=children, mounts=there))
    asked: list[CloneDisk] = []

    def delete_disks(_: object, disks: Sequence[CloneDisk], __: object) -> list[str]:
        asked.extend(disks)
        return []

    monkeypatch.setattr(FakeStrategy, "delete_clone", delete_disks)
    delete(origin)
    assert lost not in asked
    assert asked == [*children[1:]]


def test_what_a_guest_writes_to_a_raw_disk_is_no_disk_snapshot(origin: Origin) -> None:
    origin.clone()
    entry, disk = find_clone(CLONE), str(origin.world.root / "images" / f"xvda.{CLONE}")
    assert entry
    children = tuple(replace(child, format="raw") for child in entry.children)
    CloneFile(entry.uuid).rewrite(replace(entry, children=children))
    qemu_img("create", "-q", "-f", "qcow2", disk, "1M")
    qemu_img("snapshot", "-c", "mine", disk)
    delete(origin)
    origin.assert_as_before()


@pytest.mark.parametrize("replace", [False, True])
def test_a_clone_that_was_renamed_is_kept(origin: Origin, replace: bool) -> None:
    origin.clone()
    found = origin.find()
    assert found
    found.present = "evidence"
    with pytest.raises(Refused, match="is called evidence now, and is kept"):
        origin.clone(replace=True) if replace else delete(origin)
    assert_cloned(origin)
    found.present = CLONE
    delete(origin)
    origin.assert_as_before()


def test_a_clone_that_is_renamed_while_the_disks_are_made_is_kept(origin: Origin) -> None:
    origin.clone()
    old, before = origin.find(), origin.world.photo()
    assert old

    def renames(verb: str) -> None:
        if verb == "clone xvdb":
            old.present = "evidence"

    origin.world.on_event = renames
    with pytest.raises(OperationFailed, match=r"is called evidence now.*everything is as before"):
        origin.clone(replace=True)
    assert origin.find() is old
    assert origin.world.photo() == before


def test_a_replacement_is_not_cancelled_once_the_old_clone_is_destroyed(origin: Origin) -> None:
    origin.clone()
    cancel = Cancel()
    origin.world.on_event = lambda verb: cancel.set() if verb == "destroy" else None
    assert origin.clone(replace=True, cancel=cancel).replaced
    assert_cloned(origin)


def test_what_changes_while_the_disks_are_made_is_found_before_the_destroy(origin: Origin) -> None:
    """A copy takes minutes: somebody moves the kernel meanwhile."""
    origin.clone()
    old, before, kernel = origin.find(), origin.world.photo(), origin.world.kernel

    def moves(verb: str) -> None:
        if verb == "clone xvdb":
            kernel.unlink()

    origin.world.on_event = moves
    with pytest.raises(OperationFailed, match="everything is as before"):
        origin.clone(replace=True)
    kernel.touch()
    assert origin.find() is old
    assert origin.world.photo() == before


def test_a_clone_that_is_off_is_replaced(origin: Origin) -> None:
    uuid = origin.clone().uuid
    old = origin.find()
    assert old
    old.exists = False
    made = origin.clone(replace=True)
    assert (made.uuid, made.replaced) == (uuid, True)
    assert_cloned(origin)


@pytest.mark.parametrize("force", [False, True])
def test_two_clones_with_one_mac_are_not_made_at_once(world: World, force: bool) -> None:
    """Neither is a domain yet when the other one looks."""
    origin = Origin(world, nics=[NIC])
    origin.guest.exists = False  # nobody has the snapshot's MAC
    with closing(origin.plan()):
        if force:
            origin.clone("vm1-b", force=True)
        else:
            with pytest.raises(Risky, match=r"with the MAC .* is being made"):
                origin.clone("vm1-b")
    assert bool(origin.find("vm1-b")) is force
    if not force:
        origin.clone("vm1-b")


def test_a_mac_that_another_domain_has_is_a_risk(world: World) -> None:
    origin = Origin(world, nics=[NIC])
    with pytest.raises(Risky, match="vm1 has the MAC"):
        origin.clone()
    origin.clone(force=True)
    assert origin.find()
