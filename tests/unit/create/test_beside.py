"""What is done beside the memory: in any order, and with a fault at any point of either."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.create import beside as beside_module
from pyxlsnap.create import failures
from pyxlsnap.create.beside import Beside
from pyxlsnap.create.downtime import Downtime
from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.create.sequence import Creation
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.errors import (
    DiskError,
    Interrupted,
    OperationFailed,
    XenError,
    XenUnavailable,
)
from pyxlsnap.journal import Journal
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.results import Snapshot
from tests.unit.support import operations, written
from tests.unit.support.example import new_world
from tests.unit.support.faults import kill
from tests.unit.support.guest import FakeGuest
from tests.unit.support.operations import plan_create
from tests.unit.support.strategy import FakeBeside
from tests.unit.support.values import UUID
from tests.unit.support.waiting import eventually
from tests.unit.support.world import World

WANTED = SnapshotConfig(name="snap")
VDEVS = ("xvda", "xvdb", "xvdc")
PATIENCE_S = 300.0
#: of the thread that writes the memory; the last one is when libxl has returned
MEMORY = ("suspended", "memory 1", "memory 2", "suspend")
#: the last look, if no device has changed
LOOK = ("devices changed",)


class Killed(BaseException):
    """The process is killed here: nothing is undone."""


FAULTS: dict[str, Callable[[], BaseException]] = {
    "xen": lambda: XenError("no", rc=-3, operation="some call"),
    "disk": lambda: DiskError("no", vdev="xvda"),
    "full": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "bug": lambda: RuntimeError("a bug"),
    "ctrl-c": KeyboardInterrupt,
    "killed": Killed,
}


def points_of(vdev: str) -> tuple[str, ...]:
    """Of the thread that takes the snapshot of a disk."""
    return (f"begin {vdev}", f"commit {vdev}", f"create {vdev}")


class Order:
    """Lets threads pass their points in one order; from a fault on, in any."""

    def __init__(self, order: Sequence[str], fault_at: str, fault: Callable[[], None]) -> None:
        self._left = list(order)
        self._fault_at = fault_at
        self._fault = fault
        self._changed = threading.Condition()
        #: the points in the order in which they were passed, up to the fault
        self.passed: list[str] = []
        self.struck = False

    def at(self, point: str) -> None:
        with self._changed:
            if self.struck or point not in self._left:
                return
            due = self._changed.wait_for(lambda: self._is_due(point), PATIENCE_S)
            assert due, f"{point} was never reached after {self.passed}"
            if self.struck:
                return
            self._left.pop(0)
            self.passed.append(point)
            self.struck = point == self._fault_at
            self._changed.notify_all()
        if self.struck and point == self._fault_at:
            self._fault()

    def _is_due(self, point: str) -> bool:
        return self.struck or self._left[0] == point

    def release(self) -> None:
        """Let everybody go on."""
        with self._changed:
            self.struck = True
            self._changed.notify_all()


class Case:
    """A guest with three disks; the snapshots of some are taken beside its memory."""

    def __init__(self, world: World, beside: set[str], *, live: bool = False) -> None:
        self.world = world
        world.beside = beside
        self.guest: FakeGuest = world.guest(*(world.image(vdev) for vdev in VDEVS))
        self.before = world.photo()
        self.cancel = Cancel()
        self.live = live
        self.plan: CreatePlan = plan_create(
            world.host, self.guest, WANTED, live=live, cancel=self.cancel
        )

    def apart(self) -> None:
        """Let each disk have a thread of its own, as kinds of storage of ours have."""
        lanes = tuple((s,) for lane in self.plan.lanes for s in lane)
        self.plan = replace(self.plan, lanes=lanes)

    def creation(self) -> Creation:
        return Creation(self.plan, cancel=self.cancel)

    def run(self) -> Snapshot:
        return self.creation().run()

    def put(self, order: Order) -> None:
        """Let the threads follow an order."""

        def suspended() -> None:
            for point in MEMORY[1:-1]:
                order.at(point)

        def begin(verb: str) -> None:
            if verb != MEMORY[-1]:  # (a look has one point, at its beginning)
                order.at(verb.replace("create", "begin"))

        def end(verb: str) -> None:
            if verb not in LOOK:
                order.at(verb)

        self.guest.while_suspending = lambda: order.at("suspended")
        self.guest.while_suspended = suspended
        self.world.on_begin, self.world.on_event = begin, end

    def assert_as_before(self) -> None:
        assert self.guest.runs
        assert self.world.photo() == self.before
        assert Journal(UUID).read() is None

    def assert_whole(self, snapshot: Snapshot) -> None:
        assert self.guest.runs
        assert Journal(UUID).read() is None
        assert set(self.world.storage.snapshots) == {(vdev, "snap") for vdev in VDEVS}
        assert Path(snapshot.memory_path).exists()
        assert Path(snapshot.cfgfile).exists()


@st.composite
def orders(draw: st.DrawFn) -> tuple[set[str], bool, list[str]]:
    """Which disks are beside the memory, whether libxl's report comes, and an order of all points.

    What is not beside the memory follows in a fixed order.
    """
    beside = draw(st.sets(st.sampled_from(VDEVS)))
    reports = draw(st.booleans())
    first = list(MEMORY[:1]) if reports else list(MEMORY)
    threads = [list(points_of(vdev)) for vdev in sorted(beside)] + [list(LOOK)]
    if reports:
        threads.append(list(MEMORY[1:]))
    order = first
    while threads := [thread for thread in threads if thread]:
        order.append(draw(st.sampled_from(threads)).pop(0))
    for vdev in VDEVS:
        order += [] if vdev in beside else points_of(vdev)
    return beside, reports, order


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=orders(),
    what=st.sampled_from(["nothing", "cancel", "resumed", *FAULTS]),
    data=st.data(),
    live=st.booleans(),
    processors=st.sampled_from([1, 2]),
)
def test_memory_and_disks_in_any_order_with_a_fault_at_any_point(
    drawn: tuple[set[str], bool, list[str]],
    what: str,
    data: st.DataObject,
    live: bool,
    processors: int,
) -> None:
    """The guest runs at the end, and there is a whole snapshot or nothing of it."""
    beside, reports, points = drawn
    after = points[points.index("suspended") + 1 :]
    fault_at = data.draw(st.sampled_from(after)) if what != "nothing" else ""
    with new_world() as world:
        case = Case(world, beside, live=live)
        case.guest.reports_suspend = reports

        def fault() -> None:
            if what == "cancel":
                case.cancel.set()
            elif what == "resumed":
                case.guest.suspended = False
            else:
                raise FAULTS[what]()

        # Without xenstore's answer the look is thorough.
        harmless = (what, fault_at) == ("xen", *LOOK)
        order = Order(points, fault_at, fault)
        case.apart()
        case.put(order)
        with pytest.MonkeyPatch.context() as patch:
            for wait in ("_LOOK_AFTER_S", "_REST_S", "_TELL_FIRST_S"):
                patch.setattr(beside_module, wait, 0.0)
            patch.setattr(os, "cpu_count", lambda: processors)
            try:
                conclude(case, "nothing" if harmless else what)
            finally:
                order.release()
        wanted = points if not fault_at else points[: points.index(fault_at) + 1]
        assert order.passed == wanted


def conclude(case: Case, what: str) -> None:
    """Run into the fault, and see that all is well afterwards."""
    if what == "nothing":
        case.assert_whole(case.run())
        return
    if what == "killed":
        with pytest.raises(Killed):
            kill(case.creation())
        case.world.on_begin = case.world.on_event = lambda _: None
        operations.recover(case.world.host, None)
    else:
        kind = Interrupted if what in ("cancel", "ctrl-c") else OperationFailed
        with pytest.raises(OperationFailed) as caught:
            case.run()
        assert type(caught.value) is kind
        assert caught.value.left == ()
    case.assert_as_before()
    assert case.guest.resumes == (what != "resumed")


@pytest.fixture
def both(world: World) -> Case:
    """Two disks are beside the memory, and the third follows."""
    return Case(world, {"xvda", "xvdb"})


@pytest.fixture
def in_turn(world: World, monkeypatch: pytest.MonkeyPatch) -> Case:
    """The same of a live guest, on a single processor."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    return Case(world, {"xvda", "xvdb"}, live=True)


def test_disks_at_the_same_time_as_the_memory_and_as_each_other(both: Case) -> None:
    """Each of the three waits for the others."""
    together = threading.Barrier(3, timeout=PATIENCE_S)
    both.apart()
    both.guest.while_suspended = lambda: void(together.wait())

    def meet(verb: str) -> None:
        if verb in ("create xvda", "create xvdb"):
            together.wait()

    both.world.on_begin = meet
    both.assert_whole(both.run())


def void(_: object) -> None:
    """Nothing, of anything."""


def test_strategies_of_other_packages_are_called_one_at_a_time_on_one_thread(both: Case) -> None:
    threads: dict[str, threading.Thread] = {}

    def note(verb: str) -> None:
        if verb.startswith("create"):
            threads[verb] = threading.current_thread()

    both.world.on_begin = note
    both.run()
    assert threads["create xvda"] is threads["create xvdb"] is not threading.main_thread()
    assert threads["create xvdc"] is threading.main_thread()
    creates = [e for e in both.world.events if e.startswith(("create", "commit"))]
    assert creates == [f"{w} {v}" for v in VDEVS for w in ("commit", "create")]


@pytest.mark.parametrize("vdev", VDEVS[:2])
def test_a_disk_that_fails_aborts_the_memory(both: Case, vdev: str) -> None:
    both.guest.stream = written.stream_of(False, written.in_order(2000))
    both.world.fail(f"create {vdev}", DiskError("no room", vdev=vdev))
    aborted = threading.Event()
    both.guest.while_suspended = lambda: void(aborted.wait(PATIENCE_S))
    abort = both.guest.abort

    def note() -> bool:
        done = abort()
        aborted.set()
        return done

    both.guest.abort = note  # type: ignore[method-assign]
    with pytest.raises(
        OperationFailed, match=f"failed .disk snapshots.: {vdev}: no room"
    ) as caught:
        both.run()
    assert caught.value.step == "disk snapshots"
    assert "create xvdc" not in both.world.events
    both.assert_as_before()


def test_memory_that_fails_ends_the_slow_work_on_a_disk(both: Case) -> None:
    """The work calls its task's check again and again; its undo may do that, too."""
    begun = threading.Event()
    ended: list[BaseException] = []

    def copies(verb: str) -> None:
        if verb != "commit xvda":
            return
        begun.set()
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            try:
                check()
            except Cancelled as e:
                ended.append(e)
                raise
            time.sleep(0.001)

    def fails() -> None:
        assert begun.wait(PATIENCE_S)
        raise XenError("a full disk", rc=-3, operation="libxl_domain_suspend")

    (first, *_) = both.plan.lanes[0]
    assert isinstance(first, FakeBeside)
    check = first.task.check
    both.world.on_begin = copies
    both.guest.while_suspended = fails
    with pytest.raises(OperationFailed, match="a full disk") as caught:
        both.run()
    assert caught.value.step == "suspend"
    assert ended
    assert "create xvdb" not in both.world.events
    check()
    both.assert_as_before()


def test_nothing_is_done_beside_a_suspend_that_never_comes(both: Case) -> None:
    def fails() -> None:
        raise XenError("no answer", rc=-8, operation="libxl_domain_suspend")

    both.guest.while_suspending = fails
    with pytest.raises(OperationFailed):
        both.run()
    assert not [e for e in both.world.events if e.startswith("create")]
    both.assert_as_before()


def test_the_undo_waits_for_a_disk_that_is_under_way_and_says_so(
    both: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest must not be resumed while its disk snapshots are still taken."""
    monkeypatch.setattr(beside_module, "_TELL_EVERY_S", 0.01)
    told, begun, goes_on = list[str](), threading.Event(), threading.Event()

    def waiting(what: str) -> None:
        told.append(what)
        assert both.guest.suspended
        goes_on.set()

    def slow(verb: str) -> None:
        if verb == "commit xvda":
            begun.set()
            assert goes_on.wait(PATIENCE_S)

    def fails() -> None:
        assert begun.wait(PATIENCE_S)
        raise XenError("no", rc=-3, operation="libxl_domain_suspend")

    both.plan = replace(both.plan, waiting=waiting)
    both.world.on_begin, both.guest.while_suspended = slow, fails
    with pytest.raises(OperationFailed):
        both.run()
    assert set(told) == {"the disk snapshots that are under way"}
    both.assert_as_before()


def test_the_look_begins_when_libxl_has_returned(
    both: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disks may take longer."""
    monkeypatch.setattr(beside_module, "_LOOK_AFTER_S", PATIENCE_S)
    looked = threading.Event()
    seen: list[bool] = []

    def begin(verb: str) -> None:
        if verb in LOOK and both.guest.suspended:
            looked.set()
        if verb == "commit xvda":
            seen.append(looked.wait(PATIENCE_S))

    both.world.on_begin = begin
    both.assert_whole(both.run())
    assert seen == [True]


def test_the_look_begins_when_the_disks_are_done(
    both: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory may take longer. Before that QEMU needs the processor that the look would take."""
    monkeypatch.setattr(beside_module, "_LOOK_AFTER_S", PATIENCE_S)
    begun: list[str] = []
    both.world.on_begin = begun.append
    both.guest.while_suspending = begun.clear
    both.guest.while_suspended = lambda: begun.append(
        "looked" if eventually(lambda: LOOK[0] in begun) else "not looked"
    )
    both.assert_whole(both.run())
    assert begun.index("commit xvdb") < begun.index(*LOOK) < begun.index("looked")


def test_on_a_single_processor_the_look_waits_for_the_disks_of_a_live_guest(
    in_turn: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU is told of them only when libxl has returned."""
    monkeypatch.setattr(beside_module, "_TELL_FIRST_S", PATIENCE_S)
    begun: list[str] = []
    returned = threading.Event()
    leave = Beside.__exit__

    def over(beside: Beside, *error: Any) -> None:
        leave(beside, *error)
        returned.set()

    def begin(verb: str) -> None:
        begun.append(verb)
        if verb == "commit xvda":
            assert returned.wait(PATIENCE_S)
            time.sleep(0.2)

    monkeypatch.setattr(Beside, "__exit__", over)
    in_turn.world.on_begin = begin
    in_turn.guest.while_suspending = begun.clear
    in_turn.assert_whole(in_turn.run())
    assert begun.index("commit xvda") < begun.index("commit xvdb") < begun.index(*LOOK)


@pytest.mark.parametrize(("live", "processors"), [(True, 1), (True, 2), (False, 1)])
def test_on_a_single_processor_the_rest_of_a_live_guests_memory_comes_first(
    world: World, monkeypatch: pytest.MonkeyPatch, live: bool, processors: int
) -> None:
    """The memory of a guest that is not live takes long: then the disks do not wait."""
    case = Case(world, {"xvda", "xvdb"}, live=live)
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    monkeypatch.setattr(beside_module, "_REST_S", PATIENCE_S)
    waits = live and processors == 1
    read: list[bool] = []
    seen: list[bool] = []

    def begin(verb: str) -> None:
        if verb == "commit xvda":
            (strategy,) = [s for s in case.plan.strategies if "xvda" in s.vdevs]
            assert isinstance(strategy, FakeBeside)
            read.append(strategy.task.memory_read())

    def rest_of_the_memory() -> None:
        if waits:
            time.sleep(0.2)
        else:
            eventually(lambda: bool(read))
        seen.append(bool(read))

    case.world.on_begin = begin
    case.guest.while_suspended = rest_of_the_memory
    case.assert_whole(case.run())
    assert (seen, read) == ([not waits], [waits])


def test_a_disk_that_waits_for_the_memory_is_let_go_when_that_fails(
    in_turn: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside_module, "_REST_S", PATIENCE_S)

    def fails() -> None:
        raise XenError("no", rc=-3, operation="libxl_domain_suspend")

    in_turn.guest.while_suspended = fails
    with pytest.raises(OperationFailed):
        in_turn.run()
    assert not in_turn.plan.memory_read.is_set()
    assert not any(event.startswith("create") for event in in_turn.world.events)
    in_turn.assert_as_before()


def test_nothing_is_looked_at_after_a_failure(both: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look would keep a suspended guest waiting, for nothing."""
    monkeypatch.setattr(beside_module, "_LOOK_AFTER_S", PATIENCE_S)
    begun: list[str] = []
    held = threading.Event()

    def begin(verb: str) -> None:
        begun.append(verb)
        if verb == "commit xvda":
            held.wait(PATIENCE_S)

    def fails() -> None:
        assert eventually(lambda: "commit xvda" in begun)
        threading.Timer(0.2, held.set).start()
        raise XenError("no", rc=-3, operation="libxl_domain_suspend")

    both.world.on_begin, both.guest.while_suspended = begin, fails
    both.guest.while_suspending = begun.clear
    with pytest.raises(OperationFailed):
        both.run()
    assert LOOK[0] not in begun
    both.assert_as_before()


def test_no_context_is_closed_while_the_guest_waits(
    both: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To close one takes libxl a moment."""
    suspended: list[bool] = []
    own = both.guest.on_its_own

    @contextmanager
    def noted() -> Iterator[FakeGuest]:
        with own() as guest:
            yield guest
        suspended.append(both.guest.suspended)

    monkeypatch.setattr(both.guest, "on_its_own", noted)
    both.assert_whole(both.run())
    assert eventually(lambda: suspended == [False, False])


def test_without_a_context_of_its_own_the_look_follows_the_memory(
    both: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_context() -> Any:
        raise XenUnavailable("too many open files")

    monkeypatch.setattr(both.guest, "on_its_own", no_context)
    both.guest.while_suspended = lambda: both.guest.frontends.__setitem__(0, {"vif/0": 4})
    with pytest.raises(OperationFailed, match="vbd/51712 of vm1 was detached meanwhile") as caught:
        both.run()
    assert caught.value.step == "disk snapshots"
    both.assert_as_before()


def test_a_thread_that_cannot_be_started_is_a_failure(
    both: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def no_more(thread: threading.Thread) -> None:
        if thread.name == "pyxlsnap-disks-0":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", no_more)
    with pytest.raises(OperationFailed, match="can't start new thread"):
        both.run()
    assert "suspend" not in both.world.events
    both.assert_as_before()


@pytest.mark.parametrize("fails", [False, True])
def test_no_thread_is_left(both: Case, fails: bool) -> None:
    if fails:
        both.world.fail("create xvda", DiskError("no", vdev="xvda"))
        with pytest.raises(OperationFailed):
            both.run()
    else:
        both.run()
    assert eventually(lambda: not [t for t in threading.enumerate() if "pyxlsnap" in t.name])


def test_an_abort_does_not_reach_the_next_call(both: Case) -> None:
    """A disk fails when libxl has returned: the next call is the resume."""
    returned = threading.Event()

    def fails(verb: str) -> None:
        if verb == "commit xvda":
            assert returned.wait(PATIENCE_S)
            raise DiskError("late", vdev="xvda")

    finish = Beside.finish

    def finishing(self: Beside) -> None:
        returned.set()
        finish(self)

    both.world.on_begin = fails
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Beside, "finish", finishing)
        with pytest.raises(OperationFailed, match="late"):
            both.run()
    assert not both.guest.aborts
    both.assert_as_before()


def test_a_disk_beside_the_memory_takes_no_time_of_its_own(both: Case) -> None:
    """The memory takes longer here."""
    taken = threading.Event()

    def slow(verb: str) -> None:
        if verb == "commit xvda":
            time.sleep(0.3)

    both.world.on_begin = slow
    both.world.on_event = lambda e: taken.set() if e == "create xvdb" else None
    both.guest.while_suspended = lambda: void(taken.wait(PATIENCE_S))
    done = both.run()
    assert done.seconds_beside >= 0.3
    assert done.seconds["suspend"] >= 0.3


@pytest.mark.parametrize(("took_s", "switches"), [(6.0, True), (1.0, False)])
def test_a_qemu_that_was_busy_for_long_is_told_again_to_record_no_more(
    both: Case, monkeypatch: pytest.MonkeyPatch, took_s: float, switches: bool
) -> None:
    """It did not answer libxl at the end of the memory."""
    stopped: list[object] = []
    monkeypatch.setattr(failures, "stop_recording", stopped.append)
    seconds = {"qcow2": took_s, "raw file": 60.0}
    monkeypatch.setattr(Beside, "seconds_of", lambda _, kind: seconds[kind])
    both.run()
    assert bool(stopped) == switches


class Taking(FakeBeside):
    """Takes some seconds, by its own account."""

    def __init__(self, vdevs: tuple[str, ...], seconds: float) -> None:
        self.vdevs = vdevs
        self._seconds = seconds

    def expected_seconds(self) -> float:
        return self._seconds


@pytest.mark.parametrize(
    ("seconds", "beside", "expected"),
    [
        ((3.0, 2.0), (), 1.0 + 3.0 + 2.0),
        ((3.0, 0.5), ("xvda", "xvdb"), 0.1 + 3.0),
        ((0.5, 0.5), ("xvda", "xvdb"), 1.0),
        ((3.0, 2.0), ("xvda",), 0.1 + 3.0 + 2.0),
    ],
)
def test_what_is_beside_the_memory_is_not_added_to_it(
    seconds: tuple[float, float], beside: tuple[str, ...], expected: float
) -> None:
    found = [Taking((vdev,), s) for vdev, s in zip(VDEVS, seconds, strict=False)]
    assert downtime(found, [[s] for s in found if s.vdevs[0] in beside], beside) == pytest.approx(
        expected
    )


def test_strategies_of_one_group_are_added_to_each_other() -> None:
    found = [Taking(("xvda",), 3.0), Taking(("xvdb",), 2.0)]
    assert downtime(found, [found], ("xvda", "xvdb")) == pytest.approx(5.1)


def test_what_a_strategy_does_afterwards_is_added() -> None:
    """QEMU's second transaction."""
    both = Taking(("xvda", "xvdb"), 3.0)
    assert downtime([both], [[both]], ("xvda",)) == pytest.approx(3.3)


def downtime(
    found: Sequence[DiskStrategy], lanes: Sequence[Sequence[Taking]], beside: Sequence[str]
) -> float:
    return Downtime(
        domain="vm1",
        live=False,
        memory_s=1.0,
        measured=False,
        strategies=found,
        lanes=lanes,
        beside=frozenset(beside),
    ).seconds


def test_a_halt_is_no_cancel_of_the_operation(both: Case) -> None:
    """Once the threads have ended, the task's check raises nothing."""
    both.plan.halt.set()
    with pytest.raises(Cancelled):
        both.plan.halt.check()
    Beside(both.plan).stop()
    both.plan.halt.check()
    assert not both.cancel.is_set()
