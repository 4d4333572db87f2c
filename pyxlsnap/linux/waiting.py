"""Waiting for something that nothing announces."""

import time
from collections.abc import Callable


def until(condition: Callable[[], bool], *, within_s: float, poll_s: float) -> bool:
    """Ask again and again until a condition holds, at least once.

    :param within_s: seconds to wait at the most; 0: ask once.
    :param poll_s: seconds between two questions.
    :returns: whether the condition came to hold. What ``condition`` raises ends the wait.
    """
    end = time.monotonic() + within_s
    while not condition():
        left = end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(poll_s, left))
    return True
