"""Calls the hooks of the embedder for one operation, in the caller's process."""

import contextvars
import threading
import time
import types
from functools import partial

from pyxlsnap.hooks import Hook, Hooks, Moment
from pyxlsnap.text import one_line


class HookCalls:
    """Calls the hooks of one operation, and keeps the failures."""

    def __init__(self, hooks: Hooks | None) -> None:
        self._hooks = hooks or Hooks()
        self._moment: Moment | None = None
        #: the exception of ``before_suspend``
        self.cause: BaseException | None = None
        #: failures of the other hooks, one line each
        self.failures: list[str] = []
        #: an exception such as KeyboardInterrupt that was raised during the wait for a hook
        self.interrupted: BaseException | None = None
        self._called: _HookOutcome | None = None

    @property
    def wanted(self) -> bool:
        """Whether the worker must send a message and wait before it suspends the domain."""
        return bool(self._hooks.before_suspend or self._hooks.after_resume)

    def before_suspend(self, moment: Moment) -> str | None:
        """Call the hook; return why the hook failed, ``None`` if it did not."""
        self._moment = moment
        self.cause = self._call(self._hooks.before_suspend, moment)
        return _failure("before_suspend", self.cause)

    def after_resume(self) -> None:
        """Call the hook once, if the operation came to the point of ``before_suspend``."""
        moment, self._moment = self._moment, None
        if moment is None or self._hooks.after_resume is None:
            return
        # A late before_suspend must not do anything after this hook has run.
        if self._called and self._still_runs(self._called):
            self.failures.append(
                "the hook before_suspend has not ended, and may undo what after_resume did"
            )
        self._then("after_resume", self._hooks.after_resume, moment)

    def postpone_after_resume(self) -> None:
        """Do not call the hook: its operation goes on, and resumes the guest later."""
        moment, self._moment = self._moment, None
        if moment and self._hooks.after_resume:
            self.failures.append(
                f"the hook after_resume is still to be called, when {moment.domain} runs again"
            )

    def after_revert(self, moment: Moment) -> None:
        """Call the hook."""
        self._then("after_revert", self._hooks.after_revert, moment)

    def after_clone(self, moment: Moment) -> None:
        """Call the hook."""
        self._then("after_clone", self._hooks.after_clone, moment)

    def _then(self, name: str, hook: Hook | None, moment: Moment) -> None:
        if failure := _failure(name, self._call(hook, moment)):
            self.failures.append(failure)

    def _call(self, hook: Hook | None, moment: Moment) -> BaseException | None:
        if hook is None:
            return None
        outcome = _HookOutcome()

        def run() -> None:
            try:
                _refuse_coroutine(hook(moment))
            except BaseException as e:
                outcome.error = e
            outcome.done.set()

        work = partial(contextvars.copy_context().run, run)
        thread = threading.Thread(target=work, name="pyxlsnap-hook", daemon=True)
        try:
            thread.start()
        except KeyboardInterrupt as e:  # the thread starts nevertheless
            self.interrupted = self.interrupted or e
        except RuntimeError as e:  # the thread cannot be started
            return e
        self._called = outcome
        if self._still_runs(outcome):
            return TimeoutError(f"the hook has not returned within {self._hooks.limit_s:g} s")
        return outcome.error

    def _still_runs(self, outcome: "_HookOutcome") -> bool:
        """Wait for a hook up to its time limit, also after Ctrl-C: does the hook still run then?"""
        end = time.monotonic() + self._hooks.limit_s
        while not outcome.done.is_set() and (left := end - time.monotonic()) > 0:
            try:
                outcome.done.wait(left)
            except BaseException as e:
                self.interrupted = self.interrupted or e
        return not outcome.done.is_set()


class _HookOutcome:
    """The outcome of the call of one hook: whether the hook has returned, and its exception."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: BaseException | None = None


def _failure(name: str, error: BaseException | None) -> str | None:
    """Why a hook failed, in one line; ``None`` if the hook did not fail."""
    if error is None:
        return None
    said = f": {error}" if str(error) else ""
    return one_line(f"the hook {name} failed: {type(error).__name__}{said}")


def _refuse_coroutine(returned: object) -> None:
    """Refuse a coroutine function: its call makes a coroutine, and runs nothing of it."""
    if isinstance(returned, types.CoroutineType):
        returned.close()
        raise TypeError("the hook is a coroutine function, which only pyxlsnap.aio can call")
