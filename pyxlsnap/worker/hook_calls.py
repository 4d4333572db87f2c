"""The hooks of one operation, called in the embedder's process."""

import contextvars
import inspect
import threading
import time
from functools import partial

from pyxlsnap.hooks import Hook, Hooks, Moment
from pyxlsnap.text import one_line


class HookCalls:
    """The hooks of one operation: who was called, and how that went."""

    def __init__(self, hooks: Hooks | None) -> None:
        self._hooks = hooks or Hooks()
        self._moment: Moment | None = None
        #: what ``before_suspend`` raised
        self.cause: BaseException | None = None
        #: what went wrong with the others, a line each
        self.failures: list[str] = []
        #: Ctrl-C, or the like, while one of them was waited for
        self.interrupted: BaseException | None = None
        self._called: _Outcome | None = None

    @property
    def wanted(self) -> bool:
        """The worker is to tell before it suspends the domain."""
        return bool(self._hooks.before_suspend or self._hooks.after_resume)

    def before_suspend(self, moment: Moment) -> str:
        """Call it; why it failed, "" if it did not."""
        self._moment = moment
        self.cause = self._call(self._hooks.before_suspend, moment)
        return self._text("before_suspend", self.cause)

    def after_resume(self) -> None:
        """Call it if it is due."""
        moment, self._moment = self._moment, None
        if moment is None or self._hooks.after_resume is None:
            return
        # Whatever the one before still does must not come after this.
        if self._called and self._goes_on(self._called):
            self.failures.append("the hook before_suspend has not ended, and may undo after_resume")
        self._then("after_resume", self._hooks.after_resume, moment)

    def after_revert(self, moment: Moment) -> None:
        """Call it."""
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
        except KeyboardInterrupt as e:  # while it comes up, which it does all the same
            self.interrupted = self.interrupted or e
        except RuntimeError as e:  # there cannot be one
            return e
        self._called = outcome
        if self._goes_on(outcome):
            return TimeoutError(f"it has not returned within {self._hooks.limit_s:g} s")
        return outcome.error

    def _goes_on(self, outcome: "_Outcome") -> bool:
        """Wait for a hook as long as it may take, in spite of Ctrl-C."""
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
    """That a hook has ended, and what it raised."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: BaseException | None = None


def _refuse_coroutine(returned: object) -> None:
    """Nothing has been done by it."""
    if inspect.iscoroutine(returned):
        returned.close()
        raise TypeError("it is a coroutine function, which only pyxlsnap.aio can call")
