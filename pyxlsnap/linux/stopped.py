"""Whether a process is stopped, so that a signal does not end it."""

import re

from pyxlsnap import paths
from pyxlsnap.linux.waiting import until

# A tracer (strace) stops a process again and again, for a moment each time.
_MOMENT_S, _POLL_S = 1.0, 0.01
_STATE = re.compile(rb"^State:\s*(\S)", re.MULTILINE)
# T: by a signal; t: by a debugger
_STOPPED = (b"T", b"t")


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal or a debugger, and stays so for a second.

    False if the process has ended.
    """
    return not until(lambda: _state(pid) not in _STOPPED, within_s=_MOMENT_S, poll_s=_POLL_S)


def _state(pid: int) -> bytes:
    try:
        found = _STATE.search((paths.PROC / f"{pid}/status").read_bytes())
    except OSError:
        return b""
    return found[1] if found else b""
