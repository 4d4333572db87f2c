"""A guest that reboots, powers off or crashes by itself at any step of a create."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from pyxlsnap.cancel import Cancel
from pyxlsnap.create import ended as module
from pyxlsnap.create.sequence import Creation
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import (
    Aborted,
    Busy,
    GuestEnded,
    Interrupted,
    NeedsAttention,
    OperationFailed,
    QmpError,
    Refused,
    XenError,
)
from pyxlsnap.journal import Journal
from pyxlsnap.linux.locks import MONITOR, DomainLock
from pyxlsnap.model import DomainInfo, SnapshotConfig
from pyxlsnap.monitor import steady
from pyxlsnap.request import Callbacks
from pyxlsnap.results import Progress
from tests.unit.support import operations
from tests.unit.support.faults import FailsAtStep
from tests.unit.support.guest import FakeGuest
from tests.unit.support.operations import plan_create
from tests.unit.support.strategy import FakeStrategy
from tests.unit.support.values import UUID
from tests.unit.support.waiting import eventually
from tests.unit.support.world import World

STEPS = [name for name, _ in Creation.__new__(Creation).steps()]
BEFORE_SUSPEND = STEPS[: STEPS.index("suspend")]
AFTER_RESUME = STEPS[STEPS.index("resume") + 1 :]
WANTED = SnapshotConfig(name="snap")


class Faulty(FailsAtStep, Creation):
    """A create during which something happens at one of its steps."""


class Case:
    """A guest with a disk, and what becomes of it by itself."""

    def __init__(self, world: World, *, live: bool = False) -> None:
        self.world = world
        self.guest: FakeGuest = world.guest(world.image("xvda"))
        self.before = world.photo()
        self.plan = plan_create(world.host, self.guest, WANTED, live=live)

    def shuts_down(self) -> None:
        """Nobody watches it."""
        self.guest.shutdown_reason = "poweroff"

    def is_destroyed(self) -> None:
        """Its action is "destroy", and somebody watches it."""
        self.guest.shutdown_reason, self.guest.exists = "poweroff", False

    def is_started_anew(self) -> None:
        """Its action is "restart"."""
        self.is_destroyed()
        self.world.host.start(self.guest.configuration)

    def reboots(self) -> None:
        """While libxl waits for its answer; it is started anew, and the call is aborted."""
        self.guest.shutdown_reason = "reboot"
        _until_aborted(self.guest)
        self.is_started_anew()
        raise Aborted("aborted", rc=-22, operation="libxl_domain_suspend")

    def creation(self, step: str, happens: Callable[[], None]) -> Faulty:
        creation = Faulty(self.plan)
        creation.at, creation.when, creation.fault = step, "before", happens
        return creation

    def assert_nothing_left(self) -> None:
        assert self.world.photo() == self.before
        assert Journal(UUID).read() is None


ENDS = [Case.shuts_down, Case.is_destroyed, Case.is_started_anew]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("step", [*BEFORE_SUSPEND, "suspend"])
def test_an_end_before_the_suspend_is_an_outcome_of_its_own(
    world: World, step: str, end: Callable[[Case], None]
) -> None:
    case = Case(world)
    with pytest.raises(GuestEnded) as caught:
        case.creation(step, lambda: end(case)).run()
    assert caught.value.exit_code == 1
    assert caught.value.reason == ("poweroff" if end is Case.shuts_down else "")
    said = "powered off by itself" if end is Case.shuts_down else "was destroyed"
    assert f"vm1 {said} while its snapshot was taken" in str(caught.value)
    assert "as before" not in str(caught.value)
    assert caught.value.left == ()
    case.assert_nothing_left()
    assert case.guest.resumes == 0


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("step", AFTER_RESUME)
def test_an_end_after_the_resume_does_not_harm_the_snapshot(
    world: World, step: str, end: Callable[[Case], None]
) -> None:
    case = Case(world)
    made = case.creation(step, lambda: end(case)).run()
    assert made.name == "snap"
    assert case.plan.memory_path.exists()
    assert Journal(UUID).read() is None


@pytest.mark.parametrize("verb", ["suspend", "create xvda"])
def test_a_suspended_guest_that_is_destroyed_leaves_nothing(world: World, verb: str) -> None:
    case = Case(world)

    def destroyed(event: str) -> None:
        if event == verb:
            case.guest.exists = False

    world.on_event = destroyed
    with pytest.raises(GuestEnded, match=r"vm1 was destroyed .* or by another program"):
        Creation(case.plan).run()
    case.assert_nothing_left()


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_libxl_is_not_left_waiting_for_its_answer(
    world: World, live: bool, end: Callable[[Case], None]
) -> None:
    """libxl waits for a minute for a guest that has powered off while it is asked to suspend."""
    case = Case(world, live=live)

    def hangs() -> None:
        end(case)
        begun = time.monotonic()
        while not case.guest.aborts:
            assert time.monotonic() - begun < 2, "nobody ends it"
            time.sleep(0.01)
        raise Aborted("aborted", rc=-22, operation="libxl_domain_suspend")

    case.guest.while_suspending = hangs
    with pytest.raises(GuestEnded):
        Creation(case.plan).run()
    case.assert_nothing_left()


def _until_aborted(guest: FakeGuest) -> None:
    begun = time.monotonic()
    while not guest.aborts:
        assert time.monotonic() - begun < 5, "nobody ends it"
        time.sleep(0.01)


@pytest.mark.parametrize("error", [Aborted, XenError])
def test_a_guest_that_xl_resets_meanwhile_has_ended(world: World, error: type[XenError]) -> None:
    """It runs again under the same domid when libxl has ended the suspend."""
    case = Case(world)

    def resets() -> None:
        case.guest.shutdown_reason = "soft_reset"
        _until_aborted(case.guest)
        case.guest.shutdown_reason = ""
        raise error("aborted", rc=-22, operation="libxl_domain_suspend")

    case.guest.while_suspending = resets
    with pytest.raises(GuestEnded, match=r"vm1 reset itself while .*nothing is left") as caught:
        Creation(case.plan).run()
    assert caught.value.reason == "soft_reset"
    assert case.guest.runs
    case.assert_nothing_left()


def test_the_reason_is_said_of_a_guest_that_is_destroyed_then(world: World) -> None:
    case = Case(world)
    case.guest.while_suspending = case.reboots
    with pytest.raises(GuestEnded, match="vm1 rebooted by itself") as caught:
        Creation(case.plan).run()
    assert caught.value.reason == "reboot"
    case.assert_nothing_left()


def test_disks_that_have_no_snapshot_yet_need_no_qemu(world: World) -> None:
    """The next QEMU of an HVM guest has each disk twice until the guest has booted."""
    case = Case(world)
    world.fail("adopt xvda", Refused("open twice"))
    case.guest.while_suspending = case.reboots
    with pytest.raises(GuestEnded, match="nothing is left of it"):
        Creation(case.plan).run()
    case.assert_nothing_left()


def test_an_abort_that_nobody_wanted_is_no_interrupt(world: World) -> None:
    case = Case(world)
    world.fail("suspend", Aborted("aborted", rc=-22, operation="libxl_domain_suspend"))
    with pytest.raises(OperationFailed, match=r"failed \(suspend\): aborted") as caught:
        Creation(case.plan).run()
    assert type(caught.value) is OperationFailed
    case.assert_nothing_left()


@pytest.mark.parametrize("exists", [True, False])
def test_a_guest_that_ends_at_the_resume_of_the_undo_is_watched(
    world: World, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    """Before Xen 4.20 xl's process has left at the suspend."""
    case = Case(world)
    started: list[str] = []
    plan = replace(case.plan, loses_monitor=True)

    def on_event(event: str) -> None:
        if event == "resume":
            case.guest.shutdown_reason, case.guest.exists = "reboot", exists

    world.on_event = on_event
    world.fail("create xvda", XenError("no", rc=-3, operation="x"))
    with pytest.raises(GuestEnded):
        Creation(plan, Callbacks(start_monitor=started.append)).run()
    assert started == [UUID] * exists
    case.assert_nothing_left()


def test_it_is_said_that_nobody_watches_it(world: World) -> None:
    case = Case(world)

    def on_event(event: str) -> None:
        if event == "resume":
            case.shuts_down()

    world.on_event = on_event
    world.fail("create xvda", XenError("no", rc=-3, operation="x"))
    with pytest.raises(GuestEnded, match="nothing is left of it, but no process watches vm1 now"):
        Creation(replace(case.plan, loses_monitor=True)).run()


def test_a_call_that_is_not_there_yet_is_aborted_when_it_is(world: World) -> None:
    case = Case(world)
    case.guest.shutdown_reason, noticed = "crash", module.Noticed()
    answers = [False, False, True]
    aborted: list[bool] = []

    def abort() -> bool:
        aborted.append(answers[len(aborted)])
        return aborted[-1]

    with pytest.MonkeyPatch.context() as patched, module.noticing_end(case.guest, noticed):
        patched.setattr(case.guest, "abort", abort)
        end = time.monotonic() + 5
        while aborted != answers:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_guest_that_lives_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is one of which libxl cannot tell anything for a moment."""
    monkeypatch.setattr(module, "_POLL_S", 0.001)
    case = Case(world)
    looks: list[None] = []
    look = case.guest.check_same

    def counted(**words: bool) -> DomainInfo:
        looks.append(None)
        return look(**words)

    def looked_again() -> bool:
        looks.clear()
        return eventually(lambda: len(looks) >= 3)

    monkeypatch.setattr(case.guest, "check_same", counted)
    over = threading.Event()
    with module.noticing_end(case.guest, module.Noticed(), over=over.set):
        assert looked_again()
        world.fail("info", XenError("no", rc=-3, operation="libxl_domain_info"))
        assert looked_again()
        world.faults.clear()
        assert not over.is_set()
        case.guest.suspended = True
        assert over.wait(60)
    assert case.guest.aborts == 0


def test_a_cancel_is_still_an_interrupt(world: World) -> None:
    case = Case(world)
    creation = case.creation("before suspend", lambda: None)

    def both() -> None:
        case.shuts_down()
        creation._cancel.set()

    creation.fault = both
    with pytest.raises(Interrupted):
        creation.run()
    case.assert_nothing_left()


def test_a_create_that_fails_after_a_reboot_finds_the_disks_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in another QEMU by now, of the domain that has the uuid now."""
    case = Case(world)
    tasks: list[DiskTask] = []

    def noting(disks: object, task: DiskTask, *more: object, **words: object) -> object:
        tasks.append(task)
        return world.strategies(disks, task, *more, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "strategies", noting)

    def reboots_and_fails() -> None:
        case.is_started_anew()
        raise OSError(28, "No space left on device")

    with pytest.raises(OperationFailed, match="everything is as before"):
        case.creation("memory file", reboots_and_fails).run()
    assert "adopt xvda" in world.events
    (task,) = tasks
    assert task.started_anew
    assert task.attached == {"xvda"}
    case.assert_nothing_left()


def test_a_disk_snapshot_that_cannot_be_deleted_then_is_left(world: World) -> None:
    case = Case(world)

    def reboots_and_fails() -> None:
        case.is_started_anew()
        world.fail("undo xvda", QmpError("no", command="x"))
        raise OSError(28, "No space left on device")

    with pytest.raises(NeedsAttention, match="left: no"):
        case.creation("memory file", reboots_and_fails).run()
    assert Journal(UUID).read() is not None


def test_what_is_left_of_it_is_said_with_what_the_guest_did(world: World) -> None:
    case = Case(world)
    world.fail("undo xvda", QmpError("no", command="x"))

    def aborted() -> None:
        case.shuts_down()
        raise Aborted("aborted", rc=-22, operation="libxl_domain_suspend")

    case.guest.while_suspending = aborted
    with pytest.raises(NeedsAttention, match=r"vm1 powered off by itself .*\(suspend\); left: no"):
        Creation(case.plan).run()


def test_an_undo_does_not_touch_disks_that_xl_is_about_to_open(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """xl waits for two seconds between the destroy and the start."""
    case = Case(world)
    watching = [True] * 5
    monkeypatch.setattr(steady, "xl_monitor", lambda *_: watching.pop() if watching else None)

    def reboots_and_fails() -> None:
        case.is_destroyed()
        raise OSError(28, "No space left on device")

    with pytest.raises(OperationFailed):
        case.creation("memory file", reboots_and_fails).run()
    assert not watching
    case.assert_nothing_left()

    monkeypatch.setattr(module, "_ACTING_S", 0.2)
    monkeypatch.setattr(steady, "xl_monitor", lambda *_: 1)
    other = Case(world)

    def crashes_and_fails() -> None:
        other.is_destroyed()
        raise OSError(28, "No space left on device")

    with pytest.raises(NeedsAttention, match="xl may start vm1 again at any time"):
        other.creation("memory file", crashes_and_fails).run()


def test_an_undo_that_has_resumed_the_guest_waits_for_xl_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest reboots as soon as it runs."""
    case = Case(world)
    watching = [True] * 5
    monkeypatch.setattr(steady, "xl_monitor", lambda *_: watching.pop() if watching else None)

    def on_event(event: str) -> None:
        if event == "resume":
            case.is_destroyed()

    world.on_event = on_event
    world.fail("create xvda", XenError("no", rc=-3, operation="x"), after=True)
    with pytest.raises(OperationFailed):
        Creation(case.plan).run()
    assert not watching
    assert "adopt xvda" in world.events
    case.assert_nothing_left()


def test_an_undo_during_which_the_guest_reboots_is_done_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its QEMU has ended, and the next one opens the disks."""
    case = Case(world)
    watching = [True] * 5
    monkeypatch.setattr(steady, "xl_monitor", lambda *_: watching.pop() if watching else None)

    def on_event(event: str) -> None:
        if event == "settle xvda":
            world.fail("undo xvda", QmpError("EOF", command="x"))
            world.on_event = lambda _: None

    def ends() -> None:
        case.is_destroyed()
        world.faults.pop(("undo xvda", "before"))

    world.on_event = on_event
    world.fail("create xvda", XenError("no", rc=-3, operation="x"), after=True)
    undo = FakeStrategy.undo_create

    def undo_create(strategy: FakeStrategy) -> list[str]:
        try:
            return undo(strategy)
        except QmpError:
            ends()
            raise

    monkeypatch.setattr(FakeStrategy, "undo_create", undo_create)
    with pytest.raises(OperationFailed):
        Creation(case.plan).run()
    assert not watching
    assert "adopt xvda" in world.events
    case.assert_nothing_left()


def test_a_domain_that_is_being_built_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its QEMU does not listen yet."""
    case = Case(world)
    monkeypatch.setattr(steady, "xl_monitor", lambda *_: 1)

    def rebooting() -> None:
        case.is_started_anew()
        new = world.host.guests[-1]
        new.has_run = False
        threading.Timer(0.5, lambda: setattr(new, "has_run", True)).start()
        raise OSError(28, "No space left on device")

    def on_event(event: str) -> None:
        assert event != "adopt xvda" or world.host.guests[-1].has_run

    world.on_event = on_event
    with pytest.raises(OperationFailed, match="everything is as before"):
        case.creation("memory file", rebooting).run()
    case.assert_nothing_left()


def test_a_domain_that_its_owner_keeps_paused_is_not_waited_for_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ACTING_S", 0.2)
    case = Case(world)

    def started_paused() -> None:
        case.is_started_anew()
        world.host.guests[-1].has_run = False
        raise OSError(28, "No space left on device")

    with pytest.raises(OperationFailed, match="everything is as before"):
        case.creation("memory file", started_paused).run()
    assert "adopt xvda" in world.events
    case.assert_nothing_left()


# The monitor's right to act


def _monitor_may_act() -> bool:
    try:
        DomainLock(UUID, domain="vm1", part=MONITOR).release()
    except Busy:
        return False
    return True


def test_the_monitor_is_kept_away_only_while_the_guest_may_be_suspended(world: World) -> None:
    world.guest(world.image("xvda"))
    may: dict[str, bool] = {}

    def note(event: str) -> None:
        may[event] = _monitor_may_act()
        with pytest.raises(Busy):  # no other operation may begin in all this time
            DomainLock(UUID, domain="vm1")

    def begin(_uuid: str, _lock: int) -> None:
        world.on_event = note

    operations.create(world.host, "vm1", WANTED, share_lock=begin)
    kept_away = {event for event, acts in may.items() if not acts}
    assert kept_away >= {"suspend", "create xvda"}
    assert may["check_create"]
    assert may["prepare xvda"]
    assert may["finish xvda"]
    assert _monitor_may_act()


@pytest.mark.parametrize("step", ["create xvda", "finish xvda"])
def test_the_monitor_may_act_between_the_resume_and_the_undo_of_the_disks(
    world: World, step: str
) -> None:
    """Whoever has resumed the guest. A monitor that acts would open the disks meanwhile."""
    world.guest(world.image("xvda"))
    may: dict[str, bool] = {}
    world.on_event = lambda event: may.update({event: _monitor_may_act()})
    told: list[bool] = []

    def on_progress(progress: Progress) -> None:
        if progress.phase == "resumed":
            told.append(_monitor_may_act())

    world.fail(step, XenError("no", rc=-3, operation="x"))
    with pytest.raises(OperationFailed):
        operations.create(world.host, "vm1", WANTED, on_progress=on_progress)
    assert not may["resume"]
    assert not may["undo xvda"]
    assert all(told)
    assert told
    assert _monitor_may_act()


def test_a_monitor_that_acts_is_waited_for(world: World) -> None:
    case = Case(world)
    lock = DomainLock(UUID, domain="vm1")
    lock.open_to_monitor()
    monitor = DomainLock(UUID, domain="vm1", part=MONITOR)

    def acts() -> None:
        case.is_started_anew()
        monitor.release()

    timer = threading.Timer(0.3, acts)
    timer.start()
    with pytest.raises(GuestEnded):
        Creation(case.plan, Callbacks(), None, lock).run()
    timer.join()
    lock.release()
    assert "suspend" not in world.events
    case.assert_nothing_left()


def test_a_cancel_ends_the_wait_for_a_monitor_that_acts(world: World) -> None:
    case = Case(world)
    cancel = Cancel()
    lock = DomainLock(UUID, domain="vm1")
    lock.open_to_monitor()
    monitor = DomainLock(UUID, domain="vm1", part=MONITOR)
    timer = threading.Timer(0.3, cancel.set)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(Interrupted):
        Creation(case.plan, Callbacks(), cancel, lock).run()
    assert time.monotonic() - begun < 30
    timer.join()
    monitor.release()
    lock.release()
    case.assert_nothing_left()


def test_a_monitor_that_acts_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ACTING_S", 0.2)
    case = Case(world)
    lock = DomainLock(UUID, domain="vm1")
    lock.open_to_monitor()
    monitor = DomainLock(UUID, domain="vm1", part=MONITOR)
    with pytest.raises(OperationFailed, match="its monitor is still acting"):
        Creation(case.plan, Callbacks(), None, lock).run()
    monitor.release()
    lock.release()
    case.assert_nothing_left()


# The plan


@pytest.mark.parametrize("verb", ["config", "check_create", "frontend_states"])
def test_an_end_while_it_is_planned(world: World, verb: str) -> None:
    case = Case(world)
    world.events.clear()

    def ends(event: str) -> None:
        if event == verb:
            case.is_destroyed()

    world.on_event = ends
    world.fail(verb, Refused("its QEMU does not answer"), after=True)
    with pytest.raises(GuestEnded, match=r"\(plan\)"):
        operations.create(world.host, UUID, WANTED)
    case.assert_nothing_left()


def test_a_guest_that_had_ended_before_is_refused(world: World) -> None:
    case = Case(world)
    case.shuts_down()
    with pytest.raises(Refused, match="has shut down"):
        operations.create(world.host, "vm1", WANTED)


def test_a_refusal_of_a_guest_that_lives_stays_one(world: World) -> None:
    world.guest(world.image("xvda"))
    world.fail("check_create", Refused("no"))
    with pytest.raises(Refused, match="no"):
        operations.create(world.host, "vm1", WANTED)


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("reboot", "vm1 rebooted by itself"),
        ("crash", "vm1 crashed while"),
        ("watchdog", "vm1 was stopped by its watchdog"),
        ("soft_reset", "vm1 reset itself"),
        ("unknown_9", "vm1 shut down by itself (unknown_9)"),
    ],
)
def test_its_reason_is_said(reason: str, says: str) -> None:
    error = module.guest_ended("vm1", reason, "suspend", [])
    assert says in str(error)
    assert (error.reason, error.step) == (reason, "suspend")
