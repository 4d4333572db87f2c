"""The last look before the destroy: what the plan has found may have changed since.

The plan may be minutes old: a snapshot of the present state was taken, or memory was waited for.
"""

import os
from typing import BinaryIO

from pyxlsnap.errors import DiskError, OperationFailed
from pyxlsnap.guest.saved import file_version
from pyxlsnap.linux.files import open_regular
from pyxlsnap.revert.disk_files import refuse_lost, replaced
from pyxlsnap.revert.plan import RevertPlan


def look_again(plan: RevertPlan) -> None:
    """Check once more what the revert needs of the disks.

    :raises Refused, DiskError: something has changed since the plan was made.
    """
    chosen = list(zip(plan.devices, plan.requests, strict=True))
    refuse_lost(plan.guest, chosen)
    for strategy in plan.strategies:
        strategy.check_revert()
    if new := [line for line in replaced(plan.guest, chosen) if line not in plan.warnings]:
        raise DiskError(new[0].partition(": ")[2], vdev=new[0].partition(": ")[0])


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
