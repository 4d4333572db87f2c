"""Hooks of the embedder: called in its own process before a domain is suspended, and afterwards.

Each is called on a thread of its own, so that its time limit can be kept: one that is late has
failed, and whatever it does from then on is not waited for.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from pyxlsnap.errors import UsageError
from pyxlsnap.model import RunState


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
