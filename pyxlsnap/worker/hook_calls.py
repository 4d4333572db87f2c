"""Calls the hooks of one operation, in the caller's process."""

import contextvars
import inspect
import threading
import time
from functools import partial

from pyxlsnap.hooks import Hook, Hooks, Moment
from pyxlsnap.text import one_line


class HookCalls:
    """The hooks of one operation: calls them, and keeps how each call ended."""

    def __init__(self, hooks: Hooks | None) -> None:
        self._hooks = hooks or Hooks()
        self._moment: Moment | None = None
        #: the exception of ``before_suspend``
        self.cause: BaseException | None = None
        #: failures of the other hooks, one line each
        self.failures: list[str] = []
        #: an exception such as KeyboardInterrupt that came while a hook was waited for
        self.interrupted: BaseException | None = None
        self._called: _Outcome | None = None

    @property
    def wanted(self) -> bool:
        """Whether the worker must send a message and wait before it suspends the domain."""
        return bool(self._hooks.before_suspend or self._hooks.after_resume)

    def before_suspend(self, moment: Moment) -> str:
        """Call the hook; return why it failed, or ""."""
        self._moment = moment
        self.cause = self._call(self._hooks.before_suspend, moment)
        return self._text("before_suspend", self.cause)

    def after_resume(self) -> None:
        """Call the hook, once, if the operation came to the point of ``before_suspend``."""
        moment, self._moment = self._moment, None
        if moment is None or self._hooks.after_resume is None:
            return
        # A late before_suspend must not do anything after this hook has run.
        if self._called and self._goes_on(self._called):
            self.failures.append("the hook before_suspend has not ended, and may undo after_resume")
        self._then("after_resume", self._hooks.after_resume, moment)

    def after_revert(self, moment: Moment) -> None:
        """Call the hook."""
        self._then("after_revert", self._hooks.after_revert, moment)

    def _then(self, name: str, hook: Hook | None, moment: Moment) -> None:
        if text := self._text(name, self._call(hook, moment)):
            self.failures.append(text)

    def _call(self, hook: Hook | None, moment: Moment) -> BaseException | None:
        if hook is None:
            return None
        outcome = _Outcome()

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
        if self._goes_on(outcome):
            return TimeoutError(f"it has not returned within {self._hooks.limit_s:g} s")
        return outcome.error

    def _goes_on(self, outcome: "_Outcome") -> bool:
        """Wait for a hook up to its time limit, also after Ctrl-C; return whether it still runs."""
        end = time.monotonic() + self._hooks.limit_s
        while not outcome.done.is_set() and (left := end - time.monotonic()) > 0:
            try:
                outcome.done.wait(left)
            except BaseException as e:
                self.interrupted = self.interrupted or e
        return not outcome.done.is_set()

    def _text(self, name: str, error: BaseException | None) -> str:
        if error is None:
            return ""
        said = f": {error}" if str(error) else ""
        return one_line(f"the hook {name} failed: {type(error).__name__}{said}")


class _Outcome:
    """How the call of a hook ended: whether it has returned, and its exception."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: BaseException | None = None


def _refuse_coroutine(returned: object) -> None:
    """A coroutine function has only made a coroutine: it has done nothing."""
    if inspect.iscoroutine(returned):
        returned.close()
        raise TypeError("it is a coroutine function, which only pyxlsnap.aio can call")
