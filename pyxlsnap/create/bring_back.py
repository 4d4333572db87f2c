"""The first part of the undo of a create: the guest runs again before anything is removed."""

from functools import partial

from pyxlsnap.create.ended import how_ended
from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.errors import DomainNotFound, GuestTimeout, PyxlsnapError
from pyxlsnap.guest.gone import is_gone_soon
from pyxlsnap.guest.resume import patiently


def bring_back(
    plan: CreatePlan, undone: list[str], *, suspend_began: bool, memory_complete: bool
) -> str | None:
    """Let the guest run, before anything is removed.

    :param undone: gets a line if the guest had to be resumed.
    :returns: why the guest has ended by itself (:func:`how_ended`); ``None``: it runs.
    :raises GuestTimeout: the guest runs, but may yet suspend.
    :raises PyxlsnapError: it cannot be resumed, or its disks do not allow that.
    """
    guest = plan.guest
    try:
        # (A guest that has ended needs no settling.)
        if suspend_began and how_ended(guest) is None:
            _ensure_running(plan, undone, memory_complete=memory_complete)
        return how_ended(guest)
    except DomainNotFound:
        return ""
    except PyxlsnapError as e:
        if isinstance(e, GuestTimeout) or not is_gone_soon(guest):
            raise
        return ""


def _ensure_running(plan: CreatePlan, undone: list[str], *, memory_complete: bool) -> None:
    for strategy in plan.strategies:
        strategy.settle()
    ensure = partial(plan.guest.ensure_running, paused=plan.paused)
    if memory_complete:  # the guest is suspended, or was resumed already
        ensure = partial(ensure, settle_s=0.0, request_s=0.0)
    if patiently(plan.guest, ensure, plan.waiting, at_once=memory_complete):
        undone.append(f"resumed {plan.guest.name}")
