"""The calls of the high level as coroutine functions, for a host that has an event loop.

Parameters, results and errors are those of the functions of the same name in :mod:`pyxlsnap`. Each
call runs on a thread of its own, so that the loop goes on meanwhile; callbacks are called in the
loop's thread, in the context of the caller.

**Cancelling the task**, be it by a timeout, a ``TaskGroup`` or Ctrl-C, cancels the operation.
:class:`asyncio.CancelledError` is delivered when that has been rolled back, however often the task
is cancelled until then. Two things matter more, and are not hidden by it:

- :class:`~pyxlsnap.NeedsAttention` is raised in its place. (When one of its tasks is cancelled,
  ``asyncio.gather`` does not wait for the others, and hides what they raise: use a ``TaskGroup``.)
- If the operation came to a good end all the same (the cancellation was too late; a revert does not
  stop once the domain is destroyed; a recovery is never cancelled), its result is returned.

In both cases the cancellation is delivered at the task's next ``await``; to a timeout, it was in
time.
"""

import asyncio
import concurrent.futures
import contextvars
import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pyxlsnap import api, hooks
from pyxlsnap.api import StrPath
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.errors import NeedsAttention
from pyxlsnap.hooks import Moment
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.results import OnEvent, OnProgress, Plan, Possibility, Recovered, Reverted, Snapshot

__all__ = [
    "Hooks",
    "can_snapshot",
    "create_snapshot",
    "monitor_domain",
    "plan_create",
    "plan_revert",
    "recover",
    "revert_snapshot",
    "start_monitor",
]

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_V = TypeVar("_V")

_LOOK_S = 1.0

Hook = Callable[[Moment], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """See :class:`pyxlsnap.Hooks`; here they are coroutine functions, run in the loop.

    One that is late is cancelled.
    """

    #: everything is prepared, and the guest runs
    before_suspend: Hook | None = None
    #: the guest runs again
    after_resume: Hook | None = None
    #: a revert is done
    after_revert: Hook | None = None
    #: seconds that each of them may take
    limit_s: float = 10.0


async def create_snapshot(
    domain: str,
    *,
    cfgfile: StrPath | None = None,
    name: str | None = None,
    config: SnapshotConfig | None = None,
    live: bool = False,
    max_downtime: float | None = None,
    monitor: bool = True,
    hooks: Hooks | None = None,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Snapshot:
    """See :func:`pyxlsnap.create_snapshot`."""
    call = _Call("create", domain, cancel)
    return await call.run(
        partial(
            api.create_snapshot,
            domain,
            cfgfile=cfgfile,
            name=name,
            config=config,
            live=live,
            max_downtime=max_downtime,
            monitor=monitor,
            hooks=call.hooks(hooks),
            on_progress=call.in_loop(on_progress),
            cancel=call.cancel,
        )
    )


async def plan_create(
    domain: str,
    *,
    cfgfile: StrPath | None = None,
    name: str | None = None,
    config: SnapshotConfig | None = None,
    live: bool = False,
    max_downtime: float | None = None,
    cancel: Cancel | None = None,
) -> Plan:
    """See :func:`pyxlsnap.plan_create`."""
    call = _Call("create", domain, cancel)
    return await call.run(
        partial(
            api.plan_create,
            domain,
            cfgfile=cfgfile,
            name=name,
            config=config,
            live=live,
            max_downtime=max_downtime,
            cancel=call.cancel,
        )
    )


async def can_snapshot(domain: str, *, cancel: Cancel | None = None) -> Possibility:
    """See :func:`pyxlsnap.can_snapshot`."""
    call = _Call("possibility", domain, cancel)
    return await call.run(partial(api.can_snapshot, domain, cancel=call.cancel))


async def revert_snapshot(
    domain: str,
    cfgfile: StrPath,
    *,
    running: bool = False,
    force: bool = False,
    keep_current: bool = False,
    monitor: bool = True,
    hooks: Hooks | None = None,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Reverted:
    """See :func:`pyxlsnap.revert_snapshot`."""
    call = _Call("revert", domain, cancel)
    return await call.run(
        partial(
            api.revert_snapshot,
            domain,
            cfgfile,
            running=running,
            force=force,
            keep_current=keep_current,
            monitor=monitor,
            hooks=call.hooks(hooks),
            on_progress=call.in_loop(on_progress),
            cancel=call.cancel,
        )
    )


async def plan_revert(
    domain: str,
    cfgfile: StrPath,
    *,
    running: bool = False,
    force: bool = False,
    keep_current: bool = False,
    cancel: Cancel | None = None,
) -> Plan:
    """See :func:`pyxlsnap.plan_revert`."""
    call = _Call("revert", domain, cancel)
    return await call.run(
        partial(
            api.plan_revert,
            domain,
            cfgfile,
            running=running,
            force=force,
            keep_current=keep_current,
            cancel=call.cancel,
        )
    )


async def recover(domain: str | None = None) -> Recovered:
    """See :func:`pyxlsnap.recover`."""
    return await _Call("recover", domain or "").run(partial(api.recover, domain))


async def start_monitor(uuid: str) -> None:
    """See :func:`pyxlsnap.start_monitor`."""
    await _Call("monitor", uuid).run(partial(api.start_monitor, uuid))


async def monitor_domain(
    domain: str, *, on_event: OnEvent | None = None, cancel: Cancel | None = None
) -> None:
    """See :func:`pyxlsnap.monitor_domain`."""
    call = _Call("monitor", domain, cancel)
    await call.run(
        partial(api.monitor_domain, domain, on_event=call.in_loop(on_event), cancel=call.cancel)
    )


class _Call:
    """A blocking call on a thread of its own, as the loop sees it.

    :param operation, domain: for log records.
    :param cancel: the caller's token. The task must cancel this call and no other one that has the
        same token, so the call has one of its own.
    """

    def __init__(self, operation: str, domain: str, cancel: Cancel | None = None) -> None:
        self._about = {"operation": operation, "domain": domain}
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._callers = cancel or Cancel()
        #: the token to make the call with
        self.cancel = Cancel()
        self._canceller: threading.Thread | None = None

    def in_loop(self, callback: Callable[[_V], None] | None) -> Callable[[_V], None] | None:
        """A callback for the call: has the given one called in the loop, and waits for it.

        So what that raises is raised to the call, which has its ways for that.
        """
        return partial(self._call_in_loop, callback) if callback else None

    def hooks(self, wanted: Hooks | None) -> hooks.Hooks | None:
        """Hooks for the call, which have the given ones run in the loop."""
        if wanted is None:
            return None

        def in_loop(hook: Hook | None) -> hooks.Hook | None:
            return partial(self._run_in_loop, hook, wanted.limit_s) if hook else None

        return hooks.Hooks(
            before_suspend=in_loop(wanted.before_suspend),
            after_resume=in_loop(wanted.after_resume),
            after_revert=in_loop(wanted.after_revert),
            limit_s=wanted.limit_s,
        )

    async def run(self, call: Callable[[], _T]) -> _T:
        """Make the call, and wait until it has ended."""
        task = asyncio.current_task()
        assert task
        if task.cancelling():  # one that is on its way is delivered before anything is done
            await asyncio.sleep(0)
        requests = task.cancelling()
        outcome: concurrent.futures.Future[_T] = concurrent.futures.Future()
        ended = asyncio.Event()
        # Not the loop's executor, which may be full. If the whole process ends, the worker sees it.
        work = partial(contextvars.copy_context().run, self._work, call, outcome, ended)
        thread = threading.Thread(target=work, name="pyxlsnap-call", daemon=True)
        thread.start()
        cancelled: asyncio.CancelledError | None = None
        try:
            while not ended.is_set():
                try:
                    await ended.wait()
                except asyncio.CancelledError as e:
                    cancelled = cancelled or e
                    self._cancel()
        finally:
            if ended.is_set():  # a last step of theirs is all that is left
                thread.join()
                if self._canceller:
                    self._canceller.join()
            elif thread.is_alive():  # the coroutine is thrown away, perhaps with the interpreter
                self.cancel.set()
        if cancelled is None:
            return outcome.result()
        error = outcome.exception()
        if error and not isinstance(error, NeedsAttention):
            raise cancelled from error
        self._loop.call_soon(_cancel_again, task, requests, cancelled.args)
        if error:
            raise error from cancelled
        return outcome.result()

    def _cancel(self) -> None:
        """Cancel the call; setting a token may take a moment, which the loop has not."""
        if self._canceller is None:
            self._canceller = threading.Thread(
                target=self.cancel.set, name="pyxlsnap-cancel", daemon=True
            )
            self._canceller.start()

    # On the thread

    def _work(
        self,
        call: Callable[[], _T],
        outcome: "concurrent.futures.Future[_T]",
        ended: asyncio.Event,
    ) -> None:
        try:
            outcome.set_result(self._with_callers_token(call))
        except BaseException as e:
            outcome.set_exception(e)
        try:
            self._loop.call_soon_threadsafe(ended.set)
        except RuntimeError:
            said = outcome.exception() or outcome.result()
            what = "the event loop was closed before this could be told: %s"
            log.warning(what, said, extra=self._about)

    def _with_callers_token(self, call: Callable[[], _T]) -> _T:
        with ExitStack() as stack:
            try:
                stack.enter_context(self._callers.armed(self._pass_on))
            except Cancelled:
                self.cancel.set()
            return call()

    def _pass_on(self) -> bool:
        self.cancel.set()
        return True

    def _run_in_loop(self, hook: Hook, limit_s: float, moment: Moment) -> None:
        async def run() -> None:
            async with asyncio.timeout(limit_s):
                await hook(moment)

        asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _call_in_loop(self, callback: Callable[[_V], None], value: _V) -> None:
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def do() -> None:
            try:
                callback(value)
            except BaseException as e:
                done.set_exception(e)
            else:
                done.set_result(None)

        self._loop.call_soon_threadsafe(do, context=self._context)
        while not concurrent.futures.wait([done], _LOOK_S).done:
            if self._loop.is_closed():
                raise RuntimeError("the event loop was closed")
        done.result()


def _cancel_again(task: "asyncio.Task[Any]", requests: int, message: tuple[Any, ...]) -> None:
    """Deliver a cancellation that has not stopped the call, unless it was taken back since.

    :param requests: how many there were before.
    """
    if not task.done() and task.cancelling() > requests:
        task.uncancel()  # it is no other one
        task.cancel(*message)
