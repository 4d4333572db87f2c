"""The failure of a create, in words; and its undo, when Ctrl-C is pressed again."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pyxlsnap.cancel import Cancelled
from pyxlsnap.errors import Aborted, PyxlsnapError
from pyxlsnap.linux.files import is_full

_T = TypeVar("_T")

_WRITING = ("header", "suspend", "memory file", "cfgfile")
# Only the cancel token aborts a call of libxl.
_INTERRUPTED = (Cancelled, KeyboardInterrupt, Aborted)


def is_interrupt(cause: BaseException) -> bool:
    """Whether the create was interrupted, and did not fail."""
    return isinstance(cause, _INTERRUPTED)


def describe(step: str, cause: BaseException, domain: str, memory: Path) -> str:
    """What happened, at which step, and why.

    :param memory: the memory file: if its filesystem is full, the text says so.
    """
    if is_interrupt(cause):
        return f"the snapshot of {domain} was interrupted ({step})"
    said = str(cause) or type(cause).__name__
    if isinstance(cause, OSError) and not isinstance(cause, PyxlsnapError):
        said = f"{cause.filename or memory}: {cause.strerror or cause}"
    if step in _WRITING and is_full(memory.parent):  # libxl does not always say so
        said += f"; {memory.parent} is full: free space there, or set memory_path to another place"
    return f"the snapshot of {domain} failed ({step}): {said}"


def in_spite_of_ctrl_c(do: Callable[[], _T]) -> _T:
    """Run a part of the undo; if Ctrl-C interrupts it, run it again."""
    try:
        return do()
    except KeyboardInterrupt:
        return do()
