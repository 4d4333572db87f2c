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
  late. A revert cannot be cancelled after the domain was destroyed, a clone not after its memory
  was restored or the clone that it replaces was destroyed, a delete not after a part of the
  snapshot was deleted, and a recovery never, once it has begun.

In both cases the cancellation is delivered at the task's next ``await``. ``asyncio.timeout`` then
treats the call as finished in time: there is no :class:`TimeoutError`.
"""

from collections.abc import Sequence
from functools import partial

from pyxlsnap import api
from pyxlsnap.aio.call import Call
from pyxlsnap.aio.cloner import Cloner
from pyxlsnap.aio.hooks import AsyncHooks, in_loop
from pyxlsnap.aio.reverter import Reverter
from pyxlsnap.api import StrPath, clones
from pyxlsnap.cancel import Cancel
from pyxlsnap.model import DiskRequest, SnapshotConfig
from pyxlsnap.results import (
    Cloned,
    Deleted,
    Feasibility,
    OnEvent,
    OnProgress,
    Plan,
    Recovered,
    Reverted,
    Snapshot,
)
from pyxlsnap.snapshot_info import SnapshotInfo

__all__ = [
    "AsyncHooks",
    "Cloner",
    "Reverter",
    "can_snapshot",
    "clone_snapshot",
    "create_snapshot",
    "delete_clone",
    "delete_snapshot",
    "monitor_domain",
    "plan_clone",
    "plan_create",
    "plan_revert",
    "read_snapshot",
    "recover",
    "revert_snapshot",
    "start_monitor",
]


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
            hooks=in_loop(call, hooks),
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
    paused: bool = False,
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
            paused=paused,
            force=force,
            keep_current=keep_current,
            monitor=monitor,
            hooks=in_loop(call, hooks),
            on_progress=call.in_loop(on_progress),
            cancel=call.cancel,
        )
    )


async def plan_revert(
    domain: str,
    cfgfile: StrPath,
    *,
    running: bool = False,
    paused: bool = False,
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
            paused=paused,
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
    told = call.in_loop(on_progress)
    work = partial(api.delete_snapshot, cfgfile, on_progress=told, cancel=call.cancel)
    return await call.run(work)


async def clone_snapshot(
    cfgfile: StrPath,
    name: str,
    *,
    disks: Sequence[DiskRequest] = (),
    bridge: str | None = None,
    edit: clones.Edit | None = None,
    running: bool = False,
    paused: bool = False,
    replace: bool = False,
    force: bool = False,
    monitor: bool = True,
    hooks: AsyncHooks | None = None,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Cloned:
    """See :func:`pyxlsnap.clone_snapshot`."""
    call = Call("clone", name, cancel)
    return await call.run(
        partial(
            clones.clone_snapshot,
            cfgfile,
            name,
            disks=disks,
            bridge=bridge,
            edit=call.in_loop(edit),
            running=running,
            paused=paused,
            replace=replace,
            force=force,
            monitor=monitor,
            hooks=in_loop(call, hooks),
            on_progress=call.in_loop(on_progress),
            cancel=call.cancel,
        )
    )


async def plan_clone(
    cfgfile: StrPath,
    name: str,
    *,
    disks: Sequence[DiskRequest] = (),
    bridge: str | None = None,
    edit: clones.Edit | None = None,
    running: bool = False,
    paused: bool = False,
    replace: bool = False,
    force: bool = False,
    cancel: Cancel | None = None,
) -> Plan:
    """See :func:`pyxlsnap.plan_clone`."""
    call = Call("clone", name, cancel)
    return await call.run(
        partial(
            clones.plan_clone,
            cfgfile,
            name,
            disks=disks,
            bridge=bridge,
            edit=call.in_loop(edit),
            running=running,
            paused=paused,
            replace=replace,
            force=force,
            cancel=call.cancel,
        )
    )


async def delete_clone(
    name: str, *, on_progress: OnProgress | None = None, cancel: Cancel | None = None
) -> Deleted:
    """See :func:`pyxlsnap.delete_clone`."""
    call = Call("delete-clone", name, cancel)
    return await call.run(
        partial(
            clones.delete_clone, name, on_progress=call.in_loop(on_progress), cancel=call.cancel
        )
    )


async def read_snapshot(cfgfile: StrPath, *, cancel: Cancel | None = None) -> SnapshotInfo:
    """See :func:`pyxlsnap.read_snapshot`."""
    call = Call("read", "", cancel)
    return await call.run(partial(api.read_snapshot, cfgfile, cancel=call.cancel))


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
