"""One operation in a worker process, to its end: its result, its error, or its recovery."""

import logging
from dataclasses import asdict, replace
from typing import Any

from pyxlsnap import serialize
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
from pyxlsnap.results import OnEvent, OnProgress, Recovered, Reverted
from pyxlsnap.serialize import from_wire
from pyxlsnap.worker.client import Worker
from pyxlsnap.worker.hook_calls import HookCalls

log = logging.getLogger("pyxlsnap")


def run(
    request: serialize.Message,
    *,
    on_progress: OnProgress | None = None,
    on_event: OnEvent | None = None,
    cancel: Cancel | None = None,
    hooks: Hooks | None = None,
) -> Any:
    """Have a worker do what a request says; returns its result as plain values.

    :raises PyxlsnapError: what the operation raised, or what became of it when its worker died.
    """
    calls = HookCalls(hooks)
    try:
        worker = Worker(
            request | {"hooks": calls.wanted},
            on_progress or (lambda _: None),
            on_event or (lambda _: None),
            calls,
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
    return _with_warnings(values, calls.failures)


def _call_the_rest(
    calls: HookCalls, request: serialize.Message, result: serialize.Message | None
) -> None:
    """What is due when an operation has ended."""
    calls.after_resume()
    if request["operation"] == "revert" and result and not request.get("dry_run"):
        back: Reverted = serialize.rebuild(Reverted, result)
        calls.after_revert(Moment(back.domain, back.domid, back.uuid, back.state))


def _run(request: serialize.Message, worker: Worker, cancel: Cancel) -> Any:
    try:
        with cancel.armed(worker.cancel):
            return worker.result()
    except Cancelled:
        raise Interrupted("cancelled before it began", step="start") from None
    except WorkerDied as died:
        worker.let_go_of_locks()  # the recovery takes them
        if request["operation"] == "recover":
            raise _not_recovered(died, request["domain"]) from died
        if request["operation"] == "monitor":
            raise _not_watched(died, request["domain"]) from died
        return _after(died, worker)
    finally:
        worker.close()


def recover(domain: str | None, *, wait_s: float = 0.0) -> Recovered:
    """See :func:`pyxlsnap.recover`.

    :param wait_s: for so long, wait for somebody else who works on the domain.
    """
    request = {"operation": "recover", "domain": domain, "monitor": True, "wait_s": wait_s}
    recovered: Recovered = serialize.rebuild(Recovered, run(request))
    return recovered


def _with_failures(error: BaseException, failures: list[str]) -> BaseException:
    """What is to be raised if, beside that, the guest was not told that it runs again."""
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


def _after(died: WorkerDied, worker: Worker) -> serialize.Message:
    """The worker is dead. Its keeper has done what it would have done; else that is done now.

    Returns the result of a revert that was finished so.
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
        warning = f"{died}; the revert was finished without it"
        return asdict(replace(reverted, warnings=(*reverted.warnings, warning)))
    if stands := [line for r in found if not r.rolled_back for line in r.lines]:  # its work is done
        what = f"{died}; {'; '.join(stands)}"
        raise NeedsAttention(what, step="worker", left=stands) from died
    done = [line for r in found for line in r.lines]
    if worker.begun and found and not done:
        what = f"{died}; it had ended what it did, or undone it, and did not come to say so"
        raise NeedsAttention(what, step="worker", left=["see what is there"]) from died
    what = f"{died}; everything is as before"
    raise OperationFailed(what, step="worker", undone=done) from died


def _recovery(worker: Worker) -> list[Recovered]:
    if worker.recovery is None:
        return [recover(uuid, wait_s=RIVAL_S) for uuid in worker.locked]
    if "error" in worker.recovery:
        raise from_wire(worker.recovery["error"])
    return [serialize.rebuild(Recovered, values) for values in worker.recovery["recovered"]]


def _not_recovered(died: WorkerDied, domain: str | None) -> NeedsAttention:
    """A recovery's worker is dead: another one would end likewise."""
    return NeedsAttention(
        f"recovering {domain or 'the domains'} failed: {died}",
        step="recover",
        left=[f"what the journal of {domain or 'each'} says"],
        finish=f"pyxlsnap snapshot-recover {domain or ''}".rstrip(),
    )


def _not_watched(died: WorkerDied, domain: str) -> NeedsAttention:
    left = f"nobody watches {domain}"
    return NeedsAttention(f"{died}; {left} now", step="monitor", left=[left])
