"""Hooks of the embedder: called in its own process before a domain is suspended, and afterwards.

Each is called on a thread of its own, so that its time limit can be kept: one that is late has
failed, and whatever it does from then on is not waited for.
"""

import contextvars
import inspect
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pyxlsnap.errors import UsageError
from pyxlsnap.model import RunState
from pyxlsnap.wording import one_line


@dataclass(frozen=True, slots=True)
class Moment:
    """What a hook is told: where an operation stands."""

    #: the domain's name
    domain: str
    #: the restored domain's own in ``after_revert``
    domid: int
    #: the domain's uuid
    uuid: str
    #: what the domain is in, or will be in when the operation has ended
    state: RunState


Hook = Callable[[Moment], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What an embedder wants to do itself, at three moments of an operation.

    Each is called on a thread of its own, in the context of the caller, and waited for no longer
    than its limit. None is called for a plan, nor by :func:`~pyxlsnap.recover`: a domain that this
    has brought back is as it was saved.
    """

    #: Everything is checked and prepared, and the guest runs: to freeze its filesystems, say. With
    #: ``live`` its memory is written from then on, while it goes on. If it raises or is late, the
    #: operation is undone, the guest was never suspended, and
    #: :class:`~pyxlsnap.OperationFailed` is raised from what it raised.
    before_suspend: Hook | None = None
    #: The guest runs again (or is paused, if it was): to thaw them. Called once, and as soon as it
    #: runs, whenever the point of ``before_suspend`` was reached, however that and the operation
    #: ended (even if the guest cannot be resumed); not if this process is killed. If it raises or
    #: is late, a snapshot has a warning, and an operation that failed raises
    #: :class:`~pyxlsnap.NeedsAttention`.
    after_resume: Hook | None = None
    #: A revert is done: to set the guest's clock, say, and to thaw its filesystems, which are
    #: frozen in a memory that was saved so. If it raises or is late, the result has a warning.
    after_revert: Hook | None = None
    #: seconds that each of them may take
    limit_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.limit_s <= threading.TIMEOUT_MAX:
            raise UsageError(f"limit_s is {self.limit_s}: give the seconds that a hook may take")


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
