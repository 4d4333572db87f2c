"""The failure of a create, in words; and its undo, when Ctrl-C is pressed again."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.disks.undo import LeftOver
from pyxlsnap.errors import Aborted, PyxlsnapError
from pyxlsnap.guest import dirty_log
from pyxlsnap.linux.files import is_full
from pyxlsnap.model import GuestKind

_T = TypeVar("_T")

_WRITING = ("header", "suspend", "memory file", "cfgfile")


def is_interrupt(cause: BaseException, cancel: Cancel) -> bool:
    """Whether the create was interrupted, and did not fail.

    A call of libxl is aborted by the cancel token, and when the guest has ended by itself.
    """
    aborted = isinstance(cause, Aborted) and cancel.is_set()
    return aborted or isinstance(cause, (Cancelled, KeyboardInterrupt))


def describe(step: str, cause: BaseException, plan: CreatePlan, *, interrupted: bool) -> str:
    """What happened, at which step, and why.

    If the filesystem of the memory file is full, the text says so.

    :param interrupted: see :func:`is_interrupt`.
    """
    domain, memory = plan.guest.name, plan.memory_path
    if interrupted:
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


def clean_up(
    cleanups: Iterable[Callable[[], list[str]]], undone: list[str], left: list[str]
) -> list[LeftOver]:
    """Do all of them, also if some fail.

    :param undone: gets what they have undone, a line each.
    :param left: gets what is left, and can be undone later, a line each.
    :returns: what else is left: a recovery could do no more.
    """
    leftovers = []
    for cleanup in cleanups:
        try:
            undone += in_spite_of_ctrl_c(cleanup)
        except LeftOver as e:
            leftovers.append(e)
        except BaseException as e:  # the next cleanup must still be done
            left.append(str(e) or type(e).__name__)
    return leftovers


def stop_recording(plan: CreatePlan) -> None:
    """The guest runs again: let its QEMU record no more what it changes, if libxl did not.

    The last part of an undo, because the disk strategies leave QEMU's monitor.
    """
    if plan.examined.config.kind is GuestKind.HVM:
        plan.close()
        in_spite_of_ctrl_c(partial(dirty_log.switch_off, plan.guest))
