"""The last look before the destroy: what the plan has found may have changed since.

The plan may be minutes old: a snapshot of the present state was taken, or memory was waited for.
So this comes after all that waits.
"""

from typing import BinaryIO

from pyxlsnap.errors import OperationFailed
from pyxlsnap.guest.saved import open_stream
from pyxlsnap.revert.plan import RevertPlan


def look_again(plan: RevertPlan) -> None:
    """Check once more what the revert needs of the disks and of the host.

    :raises Refused, PyxlsnapError: something has changed since the plan was made.
    """
    found = plan.examination.look()
    for strategy in plan.strategies:
        strategy.check_revert()
    if new := [risk for risk in found.risks if risk not in plan.warnings]:
        raise OperationFailed("; ".join(new), step="check again")


def open_memory(plan: RevertPlan) -> BinaryIO:
    """See :func:`pyxlsnap.guest.saved.open_stream`."""
    return open_stream(plan.memory_path, plan.memory_version, plan.stream_offset)
