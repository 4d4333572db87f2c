"""Recovering every domain that has a journal: one that must wait does not hold up the others."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from pyxlsnap.errors import Busy, NeedsAttention, PyxlsnapError
from pyxlsnap.journal import unfinished
from pyxlsnap.request import Callbacks
from pyxlsnap.results import Recovered

# How long a recovery waits until it is another's turn: at first, for the second time, at most. (The
# caller gets the domain's lock in each turn, so the turns must not be many.)
_FIRST_S, _SECOND_S, _LONGEST_S = 0.0, 60.0, 600.0


class Postponed(BaseException):
    """Ends a recovery that waits, for it is another's turn. It is run again from the top.

    This is a BaseException, so that an ``except Exception`` in a disk strategy does not catch it.
    """


class Turn:
    """The ``waiting`` of a recovery that must not hold up others.

    :param limit_s: how long it may wait; ``None``: without a limit.
    """

    def __init__(self, waiting: Callable[[str], None], limit_s: float | None) -> None:
        self._waiting = waiting
        self._limit_s = limit_s
        self._began: float | None = None

    def __call__(self, what: str) -> None:
        """Tell the user.

        :raises Postponed: the turn is over.
        """
        self._waiting(what)
        if self._began is None:
            self._began = time.monotonic()
        if self._limit_s is not None and time.monotonic() - self._began >= self._limit_s:
            raise Postponed(what)


class RecoverOne(Protocol):
    """Recovers one domain."""

    def __call__(self, uuid: str, callbacks: Callbacks, limit_s: float | None) -> Recovered:
        """:raises Postponed: it has waited for ``limit_s``, and is to be called again."""


def recover_every(recover_one: RecoverOne, callbacks: Callbacks) -> Recovered:
    """Recover every domain that has a journal.

    A failure for one domain does not stop the recovery of the others. Operations that are still
    under way are left alone; the result's lines name them.

    :raises NeedsAttention: as :func:`pyxlsnap.recovery.operation.recover`, for all of them.
    """
    found = _Found()
    turns = deque((uuid, _FIRST_S) for uuid in unfinished())
    while turns:
        uuid, limit_s = turns.popleft()
        leave = partial(found.leave, callbacks, [other for other, _ in turns])
        telling = replace(callbacks, leave=leave)
        try:
            found.add(uuid, recover_one(uuid, telling, limit_s if turns else None))
        except Postponed:
            turns.append((uuid, min(max(2 * limit_s, _SECOND_S), _LONGEST_S)))
        except Busy as e:
            found.lines.append(f"{uuid}: {e}")
        except Exception as e:
            found.failed.append(_failure(uuid, e))
    if found.failed:
        raise _together(found.failed, found.lines)
    return Recovered(tuple(found.lines), rolled_back=found.back)


class _Found:
    """What the recoveries have come to."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.failed: list[NeedsAttention] = []
        self.back = True
        self._left = False

    def add(self, uuid: str, recovered: Recovered) -> None:
        self.lines += [f"{uuid}: {line}" for line in recovered.lines]
        self.back = self.back and recovered.rolled_back

    def leave(self, callbacks: Callbacks, others: Sequence[str], waits: PyxlsnapError) -> None:
        """Let the caller go, once, while one recovery waits, and others are not done yet."""
        if not self._left:
            self._left = True
            yet = [_not_yet(uuid) for uuid in others]
            callbacks.leave(_together([*self.failed, _failure("", waits), *yet], self.lines))


def _not_yet(uuid: str) -> NeedsAttention:
    what = f"the recovery of {uuid} is not done yet"
    return NeedsAttention(
        what, step="recover", left=[what], finish=f"pyxlsnap snapshot-recover {uuid}"
    )


def _together(failed: Sequence[NeedsAttention], lines: Sequence[str]) -> NeedsAttention:
    return NeedsAttention(
        "; ".join(map(str, failed)),
        step="recover",
        undone=[*lines, *(line for e in failed for line in e.undone)],
        left=[line for e in failed for line in e.left],
        finish="; ".join(e.finish for e in failed if e.finish),
    )


def _failure(uuid: str, error: Exception) -> NeedsAttention:
    if isinstance(error, NeedsAttention):
        return error
    known = isinstance(error, PyxlsnapError)
    what = str(error) if known else f"{uuid}: {type(error).__name__}: {error}"
    return NeedsAttention(what, step="recover", left=[f"the journal of {uuid}"])
