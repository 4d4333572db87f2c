"""Waits for a condition that must be polled."""

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")


def until(condition: Callable[[], bool], *, within_s: float, poll_s: float) -> bool:
    """Poll a condition until it is true. An exception from ``condition`` ends the wait.

    :param condition: called at least once.
    :param within_s: seconds to wait at most; with 0, check once.
    :param poll_s: seconds between two checks.
    :returns: whether the condition became true.
    """
    end = time.monotonic() + within_s
    while not condition():
        left = end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(poll_s, left))
    return True


def remaining(look: Callable[[], Iterable[_T]], *, within_s: float, poll_s: float) -> list[_T]:
    """Look again and again until nothing is found any more; an exception of ``look`` ends the wait.

    The parameters are those of :func:`until`.

    :returns: what is still found at the end; empty if there was a moment with nothing.
    """
    found: list[_T] = []

    def is_gone() -> bool:
        found[:] = look()
        return not found

    until(is_gone, within_s=within_s, poll_s=poll_s)
    return found
