"""The calls as coroutines: the loop goes on, and a cancelled task waits for the rollback."""

import asyncio
import concurrent.futures
import contextvars
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import fields
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import pyxlsnap
from pyxlsnap import aio
from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import AlreadyExists, Interrupted, NeedsAttention, OperationFailed
from pyxlsnap.hooks import Moment
from pyxlsnap.model import DiskRequest, SnapshotConfig
from pyxlsnap.request import CloneRequest, ReadRequest
from pyxlsnap.results import (
    Deleted,
    DomainEvent,
    OnProgress,
    Progress,
    Recovered,
    Reverted,
    Snapshot,
)
from tests.host_state import children
from tests.unit.support.scenarios import deaths, ordinary, several, warm, watches
from tests.unit.support.scenarios.hooks import asked_and_resumed
from tests.unit.support.standin import StandIn
from tests.unit.support.values import UUID
from tests.unit.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("nothing_is_left")

TICK_S = 0.001


class Begun:
    """A callback for progress that tells the test when there is some."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def __call__(self, _: Progress) -> None:
        self.event.set()


def ending(timeout: asyncio.Timeout) -> OnProgress:
    """A callback that ends a timeout as soon as the operation is under way."""
    return lambda _: timeout.reschedule(0)


async def begun(
    start: Callable[..., Coroutine[Any, Any, Any]] = aio.create_snapshot,
    *words: Any,
    **options: Any,
) -> "asyncio.Task[Any]":
    """A task with an operation that is under way."""
    progress = Begun()
    task = asyncio.create_task(start(*(words or ("vm1",)), on_progress=progress, **options))
    await progress.event.wait()
    return task


@pytest.fixture
def cfgfile(tmp_path: Path) -> Path:
    path = tmp_path / "a.cfg"
    path.write_text("memory_path = '/m'\n")
    return path


#: what a clone is asked for, and how its request has that
CLONE_WORDS: dict[str, Any] = {"disks": [DiskRequest("xvda", "/own", "raw")], "bridge": "br1"}
ASKED: dict[str, Any] = {"disks": (DiskRequest("xvda", "/own", "raw"),), "bridge": "br1"}


def clone_request(path: Path, **more: Any) -> CloneRequest:
    """The request that the worker gets."""
    config = SnapshotConfig(memory_path="/m")
    return CloneRequest(domain="c1", cfgfile=str(path), config=config, **more)


#: calls that report no progress, or are cancelled in the same way
CALLS: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
    "clone": lambda cfgfile, **more: aio.clone_snapshot(cfgfile, "c1", **more),
    "plan": lambda cfgfile, **more: aio.plan_clone(cfgfile, "c1", **more),
    "read": aio.read_snapshot,
}


def test_every_function_is_there_with_the_same_signature() -> None:
    functions = {n for n in pyxlsnap.__all__ if inspect.isfunction(getattr(pyxlsnap, n))}
    assert set(aio.__all__) == functions | {"AsyncHooks", "Cloner", "Reverter"}
    for name in functions:
        assert inspect.iscoroutinefunction(getattr(aio, name))
        ours = str(inspect.signature(getattr(aio, name)))
        # Those are coroutine functions.
        assert ours.replace("aio.hooks.AsyncHooks", "hooks.Hooks") == str(
            inspect.signature(getattr(pyxlsnap, name))
        )


@pytest.mark.parametrize(("cls", "method"), [("Reverter", "revert"), ("Cloner", "clone")])
def test_a_class_has_the_same_methods_with_the_same_signatures(cls: str, method: str) -> None:
    ours, others = getattr(aio, cls), getattr(pyxlsnap, cls)
    assert str(inspect.signature(ours)) == str(inspect.signature(others))
    found = getattr(ours, method)
    said = str(inspect.signature(found)).replace("aio.hooks.AsyncHooks", "hooks.Hooks")
    assert said == str(inspect.signature(getattr(others, method)))
    assert inspect.iscoroutinefunction(found)
    assert inspect.iscoroutinefunction(ours.close)


def test_hooks_have_the_same_names_and_defaults() -> None:
    ours, others = aio.AsyncHooks(), pyxlsnap.Hooks()
    names = [f.name for f in fields(ours)]
    assert names == [f.name for f in fields(others)]
    assert [getattr(ours, n) for n in names] == [getattr(others, n) for n in names]


class TestReverter:
    def test_reverts_again_and_again_and_hooks_are_awaited(
        self, worker: StandIn, cfgfile: Path
    ) -> None:
        worker.set(revert=ordinary.reverted)
        seen: list[int] = []

        async def back(moment: Moment) -> None:
            await asyncio.sleep(0)
            seen.append(moment.domid)

        async def go() -> None:
            async with aio.Reverter("vm1", cfgfile) as reverter:
                for _ in range(2):
                    hooks = aio.AsyncHooks(after_revert=back)
                    assert await reverter.revert(hooks=hooks) == ordinary.REVERTED
                assert len(children()) == 1
            assert children() == []

        asyncio.run(go())
        assert seen == [9, 9]

    def test_a_cancelled_task_leaves_no_process(self, worker: StandIn, cfgfile: Path) -> None:
        worker.set(revert=warm.waits_and_is_cancelled)

        async def go() -> None:
            async with asyncio.timeout(None) as timeout:
                async with aio.Reverter("vm1", cfgfile) as reverter:
                    await reverter.revert(on_progress=ending(timeout))

        with pytest.raises(TimeoutError):
            asyncio.run(go())
        assert children() == []


class TestCloner:
    def test_clones_again_and_again_and_callbacks_are_called_in_the_loop(
        self, worker: StandIn, cfgfile: Path
    ) -> None:
        seen: list[object] = []

        async def made(moment: Moment) -> None:
            await asyncio.sleep(0)
            seen.append(moment.domid)

        def edit(values: dict[str, Any]) -> None:
            seen.append((asyncio.get_running_loop(), dict(values)))

        async def go() -> None:
            async with aio.Cloner(cfgfile, "c1", edit=edit) as cloner:
                for _ in range(2):
                    hooks = aio.AsyncHooks(after_clone=made)
                    assert await cloner.clone(hooks=hooks) == ordinary.CLONED
                assert len(children()) == 1
            assert children() == []
            assert seen == [(asyncio.get_running_loop(), {}), 9] * 2

        asyncio.run(go())

    def test_clones_of_several_names_are_made_at_a_time(
        self, worker: StandIn, cfgfile: Path
    ) -> None:
        worker.set(clone=warm.clone_waits_for_the_other)

        async def go() -> list[str]:
            async with aio.Cloner(cfgfile, "c1") as cloner:
                made = await asyncio.gather(cloner.clone(), cloner.clone("c2"))
                assert len(children()) == 1
            return [one.domain for one in made]

        assert asyncio.run(go()) == ["c1", "c2"]

    def test_a_cancelled_task_leaves_no_process(self, worker: StandIn, cfgfile: Path) -> None:
        worker.set(clone=warm.clone_waits_and_is_cancelled)

        async def go() -> None:
            async with asyncio.timeout(None) as timeout:
                async with aio.Cloner(cfgfile, "c1") as cloner:
                    await cloner.clone(on_progress=ending(timeout))

        with pytest.raises(TimeoutError):
            asyncio.run(go())
        assert children() == []


class TestResult:
    def test_every_argument_arrives(self, worker: StandIn) -> None:
        worker.set(ordinary.says_every_argument)
        call = aio.create_snapshot(
            "vm1", name="n", live=True, max_downtime=2.0, max_rate=9.0, monitor=False
        )
        snapshot = asyncio.run(call)
        assert (type(snapshot), snapshot.name, snapshot.uuid) == (Snapshot, "snap", UUID)
        assert worker.said() == repr(("vm1", "n", True, 2.0, 9.0, None))

    def test_of_a_revert(self, worker: StandIn, cfgfile: Path) -> None:
        worker.set(revert=ordinary.revert_says_its_options)
        call = aio.revert_snapshot(
            "vm1", cfgfile, running=True, force=True, keep_current=True, monitor=False
        )
        reverted = asyncio.run(call)
        assert (type(reverted), reverted.domid) == (Reverted, 9)
        assert worker.said() == repr([True, True, True, None])

    def test_of_a_delete(self, worker: StandIn, cfgfile: Path) -> None:
        worker.set()
        deleted = asyncio.run(aio.delete_snapshot(cfgfile))
        assert (type(deleted), deleted.lines) == (Deleted, ("removed /c",))
        assert worker.said() == repr(str(cfgfile))

    @pytest.mark.parametrize(("state", "word"), [("running", "replace"), ("paused", "force")])
    def test_of_a_clone(self, worker: StandIn, cfgfile: Path, state: str, word: str) -> None:
        worker.set(clone=ordinary.clone_says_its_request)
        seen: list[object] = []

        async def made(moment: Moment) -> None:
            await asyncio.sleep(0)
            seen.append(moment.domid)

        async def main() -> None:
            def edit(values: dict[str, Any]) -> None:
                seen.append(asyncio.get_running_loop())
                values["on_reboot"] = "destroy"

            cloned = await aio.clone_snapshot(
                cfgfile,
                "c1",
                **{**CLONE_WORDS, state: True, word: True},
                edit=edit,
                monitor=False,
                hooks=aio.AsyncHooks(after_clone=made),
                on_progress=lambda progress: seen.append(progress.phase),
            )
            assert cloned == ordinary.CLONED
            assert seen == [asyncio.get_running_loop(), "disks", 9]

        asyncio.run(main())
        edited = {"edited": '{"on_reboot": "destroy"}', "uuid": UUID}
        more = {**ASKED, **edited, state: True, word: True, "monitor": False}
        assert worker.said() == repr(clone_request(cfgfile, **more))

    def test_of_a_clone_with_no_more_words(self, worker: StandIn, cfgfile: Path) -> None:
        worker.set(clone=ordinary.clone_says_its_request)
        asyncio.run(aio.clone_snapshot(cfgfile, "c1"))
        assert worker.said() == repr(clone_request(cfgfile))

    @pytest.mark.parametrize("state", ["running", "paused"])
    @pytest.mark.parametrize("word", ["replace", "force"])
    def test_of_the_plan_of_a_clone(
        self, worker: StandIn, cfgfile: Path, state: str, word: str
    ) -> None:
        worker.set(plan=ordinary.plan_says_its_request)

        async def main() -> None:
            def edit(values: dict[str, Any]) -> None:
                values["loop"] = asyncio.get_running_loop().is_running()

            words = {**CLONE_WORDS, state: True, word: True}
            planned = await aio.plan_clone(cfgfile, "c1", **words, edit=edit)
            assert planned == ordinary.PLAN

        asyncio.run(main())
        edited = {"edited": '{"loop": true}', "uuid": UUID}
        more = {**ASKED, **edited, state: True, word: True, "dry_run": True}
        assert worker.said() == repr(clone_request(cfgfile, **more))

    def test_of_a_read(self, worker: StandIn, cfgfile: Path) -> None:
        worker.set(read=ordinary.read_says_its_request)
        assert asyncio.run(aio.read_snapshot(cfgfile)) == ordinary.INFO
        assert worker.said() == repr(ReadRequest(cfgfile=str(cfgfile)))

    def test_of_the_others(self, worker: StandIn, cfgfile: Path) -> None:
        worker.set()

        async def all_of_them() -> None:
            assert (await aio.plan_create("vm1", name="n", live=True)).name == "snap"
            assert (await aio.plan_revert("vm1", cfgfile, force=True)).disks[0].vdev == "xvda"
            assert await aio.recover(UUID) == Recovered(("recovered",), rolled_back=True)

        asyncio.run(all_of_them())

    def test_errors_are_raised_as_they_were(self, worker: StandIn) -> None:
        worker.set(ordinary.exists)
        with pytest.raises(AlreadyExists) as caught:
            asyncio.run(aio.create_snapshot("vm1"))
        assert caught.value.where == "xvda"

    def test_a_monitor_that_cannot_be_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(pyxlsnap.UsageError):
            asyncio.run(aio.start_monitor("vm1"))

    def test_it_does_not_wait_for_the_loops_own_threads(self, worker: StandIn) -> None:
        worker.set(ordinary.taken)
        free = threading.Event()

        async def beside_a_full_executor() -> None:
            loop = asyncio.get_running_loop()
            loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
            full = loop.run_in_executor(None, free.wait)
            try:
                await aio.create_snapshot("vm1")
            finally:
                free.set()
                await full

        asyncio.run(beside_a_full_executor())


class TestCallbacks:
    def test_come_in_order_in_the_loop_before_the_result(self, worker: StandIn) -> None:
        worker.set(ordinary.hundred_reports)
        request = contextvars.ContextVar[str]("request")
        seen: list[tuple[int, int, str]] = []

        def note(progress: Progress) -> None:
            asyncio.get_running_loop()
            seen.append((progress.bytes_done, threading.get_ident(), request.get()))

        async def main() -> None:
            request.set("one")
            await aio.create_snapshot("vm1", on_progress=note)
            assert seen == [(n, threading.get_ident(), "one") for n in range(100)]

        asyncio.run(main())

    def test_events_of_a_domain(self, worker: StandIn) -> None:
        worker.set(monitor=watches.three_reboots)
        seen: list[DomainEvent] = []
        asyncio.run(aio.monitor_domain("vm1", on_event=seen.append))
        assert seen == [watches.REBOOTED] * 3

    @pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt()])
    def test_what_one_raises_cancels_and_comes_after_the_rollback(
        self, worker: StandIn, error: BaseException
    ) -> None:
        worker.set(ordinary.rolled_back)

        def raises(_: Progress) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            asyncio.run(aio.create_snapshot("vm1", on_progress=raises))
        assert caught.value is error
        assert (worker.here / "rolled back").exists()


class TestToken:
    def test_of_the_caller_cancels(self, worker: StandIn) -> None:
        worker.set(ordinary.rolled_back)

        async def main() -> None:
            cancel = Cancel()
            task = await begun(cancel=cancel)
            await asyncio.to_thread(cancel.set)
            with pytest.raises(Interrupted) as caught:
                await task
            assert caught.value.step == "suspend"

        asyncio.run(main())
        assert (worker.here / "rolled back").exists()

    def test_set_beforehand(self, worker: StandIn) -> None:
        worker.set(ordinary.rolled_back)
        cancel = Cancel()
        cancel.set()
        with pytest.raises(Interrupted, match="before it began"):
            asyncio.run(aio.create_snapshot("vm1", cancel=cancel))

    def test_a_task_that_is_cancelled_does_not_cancel_the_others_that_share_it(
        self, worker: StandIn
    ) -> None:
        worker.set(several.first_rolls_back)

        async def main() -> None:
            cancel = Cancel()
            one, other = [
                await begun(aio.create_snapshot, vm, cancel=cancel) for vm in ("vm1", "2")
            ]
            one.cancel()
            assert (await other).name == "snap"
            assert not cancel.is_set()

        asyncio.run(main())

    @pytest.mark.parametrize("name", CALLS)
    def test_cancels_what_is_done_with_a_cfgfile(
        self, worker: StandIn, cfgfile: Path, name: str
    ) -> None:
        worker.set(**{name: ordinary.begins_and_rolls_back})

        async def main() -> None:
            cancel = Cancel()
            task = asyncio.create_task(CALLS[name](cfgfile, cancel=cancel))
            await asyncio.to_thread(eventually, (worker.here / "begun").exists)
            await asyncio.to_thread(cancel.set)
            with pytest.raises(Interrupted) as caught:
                await task
            assert caught.value.step == "suspend"

        asyncio.run(main())
        assert (worker.here / "rolled back").exists()


class TestCancelledTask:
    @pytest.mark.parametrize("name", CALLS)
    def test_with_a_cfgfile_has_rolled_back_when_it_ends(
        self, worker: StandIn, cfgfile: Path, name: str
    ) -> None:
        worker.set(**{name: ordinary.begins_and_rolls_back})

        async def main() -> None:
            task = asyncio.create_task(CALLS[name](cfgfile))
            await asyncio.to_thread(eventually, (worker.here / "begun").exists)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
            assert (worker.here / "rolled back").exists()

        asyncio.run(main())

    def test_has_rolled_back_when_it_ends(self, worker: StandIn) -> None:
        worker.set(ordinary.rolled_back)

        async def main() -> None:
            task = await begun()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
            assert (worker.here / "rolled back").exists()

        asyncio.run(main())

    def test_however_often_it_is_cancelled(self, worker: StandIn) -> None:
        worker.set(several.slow_rollback)

        async def main() -> None:
            task = await begun()
            while not (worker.here / "rolling back").exists():
                task.cancel()
                await asyncio.sleep(0.01)
            for _ in range(5):
                task.cancel()
                assert (await asyncio.wait([task], timeout=0.02))[0] == set()
            (worker.here / "go on").touch()
            await asyncio.wait([task])
            assert task.cancelled()

        asyncio.run(main())

    def test_before_it_has_begun(self, worker: StandIn) -> None:
        worker.set(ordinary.rolled_back)

        async def main() -> None:
            task = asyncio.create_task(aio.create_snapshot("vm1"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

        asyncio.run(main())

    def test_by_a_timeout(self, worker: StandIn) -> None:
        worker.set(ordinary.rolled_back)

        async def main() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(None) as timeout:
                    await aio.create_snapshot("vm1", on_progress=ending(timeout))
            await asyncio.sleep(0.01)
            assert (worker.here / "rolled back").exists()

        asyncio.run(main())

    def test_by_the_failure_of_another_in_its_group(self, worker: StandIn) -> None:
        worker.set(several.rolled_back_beside_a_bad_one)

        async def main() -> None:
            async with asyncio.TaskGroup() as group:
                progress = Begun()
                group.create_task(aio.create_snapshot("vm1", on_progress=progress))
                await progress.event.wait()
                group.create_task(aio.create_snapshot("bad"))

        with pytest.raises(ExceptionGroup) as caught:
            asyncio.run(main())
        assert [str(error) for error in caught.value.exceptions] == ["no"]
        assert (worker.here / "rolled back").exists()

    def test_what_needs_a_person_is_not_hidden(self, worker: StandIn) -> None:
        worker.set(ordinary.needs_a_person)

        async def main() -> None:
            task = await begun()
            task.cancel()
            with pytest.raises(NeedsAttention, match="stuck") as caught:
                await task
            assert isinstance(caught.value.__cause__, asyncio.CancelledError)
            with pytest.raises(NeedsAttention, match="stuck"):
                async with asyncio.timeout(None) as timeout:
                    await aio.create_snapshot("vm1", on_progress=ending(timeout))
            await asyncio.sleep(0.01)  # the timeout is over: nothing is left of it

        asyncio.run(main())

    def test_a_recovery_is_awaited_to_its_end(self, worker: StandIn) -> None:
        worker.set(recover=deaths.recovery_waits)

        async def main() -> None:
            task = asyncio.create_task(aio.recover(UUID))
            await asyncio.to_thread(eventually, (worker.here / "recovering").exists)
            task.cancel()
            assert (await asyncio.wait([task], timeout=0.1))[0] == set()
            (worker.here / "go on").touch()
            assert (await task).rolled_back

        asyncio.run(main())

    def test_that_was_cancelled_before_the_call_makes_none(self, worker: StandIn) -> None:
        worker.set()

        async def job() -> None:
            task = asyncio.current_task()
            assert task
            task.cancel()
            await aio.recover(UUID)

        with pytest.raises(asyncio.CancelledError):
            asyncio.run(job())
        assert not (worker.here / "recovered").exists()


class TestCancelledTooLate:
    """What is done is not lost, and the cancellation is not, either."""

    def test_the_task_has_the_result(self, worker: StandIn) -> None:
        worker.set(ordinary.taken_though_cancelled)

        async def main() -> None:
            task = await begun()
            task.cancel()
            assert (await task).name == "snap"

        asyncio.run(main())

    def test_the_cancellation_comes_with_the_next_await(self, worker: StandIn) -> None:
        worker.set(several.first_too_late_then_rolled_back)
        made: list[Snapshot] = []

        async def nightly(progress: Begun) -> None:
            while True:
                made.append(await aio.create_snapshot("vm1", on_progress=progress))

        async def main() -> None:
            progress = Begun()
            task = asyncio.create_task(nightly(progress))
            await progress.event.wait()
            task.cancel("stop")
            with pytest.raises(asyncio.CancelledError, match="stop"):
                await task
            assert len(made) == 1
            assert task.cancelling() == 1

        asyncio.run(main())

    def test_when_it_had_ended_already(
        self, worker: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is cancelled after the end of the operation, before it has seen that."""
        worker.set(ordinary.taken)
        made: list[Snapshot] = []

        async def one() -> None:
            made.append(await aio.create_snapshot("vm1"))
            await asyncio.sleep(60)

        async def main() -> None:
            loop = asyncio.get_running_loop()
            task = asyncio.create_task(one())
            ended = loop.call_soon_threadsafe

            def cancelled_meanwhile(*words: Any, **options: Any) -> asyncio.Handle:
                handle = ended(*words, **options)
                ended(task.cancel)
                return handle

            monkeypatch.setattr(loop, "call_soon_threadsafe", cancelled_meanwhile)
            await asyncio.wait([task])
            assert task.cancelled()
            assert [snapshot.name for snapshot in made] == ["snap"]

        asyncio.run(main())

    def test_a_timeout_was_in_time(self, worker: StandIn) -> None:
        worker.set(ordinary.taken_though_cancelled)

        async def main() -> None:
            async with asyncio.timeout(None) as timeout:
                assert (
                    await aio.create_snapshot("vm1", on_progress=ending(timeout))
                ).name == "snap"
            assert timeout.expired()
            await asyncio.sleep(0.01)  # nothing is left of it

        asyncio.run(main())

    def test_a_timeout_of_more_than_the_operation_ends_what_comes_after(
        self, worker: StandIn
    ) -> None:
        worker.set(ordinary.taken_though_cancelled)

        made: list[Snapshot] = []

        async def main() -> None:
            async with asyncio.timeout(None) as timeout:
                made.append(await aio.create_snapshot("vm1", on_progress=ending(timeout)))
                await asyncio.sleep(60)

        with pytest.raises(TimeoutError):
            asyncio.run(main())
        assert len(made) == 1

    def test_a_timeout_while_a_cancelled_task_tidies_up(self, worker: StandIn) -> None:
        """The cancellation before has been delivered, and is not delivered once more."""
        worker.set(ordinary.taken_though_cancelled)
        tidied: list[Snapshot] = []

        async def tidy() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                async with asyncio.timeout(None) as timeout:
                    tidied.append(await aio.create_snapshot("vm1", on_progress=ending(timeout)))
                await asyncio.sleep(0.01)
                tidied.append(tidied[0])

        async def main() -> None:
            task = asyncio.create_task(tidy())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert len(tidied) == 2

        asyncio.run(main())


class TestTheEndOfTheLoop:
    def run(self, main: str) -> subprocess.CompletedProcess[str]:
        """A program that interrupts itself when its operation is under way."""
        code = dedent(
            """
            import asyncio, os, signal, threading
            from pyxlsnap import aio
            def interrupt(_):
                asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
            """
        ) + dedent(main)
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    def test_ctrl_c_rolls_back(self, worker: StandIn) -> None:
        worker.set(ordinary.rolled_back)
        done = self.run("asyncio.run(aio.create_snapshot('vm1', on_progress=interrupt))")
        assert done.returncode == -signal.SIGINT, done.stderr
        assert (worker.here / "rolled back").exists()

    def test_a_loop_that_is_left_alone_and_closed(self, worker: StandIn) -> None:
        """The old way: nobody cancels the tasks. The next progress finds the loop closed."""
        worker.set(several.reports_to_a_closed_loop)
        done = self.run(
            f"""
            import logging, pathlib
            logging.basicConfig(format="%(operation)s %(domain)s: %(message)s")
            loop = asyncio.new_event_loop()
            task = loop.create_task(aio.create_snapshot('vm1', on_progress=interrupt))
            try:
                loop.run_until_complete(task)
            except KeyboardInterrupt:
                loop.close()
                pathlib.Path({str(worker.here / "closed")!r}).touch()
                for thread in threading.enumerate()[1:]:
                    thread.join(60)
                print(threading.active_count(), task.done())
            """
        )
        assert (done.returncode, done.stdout) == (0, "1 False\n"), done.stderr
        assert "create vm1: the event loop was closed before it received this result" in done.stderr
        assert (worker.here / "rolled back").exists()

    def test_a_loop_that_is_closed_before_it_has_called_a_callback(self, worker: StandIn) -> None:
        worker.set(ordinary.rolled_back)
        done = self.run(
            """
            loop, called = asyncio.new_event_loop(), threading.Event()
            call = loop.call_soon_threadsafe
            def tell(*words, **options):
                call(*words, **options)
                called.set()
            loop.call_soon_threadsafe = tell
            async def stop():
                loop.stop()
                called.wait(60)
            task = loop.create_task(aio.create_snapshot("vm1", on_progress=print))
            loop.create_task(stop())
            loop.run_forever()
            loop.close()
            for thread in threading.enumerate()[1:]:
                thread.join(60)
            print(threading.active_count(), task.done())
            """
        )
        assert (done.returncode, done.stdout) == (0, "1 False\n"), done.stderr
        assert (worker.here / "rolled back").exists()

    def test_a_coroutine_that_is_thrown_away(self, worker: StandIn) -> None:
        worker.set(ordinary.rolled_back)
        before = threading.active_count()

        async def throws_away() -> None:
            progress = Begun()
            call = aio.create_snapshot("vm1", on_progress=progress)
            call.send(None)
            await progress.event.wait()
            call.close()
            await asyncio.to_thread(eventually, (worker.here / "rolled back").exists)

        asyncio.run(throws_away())
        assert (worker.here / "rolled back").exists()
        assert eventually(lambda: threading.active_count() == before)


async def longest_gap(call: Coroutine[Any, Any, Any], tick: Path | None = None) -> float:
    """The seconds for which the loop does not come round at the most, while a coroutine runs.

    :param tick: a file to be removed as often as it does.
    """
    longest = 0.0
    task = asyncio.create_task(call)
    while not task.done():
        before = time.perf_counter()
        await asyncio.sleep(TICK_S)
        longest = max(longest, time.perf_counter() - before - TICK_S)
        if tick:
            tick.unlink(missing_ok=True)
    await task
    return longest


class TestTheLoopGoesOn:
    @pytest.fixture
    def elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The threads on which a worker was started."""
        threads: list[int] = []
        start = subprocess.Popen.__init__

        def note(self: Any, *words: Any, **options: Any) -> None:
            threads.append(threading.get_ident())
            start(self, *words, **options)

        monkeypatch.setattr(subprocess.Popen, "__init__", note)
        return threads

    @pytest.fixture
    def undisturbed(self) -> Iterator[None]:
        """Other work on this machine waits, where that is allowed: it is not what is measured."""
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except PermissionError:
            pass
        yield
        os.sched_setscheduler(0, *before)

    @pytest.mark.usefixtures("undisturbed")
    def test_from_the_start_to_the_end_of_a_worker(
        self, worker: StandIn, elsewhere: list[int], figure: Callable[[str], None]
    ) -> None:
        """The worker goes on only if the loop does."""
        worker.set(several.waits_for_a_tick)
        tick = worker.here / "tick"
        idle = asyncio.run(longest_gap(asyncio.sleep(1)))
        busy = asyncio.run(longest_gap(aio.create_snapshot("vm1"), tick))
        assert elsewhere
        assert threading.get_ident() not in elsewhere
        figure(
            f"asyncio: an operation, from its start to its end, holds the loop up for "
            f"{busy * 1000:.1f} ms at the most (idle: {idle * 1000:.1f} ms)"
        )

    def test_several_at_once(self, worker: StandIn) -> None:
        """Each waits for all: one after the other they would never end."""
        worker.set(several.waits_for_all_four)

        async def main() -> None:
            domains = [f"vm{n}" for n in range(4)]
            made = await asyncio.gather(*map(aio.create_snapshot, domains))
            assert [snapshot.name for snapshot in made] == ["snap"] * 4

        asyncio.run(main())


def test_who_goes_on_after_something_was_left_is_cancelled_then(worker: StandIn) -> None:
    worker.set(ordinary.needs_a_person)
    caught: list[str] = []

    async def job(progress: Begun) -> None:
        try:
            await aio.create_snapshot("vm1", on_progress=progress)
        except NeedsAttention as e:
            caught.append(str(e))
        await asyncio.sleep(60)

    async def main() -> None:
        progress = Begun()
        task = asyncio.create_task(job(progress))
        await progress.event.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert caught == ["stuck"]


class TestHooks:
    """Coroutine functions in the loop; test_hook_calls.py has when they are called."""

    def test_are_run_in_the_loop_and_in_the_callers_context(self, worker: StandIn) -> None:
        worker.set(asked_and_resumed)
        who = contextvars.ContextVar("who", default="nobody")
        calls: list[tuple[str, object, str]] = []

        async def before(moment: Moment) -> None:
            await asyncio.sleep(0)
            calls.append((f"before {moment.domain}", asyncio.get_running_loop(), who.get()))

        async def after(moment: Moment) -> None:
            calls.append((f"after {moment.domain}", asyncio.get_running_loop(), who.get()))

        async def main() -> None:
            who.set("us")
            hooks = aio.AsyncHooks(before_suspend=before, after_resume=after)
            await aio.create_snapshot("vm1", hooks=hooks)
            loop = asyncio.get_running_loop()
            assert calls == [("before vm1", loop, "us"), ("after vm1", loop, "us")]

        asyncio.run(main())

    def test_one_that_is_late_is_cancelled(self, worker: StandIn) -> None:
        worker.set(asked_and_resumed)
        cancelled: list[bool] = []

        async def before(_: Moment) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        async def main() -> None:
            hooks = aio.AsyncHooks(before_suspend=before, limit_s=0.2)
            with pytest.raises(OperationFailed, match="hook before_suspend failed: TimeoutError"):
                await aio.create_snapshot("vm1", hooks=hooks)

        asyncio.run(main())
        assert cancelled == [True]

    def test_what_one_raises_is_the_cause(self, worker: StandIn) -> None:
        worker.set(asked_and_resumed)
        error = LookupError("no agent")

        async def before(_: Moment) -> None:
            raise error

        with pytest.raises(OperationFailed, match="no agent") as caught:
            asyncio.run(aio.create_snapshot("vm1", hooks=aio.AsyncHooks(before_suspend=before)))
        assert caught.value.__cause__ is error

    def test_can_snapshot_is_asked(self, worker: StandIn) -> None:
        worker.set(feasibility=ordinary.possible_but_not_live)
        assert asyncio.run(aio.can_snapshot("vm1")).live_reasons == ("no",)
