"""The calls of the high level as coroutine functions, for a program with an event loop.

Parameters, results and errors are those of the functions of the same name in :mod:`pyxlsnap`. Each
call runs on a thread of its own and does not block the loop. Callbacks are called in the loop's
thread, in the context of the caller.

**Cancelling the task** (by a timeout, a ``TaskGroup`` or Ctrl-C) cancels the operation. The task
ends with :class:`asyncio.CancelledError` after the operation was rolled back, however often the
task is cancelled until then. There are two exceptions:

- A :class:`~pyxlsnap.NeedsAttention` is raised in place of the ``CancelledError``. (When one of its
  tasks is cancelled, ``asyncio.gather`` does not wait for the others, and hides their errors: use a
  ``TaskGroup``.)
- If the operation succeeds, its result is returned. This happens when the cancellation comes too
  late. A revert cannot be cancelled after the domain was destroyed, a delete not after a part of
  the snapshot was deleted, and a recovery never, once it has begun.

In both cases the cancellation is delivered at the task's next ``await``. ``asyncio.timeout`` then
treats the call as finished in time: there is no :class:`TimeoutError`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from pyxlsnap import api, reverter
from pyxlsnap.aio.call import Call
from pyxlsnap.api import StrPath
from pyxlsnap.cancel import Cancel
from pyxlsnap.hooks import Hooks, Moment
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.results import (
    Deleted,
    Feasibility,
    OnEvent,
    OnProgress,
    Plan,
    Recovered,
    Reverted,
    Snapshot,
)

__all__ = [
    "AsyncHooks",
    "Reverter",
    "can_snapshot",
    "create_snapshot",
    "delete_snapshot",
    "monitor_domain",
    "plan_create",
    "plan_revert",
    "recover",
    "revert_snapshot",
    "start_monitor",
]

AsyncHook = Callable[[Moment], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncHooks:
    """The same as :class:`pyxlsnap.Hooks`, with coroutine functions that run in the loop.

    A hook that exceeds its time limit is cancelled.
    """

    #: everything is prepared, and the guest runs
    before_suspend: AsyncHook | None = None
    #: the guest runs again
    after_resume: AsyncHook | None = None
    #: a revert is done
    after_revert: AsyncHook | None = None
    #: time limit of each hook, in seconds
    limit_s: float = 10.0


async def create_snapshot(
    domain: str,
    *,
    cfgfile: StrPath | None = None,
    name: str | None = None,
    config: SnapshotConfig | None = None,
    live: bool = False,
    max_downtime: float | None = None,
    max_rate: float | None = None,
    monitor: bool = True,
    hooks: AsyncHooks | None = None,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Snapshot:
    """See :func:`pyxlsnap.create_snapshot`."""
    call = Call("create", domain, cancel)
    return await call.run(
        partial(
            api.create_snapshot,
            domain,
            cfgfile=cfgfile,
            name=name,
            config=config,
            live=live,
            max_downtime=max_downtime,
            max_rate=max_rate,
            monitor=monitor,
            hooks=_hooks(call, hooks),
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
    max_rate: float | None = None,
    cancel: Cancel | None = None,
) -> Plan:
    """See :func:`pyxlsnap.plan_create`."""
    call = Call("create", domain, cancel)
    return await call.run(
        partial(
            api.plan_create,
            domain,
            cfgfile=cfgfile,
            name=name,
            config=config,
            live=live,
            max_downtime=max_downtime,
            max_rate=max_rate,
            cancel=call.cancel,
        )
    )


async def can_snapshot(domain: str, *, cancel: Cancel | None = None) -> Feasibility:
    """See :func:`pyxlsnap.can_snapshot`."""
    call = Call("feasibility", domain, cancel)
    return await call.run(partial(api.can_snapshot, domain, cancel=call.cancel))


async def revert_snapshot(
    domain: str,
    cfgfile: StrPath,
    *,
    running: bool = False,
    force: bool = False,
    keep_current: bool = False,
    monitor: bool = True,
    hooks: AsyncHooks | None = None,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Reverted:
    """See :func:`pyxlsnap.revert_snapshot`."""
    call = Call("revert", domain, cancel)
    return await call.run(
        partial(
            api.revert_snapshot,
            domain,
            cfgfile,
            running=running,
            force=force,
            keep_current=keep_current,
            monitor=monitor,
            hooks=_hooks(call, hooks),
            on_progress=call.in_loop(on_progress),
            cancel=call.cancel,
        )
    )


class Reverter:
    """See :class:`pyxlsnap.Reverter`: the same, for ``async with``."""

    def __init__(
        self,
        domain: str,
        cfgfile: StrPath,
        *,
        running: bool = False,
        force: bool = False,
        monitor: bool = True,
    ) -> None:
        self._domain = domain
        self._reverter = reverter.Reverter(
            domain, cfgfile, running=running, force=force, monitor=monitor
        )

    async def __aenter__(self) -> Self:
        await Call("revert", self._domain).run(self._reverter.open)
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def revert(
        self,
        *,
        hooks: AsyncHooks | None = None,
        on_progress: OnProgress | None = None,
        cancel: Cancel | None = None,
    ) -> Reverted:
        """See :meth:`pyxlsnap.Reverter.revert`."""
        call = Call("revert", self._domain, cancel)
        return await call.run(
            partial(
                self._reverter.revert,
                hooks=_hooks(call, hooks),
                on_progress=call.in_loop(on_progress),
                cancel=call.cancel,
            )
        )

    async def close(self) -> None:
        """See :meth:`pyxlsnap.Reverter.close`."""
        try:
            await Call("revert", self._domain).run(self._reverter.close)
        finally:
            self._reverter.close()  # if the task was cancelled before


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
    call = Call("revert", domain, cancel)
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


async def delete_snapshot(
    cfgfile: StrPath,
    *,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Deleted:
    """See :func:`pyxlsnap.delete_snapshot`."""
    call = Call("delete", "", cancel)
    return await call.run(
        partial(
            api.delete_snapshot,
            cfgfile,
            on_progress=call.in_loop(on_progress),
            cancel=call.cancel,
        )
    )


async def recover(
    domain: str | None = None,
    *,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Recovered:
    """See :func:`pyxlsnap.recover`."""
    call = Call("recover", domain or "", cancel)
    return await call.run(
        partial(api.recover, domain, on_progress=call.in_loop(on_progress), cancel=call.cancel)
    )


async def start_monitor(uuid: str) -> None:
    """See :func:`pyxlsnap.start_monitor`."""
    await Call("monitor", uuid).run(partial(api.start_monitor, uuid))


async def monitor_domain(
    domain: str, *, on_event: OnEvent | None = None, cancel: Cancel | None = None
) -> None:
    """See :func:`pyxlsnap.monitor_domain`."""
    call = Call("monitor", domain, cancel)
    await call.run(
        partial(api.monitor_domain, domain, on_event=call.in_loop(on_event), cancel=call.cancel)
    )


def _hooks(call: Call, wanted: AsyncHooks | None) -> Hooks | None:
    """The hooks to pass to the blocking call: each runs the wanted one in the loop."""
    if wanted is None:
        return None
    return Hooks(
        before_suspend=call.awaited_in_loop(wanted.before_suspend, wanted.limit_s),
        after_resume=call.awaited_in_loop(wanted.after_resume, wanted.limit_s),
        after_revert=call.awaited_in_loop(wanted.after_revert, wanted.limit_s),
        limit_s=wanted.limit_s,
    )
