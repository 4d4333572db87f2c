"""Deleting a snapshot: exactly what its cfgfile names, whatever fails or is killed on the way."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pyxlsnap import cfgfile
from pyxlsnap.cancel import Cancel
from pyxlsnap.clone_file import IN_USE
from pyxlsnap.create.sequence import Creation
from pyxlsnap.delete import operation
from pyxlsnap.delete.operation import read_cfgfile
from pyxlsnap.delete.sequence import Deletion
from pyxlsnap.errors import (
    BadMemoryFile,
    Busy,
    ConfigError,
    DiskError,
    Interrupted,
    NeedsAttention,
    OperationFailed,
    PyxlsnapError,
    Refused,
    XenError,
)
from pyxlsnap.guest import saved
from pyxlsnap.journal import Journal
from pyxlsnap.linux import stalled
from pyxlsnap.linux.locks import DomainLock, SharedLock
from pyxlsnap.model import DiskRequest, SnapshotConfig
from pyxlsnap.request import DeleteRequest
from pyxlsnap.results import Progress, Recovered, Snapshot
from tests.unit.support import operations
from tests.unit.support.faults import FailsAtStep, kill, run_until
from tests.unit.support.guest import FakeGuest
from tests.unit.support.memory_files import xl_file
from tests.unit.support.operations import delete, plan_delete
from tests.unit.support.unreadable import failing, reads_fail, unreadable
from tests.unit.support.values import OTHER_UUID, UUID
from tests.unit.support.world import World

VDEVS = ("xvda", "xvdb")
STEPS = [name for name, _ in Deletion.__new__(Deletion).steps()]
#: the steps before which the snapshot is whole
HARMLESS = ("journal", "free disk snapshots")
VERBS = [f"{verb} {vdev}" for verb in ("free", "delete") for vdev in VDEVS]


class Killed(BaseException):
    """The process is killed here."""


class FaultyDeletion(FailsAtStep, Deletion):
    """Fails at one of its steps."""


@dataclass
class Case:
    """A guest with two snapshots; the first is to be deleted."""

    world: World
    guest: FakeGuest
    first: Snapshot
    second: Snapshot

    @property
    def cfg(self) -> Path:
        return Path(self.first.cfgfile)

    @property
    def is_whole(self) -> bool:
        """Whether the first snapshot can be reverted to."""
        there = [(vdev, "first") in self.world.storage.snapshots for vdev in VDEVS]
        files = [self.cfg.exists(), Path(self.first.memory_path).exists()]
        assert all(there + files) or not self.cfg.exists(), "a cfgfile of what is not whole"
        return all(there + files)

    def assert_deleted(self) -> None:
        """The first snapshot is gone, and nothing else is changed."""
        files = {p for p in self.world.directory.rglob("*") if p.is_file()}
        assert files == {Path(self.second.cfgfile), Path(self.second.memory_path)}
        assert set(self.world.storage.snapshots) == {(vdev, "second") for vdev in VDEVS}
        assert Journal(UUID).read() is None

    def recover(self) -> Recovered:
        return operations.recover(self.world.host, UUID)


@pytest.fixture
def case(world: World) -> Case:
    guest = world.guest(*map(world.image, VDEVS))
    first, second = (
        operations.create(world.host, "vm1", SnapshotConfig(name=name))
        for name in ("first", "second")
    )
    return Case(world, guest, first, second)


@pytest.mark.parametrize("state", ["running", "paused", "off", "crashed"])
def test_exactly_what_the_cfgfile_names(case: Case, state: str) -> None:
    case.guest.paused = state == "paused"
    case.guest.exists = state != "off"
    case.guest.shutdown_reason = "crash" if state == "crashed" else ""
    done = delete(case.world.host, case.cfg)
    case.assert_deleted()
    assert (done.name, done.domain, done.uuid, done.cfgfile) == (
        *("first", "vm1", UUID),
        str(case.cfg),
    )
    assert done.lines == (
        f"removed {case.cfg}",
        f"removed {case.first.memory_path}",
        "deleted first of xvda",
        "deleted first of xvdb",
    )
    assert case.guest.exists == (state != "off")


def test_the_other_snapshot_can_be_reverted_to(case: Case) -> None:
    delete(case.world.host, case.cfg)
    second = Path(case.second.cfgfile)
    operations.revert(case.world.host, "vm1", cfgfile.read(second), second)


def test_a_cfgfile_that_cannot_be_looked_at(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (errno.EACCES, errno.EIO):
        with monkeypatch.context() as patch:
            unreadable(patch, case.cfg, number)
            with pytest.raises(ConfigError, match=f"cannot be read: {os.strerror(number)}"):
                read_cfgfile(DeleteRequest(cfgfile=str(case.cfg)))


def test_another_cfgfile_that_cannot_be_read_may_name_what_stands_on_a_disk_snapshot(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = case.world.photo()
    for path in (Path(case.second.cfgfile), case.cfg.parent):
        with monkeypatch.context() as patch:
            unreadable(patch, path)
            patch.setattr(os, "listdir", failing(os.listdir, str(case.cfg.parent), errno.EIO))
            with pytest.raises((ConfigError, Refused), match="Input/output error"):
                delete(case.world.host, case.cfg)
    assert case.world.photo() == before


def test_it_is_the_cfgfile_that_goes_first(case: Case) -> None:
    seen: list[bool] = []
    case.world.on_event = lambda verb: seen.append(case.cfg.exists() == verb.startswith("free"))
    steps: list[str] = []
    delete(case.world.host, case.cfg, on_progress=lambda p: steps.append(p.phase))
    assert steps == ["checking", *STEPS]
    assert STEPS.index("cfgfile") < STEPS.index("memory file") < STEPS.index("disk snapshots")
    assert all(seen[-4:])


def test_a_part_that_is_not_there_counts_as_deleted(case: Case) -> None:
    del case.world.storage.snapshots["xvda", "first"]
    assert len(delete(case.world.host, case.cfg).lines) == 3
    case.assert_deleted()


def test_only_the_disks_that_the_cfgfile_names(case: Case) -> None:
    config = cfgfile.read(case.cfg)
    case.cfg.write_text(cfgfile.render(replace(config, disks=(DiskRequest("xvdb"),))))
    delete(case.world.host, case.cfg)
    assert ("xvda", "first") in case.world.storage.snapshots
    assert ("xvdb", "first") not in case.world.storage.snapshots


def test_a_domain_that_has_another_uuid_by_now(case: Case) -> None:
    """Its configuration has no uuid, and it was started again."""
    case.guest.uuid = OTHER_UUID
    lock = DomainLock(OTHER_UUID, domain="vm1")
    with pytest.raises(Busy):
        delete(case.world.host, case.cfg)
    lock.release()
    delete(case.world.host, case.cfg)
    case.assert_deleted()


# Refused


class TestRefused:
    def refusal(self, case: Case, *, by: type[PyxlsnapError] = Refused) -> str:
        before, storage = case.world.photo(), dict(case.world.storage.snapshots)
        with pytest.raises(by) as caught:
            delete(case.world.host, case.cfg)
        assert case.world.photo() == before
        assert case.world.storage.snapshots == storage
        assert Journal(UUID).path.exists() == ("snapshot-recover" in str(caught.value))
        return str(caught.value)

    def test_a_cfgfile_that_is_not_there(self, case: Case) -> None:
        case.cfg.unlink()
        assert "No such file" in self.refusal(case, by=ConfigError)

    def test_a_memory_file_that_is_not_there(self, case: Case) -> None:
        """It alone says which disks the snapshot is of."""
        Path(case.first.memory_path).unlink()
        assert "No such file" in self.refusal(case, by=BadMemoryFile)

    def test_a_memory_file_that_pyxlsnap_did_not_make(self, case: Case) -> None:
        Path(case.first.memory_path).write_bytes(
            xl_file(case.guest.configuration.json.encode() + b"\0")
        )
        assert "was not made by pyxlsnap, which deletes only what it made" in self.refusal(case)

    def test_a_cfgfile_with_the_name_of_another_snapshot(self, case: Case) -> None:
        config = cfgfile.read(case.cfg)
        case.cfg.write_text(cfgfile.render(replace(config, name="second")))
        assert "belongs to snapshot 'first'" in self.refusal(case, by=ConfigError)

    def test_a_cfgfile_that_names_what_is_not_in_the_snapshot(self, case: Case) -> None:
        """A file of the user's, for example."""
        config = cfgfile.read(case.cfg)
        strange = (DiskRequest("xvda"), DiskRequest("xvdb", "/srv/precious", "raw"))
        case.cfg.write_text(cfgfile.render(replace(config, disks=strange)))
        assert "has no such disk snapshot of xvdb" in self.refusal(case, by=ConfigError)

    def test_a_domain_in_a_state_in_which_its_qemu_does_not_write(self, case: Case) -> None:
        case.guest.dying = True
        assert "is being destroyed" in self.refusal(case)
        case.guest.dying, case.guest.suspended = False, True
        assert "is suspended: resume it" in self.refusal(case)

    def test_a_disk_that_another_domain_has(self, case: Case) -> None:
        case.guest.exists = False
        disks = case.guest.configuration.disks
        case.world.guest(*disks, name="other", uuid=OTHER_UUID)
        assert "domain other uses" in self.refusal(case)

    def test_a_disk_that_its_strategy_refuses(self, case: Case) -> None:
        case.world.fail("check_delete", DiskError("no", vdev="xvda"))
        assert self.refusal(case) == "xvda: no"
        assert case.world.events[-2:] == ["close xvda", "close xvdb"]

    def test_a_strategy_of_another_package_that_cannot_delete(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("check_delete", "prepare_delete", "delete"):
            monkeypatch.delattr("tests.unit.support.strategy.FakeStrategy." + name)
        assert "the disk strategy 'fake' cannot delete disk snapshots" in self.refusal(case)

    def test_another_operation_on_the_domain(self, case: Case) -> None:
        lock = DomainLock(UUID, domain="vm1")
        assert "another snapshot operation on vm1" in self.refusal(case, by=Busy)
        lock.release()

    def test_after_a_create_that_was_killed(self, case: Case) -> None:
        plan = operations.plan_create(case.world.host, case.guest, SnapshotConfig(name="third"))
        kill(Creation(plan), "journal")
        assert "a create of vm1 (snapshot third) was killed" in self.refusal(case)


# Failures


FAULTS: dict[str, Callable[[], BaseException]] = {
    "error": lambda: XenError("no", rc=-3, operation="some call"),
    "disk": lambda: DiskError("no", vdev="xvda"),
    "full": lambda: OSError(28, "No space left on device", "/some/file"),
    "bug": lambda: RuntimeError("a bug"),
    "ctrl-c": KeyboardInterrupt,
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_fault_at_any_step(case: Case, step: str, when: str, fault: str) -> None:
    def fail() -> None:
        raise FAULTS[fault]()

    deletion = FaultyDeletion(plan_delete(case.world.host, case.cfg))
    deletion.at, deletion.when, deletion.fault = step, when, fail
    before = case.world.photo()
    with pytest.raises(OperationFailed) as caught:
        deletion.run()
    if step in HARMLESS or (step, when) == ("cfgfile", "before"):
        assert not isinstance(caught.value, NeedsAttention)
        assert isinstance(caught.value, Interrupted) == (fault == "ctrl-c")
        assert str(caught.value).endswith("nothing was deleted, and the snapshot is whole")
        assert case.world.photo() == before
        assert Journal(UUID).read() is None
        assert case.is_whole
        return
    assert isinstance(caught.value, NeedsAttention)
    assert caught.value.finish == f"pyxlsnap snapshot-recover {UUID}"
    assert caught.value.left
    assert not case.is_whole
    recovered = case.recover()
    assert recovered.lines[0] == "deleted the snapshot first of vm1"
    assert not recovered.rolled_back
    assert recovered.deleted
    case.assert_deleted()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_fails(case: Case, verb: str, after: bool) -> None:
    case.world.fail(verb, DiskError("no", vdev=verb.split()[1]), after=after)
    with pytest.raises(OperationFailed, match="no") as caught:
        delete(case.world.host, case.cfg)
    case.world.faults.clear()
    if verb.startswith("free"):
        assert case.is_whole
        assert Journal(UUID).read() is None
    else:
        assert isinstance(caught.value, NeedsAttention)
        other = next(vdev for vdev in VDEVS if vdev not in verb)
        assert (other, "first") not in case.world.storage.snapshots
    delete(case.world.host, case.cfg)  # the same call, and the cfgfile may be gone
    case.assert_deleted()


def test_it_fails_again_and_is_finished_later(case: Case) -> None:
    case.world.fail("delete xvda", DiskError("no", vdev="xvda"))
    for _ in range(2):
        with pytest.raises(NeedsAttention):
            delete(case.world.host, case.cfg)
        with pytest.raises(NeedsAttention):
            case.recover()
    with pytest.raises(Refused, match=r"a delete of vm1 \(snapshot first\) was killed or failed"):
        operations.create(case.world.host, "vm1", SnapshotConfig(name="third"))
    second = Path(case.second.cfgfile)
    with pytest.raises(Refused, match="snapshot-recover"):
        operations.revert(case.world.host, "vm1", cfgfile.read(second), second)
    with pytest.raises(Refused, match="snapshot-recover"):
        delete(case.world.host, second)
    case.world.faults.clear()
    case.recover()
    case.assert_deleted()


def assert_finished_when_it_is_back(
    case: Case, monkeypatch: pytest.MonkeyPatch, fake: tuple[object, str, object], says: str
) -> None:
    """A delete fails while ``fake`` is in the place of a module's function, and loses nothing."""
    deletion = Deletion(plan_delete(case.world.host, case.cfg))
    with monkeypatch.context() as patch:
        patch.setattr(*fake)
        with pytest.raises(NeedsAttention, match=says):
            deletion.run()
    assert Path(case.first.memory_path).exists()
    case.recover()
    case.assert_deleted()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
@pytest.mark.parametrize("what", ["cfgfile", "memory_path"])
def test_a_file_whose_storage_fails_does_not_count_as_deleted(
    case: Case, monkeypatch: pytest.MonkeyPatch, what: str, number: int
) -> None:
    def fails(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    reads = {"cfgfile": (cfgfile, "_content", fails), "memory_path": (saved, "open_regular", fails)}
    assert_finished_when_it_is_back(case, monkeypatch, reads[what], "cannot be read")


def test_a_memory_file_of_which_a_read_fails_does_not_either(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    deletion = Deletion(plan_delete(case.world.host, case.cfg))
    with monkeypatch.context() as patch:
        reads_fail(patch, Path(case.first.memory_path))
        with pytest.raises(NeedsAttention, match="cannot be read"):
            deletion.run()
    case.recover()
    case.assert_deleted()


@pytest.mark.parametrize("what", ["cfgfile", "memory_path"])
def test_a_file_whose_server_falls_silent_does_not_count_as_deleted(
    case: Case, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def no_answer(path: Path) -> None:
        if path == Path(getattr(case.first, what)):
            raise TimeoutError(errno.ETIMEDOUT, "no answer within 5 s", str(path))

    silent = (stalled, "stat_within", no_answer)
    assert_finished_when_it_is_back(case, monkeypatch, silent, "see whether its server runs")


def test_one_that_cannot_be_finished_now(case: Case) -> None:
    run_until(Deletion(plan_delete(case.world.host, case.cfg)).steps(), "memory file")
    case.guest.suspended = True
    with pytest.raises(NeedsAttention, match=r"was not finished: vm1 is suspended: .*; then run"):
        case.recover()
    case.guest.suspended = False
    case.recover()
    case.assert_deleted()


def test_one_that_is_finished_waits_for_no_clone(case: Case) -> None:
    """A clone that is being made reads the snapshot."""
    run_until(Deletion(plan_delete(case.world.host, case.cfg)).steps(), "memory file")
    lock = SharedLock(UUID, domain=str(case.cfg), kind=IN_USE)
    with pytest.raises(NeedsAttention, match="was not finished"):
        case.recover()
    lock.release()
    case.recover()
    case.assert_deleted()


# Cancelled and killed


@pytest.mark.parametrize("phase", ["checking", *STEPS])
def test_it_can_be_cancelled_until_something_is_deleted(case: Case, phase: str) -> None:
    cancel = Cancel()

    def at(progress: Progress) -> None:
        if progress.phase == phase:
            cancel.set()

    if phase in ("memory file", "disk snapshots", "cfgfile"):
        delete(case.world.host, case.cfg, cancel=cancel, on_progress=at)
        case.assert_deleted()
        return
    with pytest.raises(Interrupted):
        delete(case.world.host, case.cfg, cancel=cancel, on_progress=at)
    assert case.is_whole
    assert Journal(UUID).read() is None


@pytest.mark.parametrize("finish", ["recover", "delete"])
@pytest.mark.parametrize("step", STEPS)
def test_one_that_was_killed_after_any_step(case: Case, step: str, finish: str) -> None:
    run_until(Deletion(plan_delete(case.world.host, case.cfg)).steps(), step)
    assert case.is_whole == (step in HARMLESS)
    if finish == "delete":
        delete(case.world.host, case.cfg)
        case.assert_deleted()
        return
    recovered = case.recover()
    if step in HARMLESS:
        assert recovered.lines == ("nothing was deleted: the snapshot first of vm1 is whole",)
        assert recovered.rolled_back
        assert case.is_whole
    else:
        case.assert_deleted()
    assert Journal(UUID).read() is None
    assert case.recover().lines == ()


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("verb", VERBS)
def test_one_that_was_killed_in_a_step(case: Case, verb: str, after: bool, crash: bool) -> None:
    case.world.fail(verb, Killed(), after=after)
    with pytest.raises(Killed):
        run_until(Deletion(plan_delete(case.world.host, case.cfg)).steps(), "")
    case.world.faults.clear()
    case.guest.exists = not crash
    whole = case.is_whole
    assert whole == verb.startswith("free")
    case.recover()
    if whole:
        assert case.is_whole
        delete(case.world.host, case.cfg)
    case.assert_deleted()


def test_another_file_that_has_the_cfgfiles_name_by_now_stays(case: Case) -> None:
    run_until(Deletion(plan_delete(case.world.host, case.cfg)).steps(), "memory file")
    case.cfg.write_text("name = 'other'\n")
    Path(case.first.memory_path).write_text("precious")
    case.recover()
    assert case.cfg.exists()
    assert Path(case.first.memory_path).read_text() == "precious"
    assert not [key for key in case.world.storage.snapshots if key[1] == "first"]


def test_a_qemu_img_that_still_works_is_waited_for(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until(Deletion(plan_delete(case.world.host, case.cfg)).steps(), "journal")
    monkeypatch.setattr(operation, "_QUIET_S", 0.0)
    monkeypatch.setattr(operation, "holders", lambda _: [1])
    monkeypatch.setattr(operation, "process_name", lambda _: "qemu-img")
    with pytest.raises(NeedsAttention, match="qemu-img still works on the disks"):
        case.recover()
    monkeypatch.setattr(operation, "process_name", lambda _: "qemu-system-x86")
    assert case.recover().rolled_back


def test_the_directories_that_the_cfgfiles_name(case: Case) -> None:
    """What stands on a frozen file may be in any of them."""
    seen: list[tuple[Path, ...]] = []
    strategies = case.world.strategies

    def noting(disks: object, task: object, recorded: object) -> object:
        seen.append(task.looks_in)  # type: ignore[attr-defined]
        seen.append(tuple(task.attached))  # type: ignore[attr-defined]
        return strategies(disks, task, recorded)  # type: ignore[arg-type]

    other = SnapshotConfig(name="x", disks=(DiskRequest("xvda", "/srv/there/x", "qcow2"),))
    case.cfg.with_name("other.cfg").write_text(cfgfile.render(other))
    case.cfg.with_name("bad.cfg").write_text("][")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyxlsnap.delete.plan.strategies", noting)
        delete(case.world.host, case.cfg)
    assert seen[0] == (Path("/srv/there"),)
    assert sorted(map(str, seen[1])) == ["xvda", "xvdb"]
