"""Hooks: functions of the embedder, called before a suspend, after a resume, a revert or a clone.

Each hook is called in the caller's process, on a thread of its own. A hook that exceeds its time
limit has failed; it continues on its thread, but pyxlsnap does not wait for it.
"""

import threading
from collections.abc import Callable

from pyxlsnap.dataclass import dataclass
from pyxlsnap.errors import UsageError
from pyxlsnap.model import RunState


@dataclass(frozen=True, slots=True)
class Moment:
    """The argument of a hook: the domain and its state."""

    #: the domain's name
    domain: str
    #: the domain's domid; in ``after_revert`` and ``after_clone`` that of the restored domain
    domid: int
    #: the domain's uuid
    uuid: str
    #: the state of the domain, now or at the end of the operation
    state: RunState


Hook = Callable[[Moment], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Functions that an operation calls at four moments, for example to freeze filesystems.

    Each hook is called on a thread of its own, in the context of the caller, and may take up to
    ``limit_s`` seconds. A plan calls no hooks. :func:`~pyxlsnap.recover` calls none either: a guest
    that it has restored is in the saved state, perhaps with frozen filesystems.
    """

    #: Called when everything is checked and prepared, while the guest runs; for example to freeze
    #: the guest's filesystems. With ``live`` the guest continues to run after it, while its memory
    #: is written. If the hook raises an exception or exceeds its time limit, the operation is
    #: undone without a suspend, and :class:`~pyxlsnap.OperationFailed` is raised with the exception
    #: as its cause.
    before_suspend: Hook | None = None
    #: Called when the guest runs again (or is paused, if it was paused before); for example to thaw
    #: the filesystems. It is called once if the operation came to the point of ``before_suspend``,
    #: also when that hook or the operation failed, and even if the guest cannot be resumed. It is
    #: not called if this process is killed, nor if a cancel ends the wait of the caller while the
    #: guest must stay suspended: then :attr:`NeedsAttention.left <pyxlsnap.OperationFailed.left>`
    #: says so. If the hook raises an exception or exceeds its time
    #: limit, a snapshot has a warning, and a failed operation raises
    #: :class:`~pyxlsnap.NeedsAttention`.
    after_resume: Hook | None = None
    #: Called when a revert is done; for example to set the guest's clock, and to thaw its
    #: filesystems if they were frozen in the snapshot. If the hook raises an exception or exceeds
    #: its time limit, the result has a warning.
    after_revert: Hook | None = None
    #: Called when a clone is made; for example to set its clock. If the hook raises an exception or
    #: exceeds its time limit, the result has a warning.
    after_clone: Hook | None = None
    #: time limit of each hook, in seconds
    limit_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.limit_s <= threading.TIMEOUT_MAX:
            raise UsageError(
                f"limit_s is {self.limit_s}: give the time limit of a hook in seconds, more than 0"
            )
