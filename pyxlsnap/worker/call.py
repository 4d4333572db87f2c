"""Calls one operation in a worker process: returns its result, or raises its error.

If the worker dies, its supervisor recovers. If the supervisor dies, too, this module recovers.
"""

import logging
from dataclasses import asdict, replace
from typing import Any, TypeVar

from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.errors import (
    Interrupted,
    NeedsAttention,
    OperationFailed,
    PyxlsnapError,
    Refused,
    WorkerDied,
)
from pyxlsnap.hooks import Hooks, Moment
from pyxlsnap.linux.locks import RIVAL_S
from pyxlsnap.request import (
    Callbacks,
    CloneRequest,
    MonitorRequest,
    RecoverRequest,
    Request,
    RevertRequest,
    check_request,
    in_words,
)
from pyxlsnap.results import Cloned, Deleted, OnEvent, OnProgress, Recovered, Reverted
from pyxlsnap.serialize import Message, error_from_plain, rebuild
from pyxlsnap.worker.client import WorkerClient
from pyxlsnap.worker.hook_calls import HookCalls
from pyxlsnap.worker.start import Start, start_worker

_T = TypeVar("_T")

log = logging.getLogger("pyxlsnap")


def run(
    request: Request,
    returns: type[_T],
    *,
    on_progress: OnProgress | None = None,
    on_event: OnEvent | None = None,
    cancel: Cancel | None = None,
    hooks: Hooks | None = None,
) -> _T:
    """Have a worker process do what a request asks for.

    :param returns: the type of the operation's result.
    :raises UsageError: a value of the request is of the wrong type.
    :raises PyxlsnapError: the operation failed, or its worker died. The class and the attributes
        say in which state the domain is.
    """
    ignore = Callbacks()
    callbacks = replace(
        ignore,
        on_progress=on_progress or ignore.on_progress,
        on_event=on_event or ignore.on_event,
    )
    return run_in(start_worker, request, returns, callbacks, cancel=cancel, hooks=hooks)


def run_in(
    start: Start,
    request: Request,
    returns: type[_T],
    callbacks: Callbacks,
    *,
    cancel: Cancel | None = None,
    hooks: Hooks | None = None,
) -> _T:
    """The same, in a process that ``start`` starts.

    :param callbacks: ``on_progress`` and ``on_event`` are called.
    """
    check_request(request)
    calls = HookCalls(hooks)
    try:
        worker = WorkerClient(request, callbacks, calls, start)
    except OSError as e:
        raise Refused(f"the worker process cannot be started: {e.strerror}") from e
    except Cancelled:
        raise _cancelled(request) from None
    try:
        values = _run(request, worker, cancel or Cancel())
    except BaseException as e:
        if worker.goes_on:  # with the guest suspended, perhaps for long
            calls.postpone_after_resume()
        _call_late_hooks(calls, request, worker.done)
        raise _with_failures(e, calls.failures) from e.__cause__
    _call_late_hooks(calls, request, values)
    if calls.interrupted:
        worker.say_too_late(calls.interrupted, values)
        raise calls.interrupted
    result: _T = rebuild(returns, _with_warnings(values, calls.failures))
    return result


def _call_late_hooks(calls: HookCalls, request: Request, result: Message | None) -> None:
    """Call the hooks that are due when an operation has ended."""
    calls.after_resume()
    if isinstance(request, RevertRequest) and result and not request.dry_run:
        back: Reverted = rebuild(Reverted, result)
        calls.after_revert(Moment(back.domain, back.domid, back.uuid, back.state))
    if isinstance(request, CloneRequest) and result and not request.dry_run:
        made: Cloned = rebuild(Cloned, result)
        calls.after_clone(Moment(made.domain, made.domid, made.uuid, made.state))


def _run(request: Request, worker: WorkerClient, cancel: Cancel) -> Any:
    try:
        with cancel.armed(worker.cancel):
            return worker.result()
    except Cancelled:
        raise _cancelled(request) from None
    except WorkerDied as died:
        worker.release_locks()  # the recovery takes them again
        if isinstance(request, RecoverRequest):
            raise _recovery_died(died, request.domain) from died
        if isinstance(request, MonitorRequest):
            raise _monitor_died(died, request.domain) from died
        return _after(died, worker)
    finally:
        worker.close()


def _cancelled(request: Request) -> Interrupted:
    """Make (not raise) the error of an operation that was cancelled before it began."""
    return Interrupted(f"{in_words(request)} was cancelled before it began", step="start")


def _with_failures(error: BaseException, failures: list[str]) -> BaseException:
    """The error to raise: with the failures of the hooks, if there were any."""
    if not failures:
        return error
    said = "; ".join(failures)
    if not isinstance(error, OperationFailed):
        log.error("%s", said)
        error.add_note(said)
        return error
    return NeedsAttention(
        f"{error}; but {said}",
        step=error.step,
        undone=error.undone,
        left=[*error.left, *failures],
        finish=error.finish if isinstance(error, NeedsAttention) else "",
    )


def _with_warnings(values: Any, failures: list[str]) -> Any:
    return values | {"warnings": [*values["warnings"], *failures]} if failures else values


def _after(died: WorkerDied, worker: WorkerClient) -> Message:
    """Use the recovery of the dead worker's supervisor, or recover now.

    :returns: the result of the revert or delete, if the recovery finished one.
    :raises OperationFailed: the recovery rolled back: everything is as before.
    :raises NeedsAttention: the operation is complete, or the recovery failed.
    """
    try:
        found = _recovery(worker)
    except NeedsAttention as e:
        raise NeedsAttention(
            f"{died}; {e}", step=e.step, undone=e.undone, left=e.left, finish=e.finish
        ) from died
    except PyxlsnapError as e:
        raise NeedsAttention(
            f"{died}; the recovery failed: {e}",
            step="recover",
            left=[str(e)],
            finish="; ".join(f"pyxlsnap snapshot-recover {uuid}" for uuid in worker.locked),
        ) from died
    for result in (r.reverted or r.deleted or r.cloned for r in found):
        if result:
            operation = _FINISHED[type(result)]
            warning = f"{died}; a recovery finished the {operation}"
            return asdict(replace(result, warnings=(*result.warnings, warning)))
    if stands := [line for r in found if not r.rolled_back for line in r.lines]:
        what = f"{died}; {'; '.join(stands)}"
        raise NeedsAttention(what, step="worker", left=stands) from died
    done = [line for r in found for line in r.lines]
    if worker.begun and found and not done:
        what = f"{died}; it finished or rolled back, but died before reporting the result"
        left = "the unreported result: check whether the operation was done"
        raise NeedsAttention(what, step="worker", left=[left]) from died
    ran = any(r.seconds_unpaused for r in found)
    rest = "it was rolled back: " + "; ".join(done) if ran else "everything is as before"
    what = f"{died}; {rest}"
    raise OperationFailed(what, step="worker", undone=done) from died


_FINISHED = {Reverted: "revert", Deleted: "delete", Cloned: "clone"}


def _recovery(worker: WorkerClient) -> list[Recovered]:
    if worker.recovery is None:
        requests = [RecoverRequest(domain=uuid, wait_s=RIVAL_S) for uuid in worker.locked]
        return [run(request, Recovered) for request in requests]
    if "error" in worker.recovery:
        raise error_from_plain(worker.recovery["error"])
    return [rebuild(Recovered, values) for values in worker.recovery["recovered"]]


def _recovery_died(died: WorkerDied, domain: str | None) -> NeedsAttention:
    """The error if the worker of a recovery dies: another worker would die the same way."""
    return NeedsAttention(
        f"the recovery of {domain or 'every domain'} failed: {died}",
        step="recover",
        left=[f"the unfinished operation in the journal of {domain or 'each domain'}"],
        finish=f"pyxlsnap snapshot-recover {domain or ''}".rstrip(),
    )


def _monitor_died(died: WorkerDied, domain: str) -> NeedsAttention:
    left = f"no process watches {domain}"
    return NeedsAttention(f"{died}; {left} now", step="monitor", left=[left])
