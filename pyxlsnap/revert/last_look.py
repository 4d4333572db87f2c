"""The last look before the destroy: what the plan has found may have changed since.

The plan may be minutes old: a snapshot of the present state was taken, or memory was waited for.
So this comes after all that waits.
"""

import os
from typing import BinaryIO

from pyxlsnap.errors import OperationFailed
from pyxlsnap.guest.saved import file_version
from pyxlsnap.linux.files import open_regular
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
    """Open the memory file, so that it is there for the restore whatever becomes of its name.

    :raises OSError: it cannot be opened.
    :raises OperationFailed: it is not the file that was checked, or has changed since.
    """
    with open_regular(plan.memory_path) as file:
        if file_version(file) != plan.memory_version:
            raise OperationFailed(
                f"{plan.memory_path} was changed while the revert was prepared: run the command "
                f"again",
                step="check again",
            )
        copy = os.fdopen(os.dup(file.fileno()), "rb")
    copy.seek(plan.stream_offset)
    return copy
