"""A guest whose QEMU does not answer: the resume is tried until QEMU does."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyxlsnap import cfgfile
from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import DiskError, NeedsAttention, OperationFailed, PyxlsnapError, XenError
from pyxlsnap.guest import resume
from pyxlsnap.guest.dom0_memory import Room
from pyxlsnap.guest.resume import patiently
from pyxlsnap.journal import CreateEntry, Entry, Journal
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.results import Snapshot
from tests.unit.support import operations
from tests.unit.support.guest import FakeGuest
from tests.unit.support.values import UUID
from tests.unit.support.world import World

RESUME = "libxl_domain_resume"
LOG = ("libxl: Domain 1:Failed to resume device model: rc=-3",)
NO_ANSWER = XenError("no answer", rc=-9, operation=RESUME)
NO_CONNECTION = XenError("no answer", rc=-3, operation=RESUME, log=LOG)
REFUSED = XenError("broken", rc=-28, operation=RESUME, log=LOG)
FAILED = XenError("broken", rc=-3, operation=RESUME, log=("xc_domain_resume failed",))


@pytest.fixture
def qemu() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.fixture
def guest(world: World, qemu: "subprocess.Popen[bytes]") -> FakeGuest:
    """It has a QEMU from the suspend on: the checks would ask it."""
    found = world.guest(world.image("xvda"), world.image("xvdb"))

    def on_event(verb: str) -> None:
        if verb == "suspend":
            found.device_model = qemu.pid
        if verb == "destroy":
            qemu.kill()

    world.on_event = on_event
    return found


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What happens between one try and the next, in this order; nothing after the last."""
    found: list[Callable[[], None]] = []
    monkeypatch.setattr(time, "sleep", lambda _: found.pop(0)() if found else None)
    monkeypatch.setattr(resume, "_TELL_EVERY_S", 0.01)
    return found


def answers(world: World) -> Callable[[], None]:
    return lambda: world.faults.clear()


def revert(world: World, entry: CreateEntry) -> None:
    operations.revert(
        world.host, UUID, cfgfile.read(Path(entry.way_back)), Path(entry.way_back), force=True
    )


def create(world: World, **options: Any) -> Snapshot:
    return operations.create(world.host, "vm1", SnapshotConfig(name="snap"), **options)


def test_a_late_answer_is_waited_for(
    world: World, guest: FakeGuest, naps: list[Callable[[], None]]
) -> None:
    world.fail("resume", NO_ANSWER)
    naps += [
        lambda: None,
        lambda: world.fail("resume", NO_CONNECTION),
        lambda: None,
        answers(world),
    ]
    made = create(world)
    assert guest.runs
    assert not naps
    assert Path(made.memory_path).exists()
    assert Journal(UUID).read() is None


def test_it_is_told(world: World, guest: FakeGuest, naps: list[Callable[[], None]]) -> None:
    told: list[str] = []
    world.fail("resume", NO_ANSWER)

    def until_told() -> None:
        if "waiting for QEMU to answer" in told:
            world.faults.clear()
        else:
            naps.append(until_told)

    naps.append(until_told)
    create(world, on_progress=lambda progress: told.append(progress.phase))
    assert guest.runs


def test_a_cancel_lets_the_caller_go_and_the_snapshot_is_undone(
    world: World, guest: FakeGuest, naps: list[Callable[[], None]]
) -> None:
    cancel, left = Cancel(), list[PyxlsnapError]()
    world.fail("resume", NO_ANSWER)

    def until_left() -> None:
        if left:
            world.faults.clear()
        else:
            naps.append(until_left)

    naps += [cancel.set, until_left]
    with pytest.raises(PyxlsnapError, match="everything is as before"):
        create(world, cancel=cancel, leave=left.append)
    (error,) = left
    assert isinstance(error, NeedsAttention)
    assert error.left == ("vm1 is suspended",)
    assert guest.runs
    assert not world.storage.snapshots


def test_the_undo_waits_too(world: World, guest: FakeGuest, naps: list[Callable[[], None]]) -> None:
    world.fail("create xvdb", XenError("broken", rc=-3))
    world.fail("resume", NO_ANSWER)
    naps += [lambda: None, answers(world)]
    with pytest.raises(OperationFailed, match="everything is as before"):
        create(world)
    assert guest.runs


@pytest.mark.parametrize("how", ["ended", "answered", "failed"])
def test_it_ends_when_qemu_has_ended_or_answered(
    world: World,
    guest: FakeGuest,
    naps: list[Callable[[], None]],
    qemu: "subprocess.Popen[bytes]",
    how: str,
) -> None:
    world.fail("resume", NO_ANSWER)

    def end() -> None:
        qemu.kill()
        qemu.wait()

    def answer() -> None:
        world.fail("resume", REFUSED if how == "answered" else FAILED)

    naps += [lambda: None, end if how == "ended" else answer]
    with pytest.raises(NeedsAttention, match="nothing was deleted") as caught:
        create(world)
    assert guest.suspended
    entry = Journal(UUID).read()
    assert isinstance(entry, CreateEntry)
    assert caught.value.finish == f"pyxlsnap snapshot-revert {UUID} {entry.way_back}"


def test_a_guest_without_qemu_is_not_waited_for(world: World, guest: FakeGuest) -> None:
    world.on_event = lambda _: None
    world.fail("resume", NO_ANSWER)
    with pytest.raises(NeedsAttention):
        create(world)


def test_an_interrupt_ends_it(
    guest: FakeGuest, naps: list[Callable[[], None]], qemu: "subprocess.Popen[bytes]"
) -> None:
    guest.device_model = qemu.pid

    def fail() -> None:
        raise NO_ANSWER

    def interrupt() -> None:
        raise KeyboardInterrupt

    naps.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        patiently(guest, fail, lambda _: None)


class TestJournalOfASuspendedGuest:
    """It stays, and a recovery or a revert to the way back ends it."""

    @pytest.fixture
    def left(self, world: World, guest: FakeGuest) -> NeedsAttention:
        """The guest is suspended, with its disk snapshots."""
        world.fail("resume", REFUSED)
        with pytest.raises(NeedsAttention) as caught:
            create(world)
        return caught.value

    @pytest.fixture
    def left_early(self, world: World, guest: FakeGuest) -> NeedsAttention:
        """The guest is suspended, without any."""
        world.fail("create xvda", REFUSED)
        world.fail("resume", REFUSED)
        with pytest.raises(NeedsAttention) as caught:
            create(world)
        world.faults.pop(("create xvda", "before"))
        return caught.value

    def entry(self) -> CreateEntry:
        entry = Journal(UUID).read()
        assert isinstance(entry, CreateEntry)
        return entry

    def test_a_recovery_tries_again(
        self, world: World, guest: FakeGuest, left: NeedsAttention
    ) -> None:
        with pytest.raises(NeedsAttention, match="cannot be resumed"):
            operations.recover(world.host, UUID)
        way_back = self.entry().way_back
        world.faults.clear()
        world.events.clear()
        recovered = operations.recover(world.host, UUID)
        assert recovered.lines == ("resumed vm1", f"the snapshot snap is complete: see {way_back}")
        assert guest.runs
        assert {"finish xvda", "finish xvdb"} <= set(world.events)
        assert set(world.storage.snapshots) == {("xvda", "snap"), ("xvdb", "snap")}
        assert Journal(UUID).read() is None

    @pytest.mark.parametrize("disks", [True, False])
    def test_a_recovery_that_cannot_resume_it_names_the_way_back(
        self, world: World, guest: FakeGuest, request: pytest.FixtureRequest, disks: bool
    ) -> None:
        request.getfixturevalue("left" if disks else "left_early")
        entry = self.entry()
        with pytest.raises(NeedsAttention, match="nothing was deleted") as caught:
            operations.recover(world.host, UUID)
        force = "" if disks else " --force"
        command = f"pyxlsnap snapshot-revert {UUID} {entry.way_back}{force}"
        assert caught.value.finish == command
        assert f"`{command}` restores vm1" in str(caught.value)
        assert "killed" not in str(caught.value)
        Path(entry.way_back).rename(world.root / "moved")
        with pytest.raises(NeedsAttention, match="nothing was deleted") as caught:
            operations.recover(world.host, UUID)
        assert caught.value.finish == f"pyxlsnap snapshot-recover {UUID}"

    def test_a_recovery_without_disk_snapshots_removes_the_way_back(
        self, world: World, guest: FakeGuest, left_early: NeedsAttention
    ) -> None:
        entry = self.entry()
        world.faults.clear()
        assert operations.recover(world.host, UUID).rolled_back
        assert guest.runs
        assert not Path(entry.way_back).exists()
        assert not Path(entry.memory_path).exists()

    def test_a_recovery_of_a_guest_that_is_gone_keeps_its_memory(
        self, world: World, guest: FakeGuest, left_early: NeedsAttention
    ) -> None:
        entry = self.entry()
        world.faults.clear()
        guest.destroy()
        recovered = operations.recover(world.host, UUID)
        assert f"the memory of vm1 stays: see {entry.way_back}" in recovered.lines
        assert Path(entry.way_back).exists()
        assert Path(entry.memory_path).exists()

    def test_a_recovery_says_what_it_could_not_finish(
        self, world: World, guest: FakeGuest, left: NeedsAttention
    ) -> None:
        world.faults.clear()
        world.fail("finish xvda", DiskError("not durable", vdev="xvda"))
        recovered = operations.recover(world.host, UUID)
        assert recovered.lines[1].startswith("the snapshot snap is complete")
        assert "xvda: not durable" in recovered.lines[2]
        assert set(world.storage.snapshots) == {("xvda", "snap"), ("xvdb", "snap")}

    @pytest.mark.parametrize("gone", ["memory_path", "way_back", "directory"])
    @pytest.mark.parametrize("disks", [True, False])
    def test_a_recovery_that_cannot_read_the_only_copy_deletes_nothing(
        self,
        world: World,
        guest: FakeGuest,
        request: pytest.FixtureRequest,
        disks: bool,
        gone: str,
    ) -> None:
        """Its filesystem is not mounted after a reboot, or somebody has moved a file."""
        request.getfixturevalue("left" if disks else "left_early")
        entry = self.entry()
        world.faults.clear()
        guest.destroy()
        there = Path(entry.way_back)
        path = there.parent if gone == "directory" else Path(getattr(entry, gone))
        path.rename(world.root / "moved")
        before = world.photo()
        with pytest.raises(NeedsAttention, match="nothing was deleted") as caught:
            operations.recover(world.host, UUID)
        missing = entry.memory_path if gone == "directory" else str(path)
        assert missing in str(caught.value)
        assert caught.value.finish == f"pyxlsnap snapshot-recover {UUID}"
        assert world.photo() == before
        assert self.entry() == entry
        (world.root / "moved").rename(path)
        recovered = operations.recover(world.host, UUID)
        assert not recovered.rolled_back
        assert there.exists()
        assert Path(entry.memory_path).exists()

    def test_another_memory_file_in_its_place_is_not_taken_for_it(
        self, world: World, guest: FakeGuest, left: NeedsAttention
    ) -> None:
        world.faults.clear()
        guest.destroy()
        Path(self.entry().memory_path).write_bytes(b"somebody else's")
        with pytest.raises(NeedsAttention, match="nothing was deleted"):
            operations.recover(world.host, UUID)
        assert world.storage.snapshots

    def test_once_the_guest_was_resumed_another_recovery_may_remove(
        self, world: World, guest: FakeGuest, left_early: NeedsAttention
    ) -> None:
        entry = self.entry()
        world.faults.clear()
        world.fail("undo xvda", FAILED)
        with pytest.raises(NeedsAttention):
            operations.recover(world.host, UUID)
        assert guest.runs
        world.faults.clear()
        assert operations.recover(world.host, UUID).rolled_back
        assert not Path(entry.cfgfile).exists()
        assert not Path(entry.memory_path).exists()

    def test_a_recovery_waits_for_qemu(
        self,
        world: World,
        guest: FakeGuest,
        left: NeedsAttention,
        naps: list[Callable[[], None]],
    ) -> None:
        world.fail("resume", NO_ANSWER)
        naps += [lambda: None, answers(world)]
        operations.recover(world.host, UUID)
        assert guest.runs

    def test_a_revert_to_the_way_back_ends_it(
        self, world: World, guest: FakeGuest, left: NeedsAttention
    ) -> None:
        entry = self.entry()
        world.faults.clear()
        revert(world, entry)
        assert not guest.exists
        assert Journal(UUID).read() is None

    def test_a_revert_that_fails_before_the_destroy_leaves_it(
        self, world: World, guest: FakeGuest, left: NeedsAttention
    ) -> None:
        entry = self.entry()
        world.faults.clear()
        world.fail("destroy", REFUSED)
        with pytest.raises(OperationFailed, match="nothing was changed"):
            revert(world, entry)
        assert self.entry() == entry
        assert guest.suspended

    @pytest.mark.parametrize("begun", [False, True])
    def test_a_revert_whose_journal_cannot_be_written_leaves_it(
        self,
        world: World,
        guest: FakeGuest,
        left: NeedsAttention,
        monkeypatch: pytest.MonkeyPatch,
        begun: bool,
    ) -> None:
        """The filesystem of the journals is full: from the first try, or from the second."""
        entry = self.entry()
        world.faults.clear()
        world.fail("destroy", REFUSED)
        rewrite, given_back = Journal.rewrite, list[bool]()
        allowed = [True] * begun

        def full(journal: Journal, entry: Entry) -> None:
            if not allowed:
                raise OSError(28, "No space left on device")
            rewrite(journal, entry)
            allowed.pop()

        monkeypatch.setattr(Journal, "rewrite", full)
        monkeypatch.setattr(Room, "give_back", lambda _: given_back.append(True))
        with pytest.raises(OperationFailed, match="nothing was changed"):
            revert(world, entry)
        assert given_back
        assert begun or self.entry() == entry
        assert guest.suspended

    def test_another_create_is_refused(
        self, world: World, guest: FakeGuest, left: NeedsAttention
    ) -> None:
        said = f"failed: .*run `pyxlsnap snapshot-recover {UUID}` first"
        with pytest.raises(PyxlsnapError, match=said):
            create(world)
