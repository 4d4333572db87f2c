"""What may become of disk snapshots, the memory file and the cfgfile."""

from tests.rehearsal.condition import Condition

# Also between a create and a clone: clones.py.
MEMORY_TRUNCATED = Condition(
    name="the memory file truncated",
    do=("cp -p {memory} {spare}", "truncate -s -64 {memory}"),
    status=3,
    says="{memory}",
    undo=("cp -p {spare} {memory}",),
)
MEMORY_IMMUTABLE = Condition(
    name="the memory file immutable",
    do=("chattr +i {memory} {cfg}",),
    status=0,
    undo=("chattr -i {memory} {cfg}",),
)

CONDITIONS = (
    Condition(
        name="the frozen file moved",
        do=("mv {frozen} {spare}",),
        status=3,
        says="there is no file {frozen}",
        undo=("mv {spare} {frozen}",),
    ),
    Condition(
        name="another image in the place of the frozen file",
        do=("mv {frozen} {spare}", "echo no image >{frozen}"),
        status=3,
        says="qemu-img info failed",
        undo=("mv {spare} {frozen}",),
    ),
    Condition(
        name="a copy moved",
        do=("mv {raw_copy} {spare}",),
        status=3,
        says="{raw_copy}: No such file",
        undo=("mv {spare} {raw_copy}",),
    ),
    Condition(
        name="a copy truncated",
        do=("cp -p {raw_copy} {spare}", "truncate -s 0 {raw_copy}"),
        status=3,
        says="the disk snapshot {raw_copy} is empty",
        undo=("cp -p {spare} {raw_copy}",),
    ),
    Condition(
        name="the copy of a block device truncated",
        do=("cp -p {block_copy} {spare}", "truncate -s -4096 {block_copy}"),
        status=3,
        says="{block_copy} has",
        undo=("cp -p {spare} {block_copy}",),
    ),
    Condition(
        name="the memory file moved",
        do=("mv {memory} {spare}",),
        status=3,
        says="{memory}: cannot be read: No such file",
        undo=("mv {spare} {memory}",),
    ),
    MEMORY_TRUNCATED,
    MEMORY_IMMUTABLE,
    Condition(
        name="a copy that has lost its end",
        do=("cp -p {raw_copy} {spare}", "truncate -s -4096 {raw_copy}"),
        status=5,
        says="the end of the snapshot was lost",
        undo=("cp -p {spare} {raw_copy}", "truncate -r {spare} {raw}"),
        off_xen_only=True,
    ),
)
