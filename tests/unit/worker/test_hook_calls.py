"""Hooks: called in the embedder's process, at the right moment, also after failures."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxlsnap import api
from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import (
    Interrupted,
    NeedsAttention,
    OperationFailed,
    PyxlsnapError,
    Refused,
    UsageError,
)
from pyxlsnap.hooks import Hooks, Moment
from pyxlsnap.model import RunState, SnapshotConfig
from pyxlsnap.results import Progress
from tests.unit.support import operations
from tests.unit.support.scenarios import hooks as scenarios
from tests.unit.support.scenarios import ordinary
from tests.unit.support.standin import StandIn, kill_by_progress
from tests.unit.support.values import UUID
from tests.unit.support.world import World

NOW = Moment("vm1", 7, UUID, RunState.RUNNING)


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    end = time.monotonic() + 10
    while threading.active_count() > 1 and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == 1


class Called:
    """Hooks that record their calls; one of them may fail, or be slow."""

    def __init__(
        self, *, failing: str = "", slow: str = "", seconds: float = 0.5, limit_s: float = 10
    ) -> None:
        self.calls: list[tuple[str, Moment]] = []
        self._failing, self._slow, self._seconds = failing, slow, seconds

        def of(name: str) -> None:
            def hook(moment: Moment) -> None:
                self.calls.append((name, moment))
                if name == self._slow:
                    time.sleep(self._seconds)
                if name == self._failing:
                    raise LookupError("no agent")

            hooks[name] = hook

        hooks: dict[str, object] = {}
        for name in ("before_suspend", "after_resume", "after_revert"):
            of(name)
        self.hooks = Hooks(**hooks, limit_s=limit_s)  # type: ignore[arg-type]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


def test_both_are_called_in_turn_with_the_moment(worker: StandIn) -> None:
    worker.set(scenarios.asked_and_resumed)
    called = Called()
    snapshot = api.create_snapshot("vm1", hooks=called.hooks)
    assert called.calls == [("before_suspend", NOW), ("after_resume", NOW)]
    assert snapshot.warnings == ("careful",)


def test_the_operation_waits_for_the_first(worker: StandIn) -> None:
    worker.set(scenarios.asked_and_suspended)
    too_early: list[bool] = []

    def hook(_: Moment) -> None:
        time.sleep(0.2)
        too_early.append((worker.here / "suspended").exists())

    api.create_snapshot("vm1", hooks=Hooks(before_suspend=hook))
    assert too_early == [False]


def test_the_second_is_called_when_the_guest_runs_and_not_at_the_end(worker: StandIn) -> None:
    worker.set(scenarios.resumed_and_waiting_for_the_thaw)
    hooks = Hooks(after_resume=lambda _: (worker.here / "thawed").touch())
    assert api.create_snapshot("vm1", hooks=hooks).name == "snap"


def test_no_hook_is_asked_for_where_there_is_none(worker: StandIn) -> None:
    worker.set(scenarios.not_to_ask)
    api.create_snapshot("vm1")
    api.create_snapshot("vm1", hooks=Hooks(after_revert=lambda _: None))


def test_one_that_raises_before_the_suspend_undoes_it(worker: StandIn) -> None:
    worker.set(scenarios.asked_and_suspended)
    called = Called(failing="before_suspend")
    with pytest.raises(
        OperationFailed, match="hook before_suspend failed: LookupError: no agent"
    ) as caught:
        api.create_snapshot("vm1", hooks=called.hooks)
    assert isinstance(caught.value.__cause__, LookupError)
    assert caught.value.step == "before suspend"
    assert called.names == ["before_suspend", "after_resume"]
    assert not (worker.here / "suspended").exists()


def test_one_that_is_late_before_the_suspend_undoes_it(worker: StandIn) -> None:
    worker.set(scenarios.asked)
    called = Called(slow="before_suspend", seconds=1.0, limit_s=0.1)
    with pytest.raises(OperationFailed, match=r"not returned within 0\.1 s"):
        api.create_snapshot("vm1", hooks=called.hooks)
    assert called.names == ["before_suspend", "after_resume"]


def test_a_snapshot_whose_second_hook_failed_has_a_warning(worker: StandIn) -> None:
    worker.set(scenarios.asked_and_resumed)
    snapshot = api.create_snapshot("vm1", hooks=Called(failing="after_resume").hooks)
    assert snapshot.warnings == (
        "careful",
        "the hook after_resume failed: LookupError: no agent",
    )


def test_a_failure_whose_second_hook_failed_too_needs_a_person(worker: StandIn) -> None:
    worker.set(scenarios.fails_when_resumed)
    with pytest.raises(NeedsAttention, match="no; but the hook after_resume failed") as caught:
        api.create_snapshot("vm1", hooks=Called(failing="after_resume").hooks)
    assert caught.value.left == ("the hook after_resume failed: LookupError: no agent",)
    assert (caught.value.step, caught.value.undone) == ("resume", ("x",))


def test_what_a_failure_left_is_not_forgotten_for_it(worker: StandIn) -> None:
    worker.set(scenarios.asked_and_needs_a_person)
    with pytest.raises(NeedsAttention) as caught:
        api.create_snapshot("vm1", hooks=Called(failing="after_resume").hooks)
    assert caught.value.left[0] == "a"
    assert len(caught.value.left) == 2
    assert caught.value.finish == "do it"


def test_the_second_is_not_called_where_the_first_was_not_reached(worker: StandIn) -> None:
    worker.set(ordinary.refused)
    called = Called()
    with pytest.raises(Refused):
        api.create_snapshot("vm1", hooks=called.hooks)
    assert called.calls == []


def test_the_second_is_called_though_the_worker_was_killed(worker: StandIn) -> None:
    worker.set(scenarios.asked_and_killed)
    called = Called()
    with pytest.raises(OperationFailed, match="signal 9"):
        api.create_snapshot("vm1", hooks=called.hooks, on_progress=kill_by_progress)
    assert called.names == ["before_suspend", "after_resume"]


def test_a_cancel_while_the_first_runs_rolls_back(worker: StandIn) -> None:
    worker.set(scenarios.cancelled_while_asking)
    cancel = Cancel()
    calls: list[str] = []

    def hook(_: Moment) -> None:
        calls.append("before")
        cancel.set()

    hooks = Hooks(before_suspend=hook, after_resume=lambda _: calls.append("after"))
    with pytest.raises(Interrupted, match="Cancelled"):
        api.create_snapshot("vm1", hooks=hooks, cancel=cancel)
    assert calls == ["before", "after"]


def test_what_the_progress_callback_raises_arrives_with_a_note(worker: StandIn) -> None:
    worker.set(scenarios.resumed_and_interrupted)

    def raises(progress: Progress) -> None:
        if progress.phase == "resumed":
            raise ZeroDivisionError

    called = Called(failing="after_resume")
    with pytest.raises(ZeroDivisionError) as caught:
        api.create_snapshot("vm1", hooks=called.hooks, on_progress=raises)
    assert caught.value.__notes__ == ["the hook after_resume failed: LookupError: no agent"]
    assert called.names == ["before_suspend", "after_resume"]


def test_a_revert_is_told_of_when_it_is_done(worker: StandIn, tmp_path: Path) -> None:
    worker.set(revert=ordinary.reverted)
    (tmp_path / "a.cfg").touch()
    called = Called()
    api.revert_snapshot("vm1", tmp_path / "a.cfg", hooks=called.hooks)
    assert called.calls == [("after_revert", Moment("vm1", 9, UUID, RunState.PAUSED))]


def test_a_revert_whose_hook_failed_has_a_warning(worker: StandIn, tmp_path: Path) -> None:
    worker.set(revert=ordinary.reverted)
    (tmp_path / "a.cfg").touch()
    hooks = Called(failing="after_revert").hooks
    reverted = api.revert_snapshot("vm1", tmp_path / "a.cfg", hooks=hooks)
    assert reverted.warnings == ("w", "the hook after_revert failed: LookupError: no agent")


def test_one_that_is_late_ends_before_the_second_begins(worker: StandIn) -> None:
    worker.set(scenarios.asked)
    done: list[str] = []

    def freeze(_: Moment) -> None:
        time.sleep(0.5)
        done.append("frozen")

    hooks = Hooks(before_suspend=freeze, after_resume=lambda _: done.append("thawed"), limit_s=0.4)
    with pytest.raises(OperationFailed) as caught:
        api.create_snapshot("vm1", hooks=hooks)
    assert not isinstance(caught.value, NeedsAttention)
    assert done == ["frozen", "thawed"]


def test_one_that_does_not_end_needs_a_person(worker: StandIn) -> None:
    worker.set(scenarios.asked)
    called = Called(slow="before_suspend", seconds=3, limit_s=0.2)
    with pytest.raises(NeedsAttention, match="hook before_suspend has not ended") as caught:
        api.create_snapshot("vm1", hooks=called.hooks)
    assert caught.value.left == (
        "the hook before_suspend has not ended, and may undo what after_resume did",
    )
    assert called.names == ["before_suspend", "after_resume"]


def test_one_that_does_not_end_has_nothing_to_undo_where_there_is_no_second(
    worker: StandIn,
) -> None:
    worker.set(scenarios.asked)
    hooks = Hooks(before_suspend=lambda _: time.sleep(2), limit_s=0.2)
    with pytest.raises(OperationFailed) as caught:
        api.create_snapshot("vm1", hooks=hooks)
    assert not isinstance(caught.value, NeedsAttention)


def test_a_coroutine_function_is_refused(worker: StandIn) -> None:
    worker.set(scenarios.asked)

    async def hook(_: Moment) -> None:
        raise AssertionError

    with pytest.raises(OperationFailed, match=r"coroutine function, which only pyxlsnap\.aio"):
        api.create_snapshot("vm1", hooks=Hooks(before_suspend=hook))  # type: ignore[arg-type]


def test_a_revert_that_could_not_be_stopped_any_more_is_told_of(
    worker: StandIn, tmp_path: Path
) -> None:
    worker.set(revert=scenarios.restores)
    (tmp_path / "a.cfg").touch()
    called = Called()

    def raises(_: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        api.revert_snapshot("vm1", tmp_path / "a.cfg", hooks=called.hooks, on_progress=raises)
    assert called.names == ["after_revert"]


def interrupting(hook: str) -> Hooks:
    """Hooks of which one is interrupted by Ctrl-C."""

    def interrupt(_: Moment) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)

    return Hooks(**{hook: interrupt})  # type: ignore[arg-type]


def test_ctrl_c_in_the_first_cancels(worker: StandIn) -> None:
    worker.set(scenarios.asked_and_interrupted)
    with pytest.raises(KeyboardInterrupt):
        api.create_snapshot("vm1", hooks=interrupting("before_suspend"))


def test_ctrl_c_in_the_second_does_not_hide_that_something_is_left(worker: StandIn) -> None:
    worker.set(scenarios.asked_and_needs_a_person)
    with pytest.raises(NeedsAttention) as caught:
        api.create_snapshot("vm1", hooks=interrupting("after_resume"))
    assert caught.value.finish == "do it"


def test_ctrl_c_when_it_is_done_says_so(worker: StandIn) -> None:
    worker.set(scenarios.asked)
    with pytest.raises(KeyboardInterrupt) as caught:
        api.create_snapshot("vm1", hooks=interrupting("after_resume"))
    assert caught.value.__notes__ == ["too late to cancel the create of vm1: it is done (/c)"]


@pytest.mark.parametrize("limit_s", [0, -1, float("nan"), float("inf")])
def test_an_impossible_limit_is_refused(limit_s: float) -> None:
    with pytest.raises(UsageError, match="limit_s"):
        Hooks(limit_s=limit_s)


class TestInTheSequence:
    """Where the hook stands, on the fake host."""

    def test_all_is_prepared_and_nothing_suspended(self, world: World) -> None:
        guest = world.guest(world.image("xvda"))
        seen: list[tuple[Moment, list[str], bool]] = []

        def hook(moment: Moment) -> None:
            seen.append((moment, list(world.events), guest.runs))

        operations.create(world.host, "vm1", SnapshotConfig(name="s"), before_suspend=hook)
        ((moment, before, ran),) = seen
        assert moment == Moment("vm1", guest.domid, guest.uuid, RunState.RUNNING)
        assert "prepare xvda" in before
        assert "suspend" not in before
        assert ran

    def test_its_failure_leaves_everything_as_before(self, world: World) -> None:
        guest = world.guest(world.image("xvda"))
        before = world.photo()

        def hook(_: Moment) -> None:
            raise PyxlsnapError("no agent")

        with pytest.raises(OperationFailed, match=r"before suspend.*no agent") as caught:
            operations.create(world.host, "vm1", SnapshotConfig(name="s"), before_suspend=hook)
        assert not isinstance(caught.value, NeedsAttention)
        assert world.photo() == before
        assert "suspend" not in world.events
        assert guest.runs

    def test_that_the_guest_runs_again_is_told_before_the_rest_is_undone(
        self, world: World
    ) -> None:
        world.guest(world.image("xvda"))
        world.fail("create xvda", RuntimeError("a bug"))

        def on_progress(progress: Progress) -> None:
            world.events.append(progress.phase)

        with pytest.raises(OperationFailed):
            operations.create(world.host, "vm1", SnapshotConfig(name="s"), on_progress=on_progress)
        events = world.events
        assert events.index("resume") < events.index("resumed") < events.index("undo xvda")

    def test_a_revert_that_keeps_the_present_calls_it(self, world: World) -> None:
        world.guest(world.image("xvda"))
        made = operations.create(world.host, "vm1", SnapshotConfig(name="s"))
        calls: list[str] = []
        cfg = Path(made.cfgfile)
        wanted = SnapshotConfig(name="s", memory_path=made.memory_path)
        operations.revert(
            world.host,
            "vm1",
            wanted,
            cfg,
            keep_current=True,
            before_suspend=lambda moment: calls.append(moment.domain),
        )
        assert calls == ["vm1"]
