"""What may become of a snapshot, of its domain and of the host between a create and a clone.

And what may become of a clone before another one replaces it.

The clone is ``{clone}``, and its disks are ``{overlay}``, ``{reflink}`` and ``{copy}``; the other
names are those of :class:`.condition.Condition`. The disks of the snapshot are an external qcow2
one, a raw file, and a block device whose copy is copied again.
"""

from tests.rehearsal import processes
from tests.rehearsal.condition import Condition
from tests.rehearsal.snapshots import MEMORY_IMMUTABLE, MEMORY_TRUNCATED


def _moved(what: str, file: str, says: str) -> Condition:
    return Condition(
        name=f"{what} moved",
        do=(f"mv {file} {{spare}}",),
        status=3,
        says=says,
        undo=(f"mv {{spare}} {file}",),
    )


def _taken(what: str, path: str, make: str = "touch {}") -> Condition:
    return Condition(
        name=f"somebody took the name of {what}",
        do=(make.format(path),),
        status=3,
        says=f"{path} exists",
        undo=(f"rm -r {path}",),
    )


CLONE_CONDITIONS = (
    Condition(name="nothing", status=0),
    Condition(name="the domain paused", do=("xl pause {domain}",), status=0),
    Condition(name="the domain off", do=("xl destroy {domain}",), status=0),
    Condition(name="the disk of the domain moved", do=("mv {external} {spare}",), status=0),
    Condition(
        name="the disk of the domain used by another one",
        do=("xl block-attach {other} format=qcow2,vdev=xvdh,access=rw,target={external}",),
        status=0,
    ),
    Condition(
        name="the name of the clone taken by another domain",
        do=("xl rename {other} {clone}",),
        status=3,
        says="holds {clone}",
        undo=("xl rename {clone} {other}",),
    ),
    Condition(
        name="the disk snapshots immutable",
        do=("chattr +i {frozen} {raw_copy}",),
        status=0,
        undo=("chattr -i {frozen} {raw_copy}",),
    ),
    MEMORY_IMMUTABLE,
    _moved("the frozen file", "{frozen}", "there is no file {frozen}"),
    _moved("what the frozen file stands on", "{external_base}", "{external_base}"),
    _moved("the lowest file of the chain", "{external_bottom}", "{external_bottom}"),
    _moved("the copy of a raw file", "{raw_copy}", "{raw_copy}: No such file"),
    _moved("the copy of a block device", "{block_copy}", "{block_copy}: No such file"),
    _moved("the memory file", "{memory}", "{memory}: cannot be read: No such file"),
    Condition(
        name="another image in the place of the frozen file",
        do=("mv {frozen} {spare}", "echo no image >{frozen}"),
        status=3,
        says="qemu-img",
        undo=("mv {spare} {frozen}",),
    ),
    Condition(
        name="the disk in the place of the frozen file",
        do=("mv {frozen} {spare}", "ln {external} {frozen}"),
        status=3,
        says="{frozen} is the disk",
        undo=("mv {spare} {frozen}",),
    ),
    Condition(
        name="the copy of a raw file truncated",
        do=("cp -p {raw_copy} {spare}", "truncate -s 0 {raw_copy}"),
        status=3,
        says="the disk snapshot {raw_copy} is empty",
        undo=("cp -p {spare} {raw_copy}",),
    ),
    MEMORY_TRUNCATED,
    Condition(
        name="the memory file writable by others, in a directory that is closed to them",
        do=("chmod 0666 {memory}",),
        status=0,
        undo=("chmod 0600 {memory}",),
    ),
    _taken("an overlay", "{overlay}"),
    _taken("a reflink", "{reflink}", "ln -s /none {}"),
    _taken("a disk that was asked for", "{copy}", "mkdir {}"),
    Condition(
        name="the directory of the disks immutable",
        do=("chattr +i {dir}",),
        status=3,
        says="{dir} is immutable: `chattr -i` it first",
        undo=("chattr -i {dir}",),
    ),
    Condition(
        name="a read-only mount over the directory of the disks",
        do=("mount --bind {dir} {dir}", "mount -o remount,bind,ro {dir}"),
        status=3,
        says="read-only",
        undo=("umount {dir}",),
    ),
    Condition(
        name="no room beside the disks",
        do=(
            "dd if=/dev/zero of={filler} bs=1M 2>/dev/null || true",
            "dd if=/dev/zero of={filler} bs=4k oflag=append conv=notrunc 2>/dev/null || true",
        ),
        status=3,
        says="{dir}",
        undo=("rm {filler}",),
    ),
    *(
        c
        for c in processes.CONDITIONS
        if c.name.startswith("a limit") or c.name == "a frozen file open in another process"
    ),
    Condition(
        name="another operation at work on the domain",
        do=processes.CONDITIONS[0].do,
        status=0,
        undo=processes.CONDITIONS[0].undo,
    ),
)

# What befalls the snapshot is in the list above. The undo of a condition with status 0 looks
# whether what is not pyxlsnap's is there yet.
REPLACE_CONDITIONS = (
    Condition(name="nothing", status=0),
    Condition(name="the clone paused", do=("xl pause {clone}",), status=0),
    Condition(name="the clone off", do=("xl destroy {clone}",), status=0),
    Condition(
        name="the clone renamed",
        do=("xl rename {clone} kept",),
        status=3,
        says="the clone {clone} is called kept now",
        undo=("xl rename kept {clone}",),
    ),
    Condition(
        name="the name of the clone, which is off, taken by another domain",
        do=("xl destroy {clone}", "xl rename {other} {clone}"),
        status=3,
        says="holds {clone}",
        undo=("xl rename {clone} {other}",),
    ),
    Condition(
        name="a disk of the clone moved",
        do=("mv {overlay} {spare}",),
        status=0,
        undo=("test -s {spare}",),
    ),
    *(
        Condition(
            name=f"another file in the place of {what}",
            do=(f"rm {path}", f"echo theirs >{path}"),
            status=0,
            says="a disk of a clone that was replaced could not be deleted",
            undo=(f"grep -q theirs {path}",),
        )
        for what, path in (("an overlay", "{overlay}"), ("a reflink", "{reflink}"))
    ),
    Condition(
        name="an image stands on a disk of the clone",
        do=("qemu-img create -q -f qcow2 -b {overlay} -F qcow2 {spare}",),
        status=3,
        says="{spare} stands on its disk {overlay}",
        undo=("rm {spare}",),
    ),
    Condition(
        name="a disk snapshot inside a disk of the clone",
        do=("qemu-img snapshot -c theirs {overlay}",),
        status=3,
        says="there are disk snapshots inside",
        undo=("qemu-img snapshot -d theirs {overlay}",),
    ),
    *(
        Condition(
            name=f"{what} used by another domain",
            do=(f"xl block-attach {{other}} format={form},vdev=xvdh,access=rw,target={path}",),
            status=3,
            says="domain {other} uses",
            undo=("xl block-detach {other} xvdh",),
        )
        for what, form, path in (("an overlay", "qcow2", "{overlay}"), ("a copy", "raw", "{copy}"))
    ),
    Condition(
        name="an overlay open in another process",
        do=("sleep 1000 <{overlay} >/dev/null 2>&1 & echo $! >{spare}",),
        status=3,
        says="{overlay} is in use by sleep",
        undo=("kill $(cat {spare})", "rm {spare}"),
    ),
    Condition(
        name="a loop device over a disk of the clone",
        do=("losetup --find --show {reflink} >{spare}",),
        status=3,
        says="{reflink} is in use by loop",
        undo=("losetup -d $(cat {spare})", "rm {spare}"),
    ),
    *(
        Condition(
            name=f"{what} of the clone immutable",
            do=(f"chattr +i {path}",),
            status=3,
            says=f"{path} is immutable: `chattr -i` it first",
            undo=(f"chattr -i {path}",),
        )
        for what, path in (("an overlay", "{overlay}"), ("a copy", "{copy}"))
    ),
)
