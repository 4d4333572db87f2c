"""A blocking call of :mod:`pyxlsnap.api` on a thread of its own, for a task of an event loop."""

import asyncio
import concurrent.futures
import contextvars
import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.errors import NeedsAttention

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_V = TypeVar("_V")

#: seconds between two checks whether the loop was closed
_LOOP_POLL_S = 1.0


class Call:
    """A blocking call on a thread of its own, as the loop sees it.

    :param operation, domain: for log records.
    :param cancel: the caller's token. Several calls may share this token, and cancelling the task
        must cancel only this call. So the call has a token of its own.
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
        """Wrap a callback for use on the thread: it is called in the loop, and waited for.

        An exception of the callback is raised in the thread, where the blocking call handles it.
        """
        return partial(self._call_in_loop, callback) if callback else None

    def awaited_in_loop(
        self, hook: Callable[[_V], Awaitable[None]] | None, limit_s: float
    ) -> Callable[[_V], None] | None:
        """The same for a coroutine function; it is cancelled after ``limit_s`` seconds."""
        return partial(self._run_in_loop, hook, limit_s) if hook else None

    async def run(self, call: Callable[[], _T]) -> _T:
        """Make the call, and wait until it has ended."""
        task = asyncio.current_task()
        assert task
        if task.cancelling():  # deliver a pending cancellation before anything is done
            await asyncio.sleep(0)
        requests = task.cancelling()
        outcome: concurrent.futures.Future[_T] = concurrent.futures.Future()
        ended = asyncio.Event()
        # Not the loop's executor, because it may be full. The thread is a daemon: if the process
        # ends, the worker notices and rolls back.
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
            if ended.is_set():  # the threads return at once
                thread.join()
                if self._canceller:
                    self._canceller.join()
            elif thread.is_alive():  # the coroutine is closed, perhaps at the interpreter's exit
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
        """Cancel the call on another thread: setting a token may block for a moment."""
        if self._canceller is None:
            self._canceller = threading.Thread(
                target=self.cancel.set, name="pyxlsnap-cancel", daemon=True
            )
            self._canceller.start()

    # The methods below run on the thread.

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
            result = outcome.exception() or outcome.result()
            message = "the event loop was closed before it received this result: %s"
            log.warning(message, result, extra=self._about)

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

    def _run_in_loop(
        self, hook: Callable[[_V], Awaitable[None]], limit_s: float, value: _V
    ) -> None:
        async def run() -> None:
            async with asyncio.timeout(limit_s):
                await hook(value)

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
        while not concurrent.futures.wait([done], _LOOP_POLL_S).done:
            if self._loop.is_closed():
                raise RuntimeError("the event loop was closed")
        done.result()


def _cancel_again(task: "asyncio.Task[Any]", requests: int, message: tuple[Any, ...]) -> None:
    """Deliver a cancellation that did not stop the call, unless it was withdrawn meanwhile.

    :param requests: the task's number of cancellation requests before the call.
    """
    if not task.done() and task.cancelling() > requests:
        task.uncancel()  # the same request, delivered again
        task.cancel(*message)
