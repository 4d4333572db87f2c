"""What may become of logical volumes and block devices."""

from tests.rehearsal.condition import Condition

CONDITIONS = (
    Condition(
        name="a block device read-only",
        do=("blockdev --setro {block}",),
        status=3,
        says="{block} is read-only: `blockdev --setrw` it first",
        undo=("blockdev --setrw {block}",),
        lab=True,
    ),
)
