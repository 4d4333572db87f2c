"""How much longer than usual the lab waits: on a machine that has other work, all is slower."""

import os

NAME = "PATIENCE"


def factor() -> float:
    """What the environment says (``PATIENCE=4``); 1 if nothing.

    :raises SystemExit: that is no number of 1 or more; a line that says so.
    """
    text = os.environ.get(NAME) or "1"
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < 1000:
        raise SystemExit(f"{NAME}={text}: a number from 1, how much longer than usual to wait")
    return value


def patient(seconds: float) -> float:
    """The time to wait in the place of the usual one."""
    return seconds * factor()
