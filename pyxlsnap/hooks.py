"""Hooks of the embedder: called in its own process before a domain is suspended, and afterwards.

Each is called on a thread of its own, so that its time limit can be kept: one that is late has
failed, and whatever it does from then on is not waited for.
"""

import contextvars
import threading
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

    None of them is called for a plan.
    """

    #: Everything is checked and prepared, and the guest runs: to freeze its filesystems, say. With
    #: ``live`` its memory is written from then on, while it goes on. If it raises or is late, the
    #: operation is undone, the guest was never suspended, and
    #: :class:`~pyxlsnap.errors.OperationFailed` is raised from what it raised.
    before_suspend: Hook | None = None
    #: The guest runs again (or is paused, if it was): to thaw them. Called once, and as soon as it
    #: runs, whenever the point of ``before_suspend`` was reached, however that and the operation
    #: ended; not if this process is killed. If it raises or is late, a snapshot has a warning, and
    #: an operation that failed raises :class:`~pyxlsnap.errors.NeedsAttention`.
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
        if moment:
            self._then("after_resume", self._hooks.after_resume, moment)

    def after_revert(self, moment: Moment) -> None:
        """Call it."""
        self._then("after_revert", self._hooks.after_revert, moment)

    def _then(self, name: str, hook: Hook | None, moment: Moment) -> None:
        try:
            text = self._text(name, self._call(hook, moment))
        except BaseException:  # Ctrl-C: it goes on, and nobody waits for it
            self.failures.append(f"the hook {name} was not waited for")
            raise
        if text:
            self.failures.append(text)

    def _call(self, hook: Hook | None, moment: Moment) -> BaseException | None:
        if hook is None:
            return None
        raised: list[BaseException] = []

        def run() -> None:
            try:
                hook(moment)
            except BaseException as e:
                raised.append(e)

        work = partial(contextvars.copy_context().run, run)
        thread = threading.Thread(target=work, name="pyxlsnap-hook", daemon=True)
        thread.start()
        thread.join(self._hooks.limit_s)
        if thread.is_alive():
            return TimeoutError(f"it has not returned within {self._hooks.limit_s:g} s")
        return raised[0] if raised else None

    def _text(self, name: str, error: BaseException | None) -> str:
        if error is None:
            return ""
        said = f": {error}" if str(error) else ""
        return one_line(f"the hook {name} failed: {type(error).__name__}{said}")
