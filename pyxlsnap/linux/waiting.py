"""Waits for a condition that must be polled."""

import time
from collections.abc import Callable


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
