"""The hooks of a caller that are coroutine functions."""

from collections.abc import Awaitable, Callable

from pyxlsnap.aio.call import Call
from pyxlsnap.dataclass import dataclass
from pyxlsnap.hooks import Hooks, Moment

AsyncHook = Callable[[Moment], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncHooks:
    """The same as :class:`pyxlsnap.Hooks`, with coroutine functions that run in the loop.

    A hook that exceeds its time limit is cancelled.
    """

    #: everything is prepared, and the guest runs
    before_suspend: AsyncHook | None = None
    #: the guest runs again
    after_resume: AsyncHook | None = None
    #: a revert is done
    after_revert: AsyncHook | None = None
    #: a clone is made
    after_clone: AsyncHook | None = None
    #: time limit of each hook, in seconds
    limit_s: float = 10.0


def in_loop(call: Call, wanted: AsyncHooks | None) -> Hooks | None:
    """The hooks to pass to the blocking call: each runs the wanted one in the loop."""
    if wanted is None:
        return None
    return Hooks(
        before_suspend=call.awaited_in_loop(wanted.before_suspend, wanted.limit_s),
        after_resume=call.awaited_in_loop(wanted.after_resume, wanted.limit_s),
        after_revert=call.awaited_in_loop(wanted.after_revert, wanted.limit_s),
        after_clone=call.awaited_in_loop(wanted.after_clone, wanted.limit_s),
        limit_s=wanted.limit_s,
    )
