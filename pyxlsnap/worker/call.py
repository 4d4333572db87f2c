"""The call of one operation in a worker process: its result, its error, or its recovery."""

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
from pyxlsnap.request import Callbacks, MonitorRequest, RecoverRequest, Request, RevertRequest
from pyxlsnap.results import OnEvent, OnProgress, Recovered, Reverted
from pyxlsnap.serialize import Message, error_from_plain, rebuild
from pyxlsnap.worker.client import WorkerClient
from pyxlsnap.worker.hook_calls import HookCalls

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
    """Have a worker do what a request asks for.

    :param returns: the type of the operation's result.
    :raises PyxlsnapError: what the operation raised, or what became of it when its worker died.
    """
    calls = HookCalls(hooks)
    ignore = Callbacks()
    try:
        worker = WorkerClient(
            request, on_progress or ignore.on_progress, on_event or ignore.on_event, calls
        )
    except OSError as e:
        raise Refused(f"the worker process cannot be started: {e.strerror}") from e
    try:
        values = _run(request, worker, cancel or Cancel())
    except BaseException as e:
        _call_the_rest(calls, request, worker.done)
        raise _with_failures(e, calls.failures) from e.__cause__
    _call_the_rest(calls, request, values)
    if calls.interrupted:
        worker.say_too_late(calls.interrupted, values)
        raise calls.interrupted
    result: _T = rebuild(returns, _with_warnings(values, calls.failures))
    return result


def _call_the_rest(calls: HookCalls, request: Request, result: Message | None) -> None:
    """What is due when an operation has ended."""
    calls.after_resume()
    if isinstance(request, RevertRequest) and result and not request.dry_run:
        back: Reverted = rebuild(Reverted, result)
        calls.after_revert(Moment(back.domain, back.domid, back.uuid, back.state))


def _run(request: Request, worker: WorkerClient, cancel: Cancel) -> Any:
    try:
        with cancel.armed(worker.cancel):
            return worker.result()
    except Cancelled:
        raise Interrupted("cancelled before it began", step="start") from None
    except WorkerDied as died:
        worker.release_locks()  # the recovery takes them
        if isinstance(request, RecoverRequest):
            raise _not_recovered(died, request.domain) from died
        if isinstance(request, MonitorRequest):
            raise _not_watched(died, request.domain) from died
        return _after(died, worker)
    finally:
        worker.close()


def _with_failures(error: BaseException, failures: list[str]) -> BaseException:
    """What is to be raised if, beside the error, a hook after the resume failed."""
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
    """The worker is dead: take what its supervisor has recovered, or recover now.

    Returns the result of a revert that the recovery has finished.
    """
    try:
        found = _recovery(worker)
    except NeedsAttention as e:
        raise NeedsAttention(
            f"{died}; {e}", step=e.step, undone=e.undone, left=e.left, finish=e.finish
        ) from died
    except PyxlsnapError as e:
        raise NeedsAttention(
            f"{died}; recovering failed: {e}",
            step="recover",
            left=[str(e)],
            finish="; ".join(f"pyxlsnap snapshot-recover {uuid}" for uuid in worker.locked),
        ) from died
    for reverted in (r.reverted for r in found if r.reverted):
        warning = f"{died}; the revert was finished by a recovery"
        return asdict(replace(reverted, warnings=(*reverted.warnings, warning)))
    if stands := [line for r in found if not r.rolled_back for line in r.lines]:  # its work is done
        what = f"{died}; {'; '.join(stands)}"
        raise NeedsAttention(what, step="worker", left=stands) from died
    done = [line for r in found for line in r.lines]
    if worker.begun and found and not done:
        what = f"{died}; it finished or rolled back, but died before reporting the result"
        raise NeedsAttention(what, step="worker", left=["see what is there"]) from died
    what = f"{died}; everything is as before"
    raise OperationFailed(what, step="worker", undone=done) from died


def _recovery(worker: WorkerClient) -> list[Recovered]:
    if worker.recovery is None:
        requests = [RecoverRequest(domain=uuid, wait_s=RIVAL_S) for uuid in worker.locked]
        return [run(request, Recovered) for request in requests]
    if "error" in worker.recovery:
        raise error_from_plain(worker.recovery["error"])
    return [rebuild(Recovered, values) for values in worker.recovery["recovered"]]


def _not_recovered(died: WorkerDied, domain: str | None) -> NeedsAttention:
    """The worker of a recovery is dead: another worker would die the same way."""
    return NeedsAttention(
        f"recovering {domain or 'the domains'} failed: {died}",
        step="recover",
        left=[f"what the journal of {domain or 'each'} says"],
        finish=f"pyxlsnap snapshot-recover {domain or ''}".rstrip(),
    )


def _not_watched(died: WorkerDied, domain: str) -> NeedsAttention:
    left = f"no process watches {domain}"
    return NeedsAttention(f"{died}; {left} now", step="monitor", left=[left])
