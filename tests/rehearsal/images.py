"""What may become of the files of disks."""

from tests.rehearsal.condition import Condition


def _moved(what: str, file: str, says: str, *, lab: bool = False) -> Condition:
    return Condition(
        name=f"{what} moved",
        do=(f"mv {file} {file}.away",),
        status=3,
        says=says,
        undo=(f"mv {file}.away {file}",),
        lab=lab,
    )


def _unchangeable(what: str, flag: str, file: str, says: str, *, harms: bool = False) -> Condition:
    return Condition(
        name=f"{what} {says}",
        do=(f"chattr +{flag} {file}",),
        status=3,
        says=f"{file} is {says}: `chattr -{flag}` it first",
        undo=(f"chattr -{flag} {file}",),
        harms=harms,
    )


def _replaced(what: str, file: str) -> Condition:
    return Condition(
        name=f"a copy in the place of {what}",
        do=(f"cp -p {file} {{spare}}", f"mv {{spare}} {file}"),
        status=5,
        says=f"{file} is not the file that",
    )


# The file has no name any more, but QEMU has it open: what the message says to do.
_SAVE = (
    "for link in /proc/{{pid}}/fd/*; do"
    ' case "$(stat -Lc %h "$link") $(readlink "$link")" in "0 /"*"(deleted)")'
    ' cp --sparse=always "$link" {file}; esac; done'
)


def _deleted(what: str, file: str, says: str) -> Condition:
    return Condition(
        name=f"{what} deleted, which QEMU has open",
        do=(f"rm {file}",),
        status=3,
        says=says,
        undo=("xl pause {domain}", _SAVE.format(file=file), "xl unpause {domain}"),
        undone=("--force",),
    )


def _written(what: str, file: str) -> Condition:
    """A QEMU that is to write to a file locks it, unless another QEMU has the file open."""
    serve = "qemu-nbd --fork -t -k {spare}.socket --pid-file={spare} -f qcow2"
    return Condition(
        name=f"{what} served by qemu-nbd, and the domain off",
        do=("xl destroy {domain}", f"{serve} {file} >/dev/null 2>&1"),
        status=3,
        says=f"{file} is in use by qemu-nbd",
        undo=("pid=$(cat {spare}); kill $pid; tail --pid=$pid -f /dev/null",),
    )


# The place of the snapshot's own table in the image, as the header has it.
_DAMAGE = """
import struct, sys
with open(sys.argv[1], "r+b") as image:
    image.seek(64)
    image.seek(*struct.unpack(">Q", image.read(8)))
    image.seek(*struct.unpack(">Q", image.read(8)))
    image.write(b"\\xff" * 8)
"""

CONDITIONS = (
    Condition(name="nothing", status=0),
    Condition(
        name="an image moved, and a link to it in its place",
        do=("mv {internal} {spare}", "ln -s {spare} {internal}"),
        status=0,
        undo=("rm {internal}", "mv {spare} {internal}"),
    ),
    Condition(
        name="an image read-only by its mode",
        do=("chmod 0444 {internal}",),
        status=0,
        undo=("chmod 0644 {internal}",),
    ),
    Condition(
        name="a disk snapshot immutable",
        do=("chattr +i {frozen}",),
        status=0,
        undo=("chattr -i {frozen}",),
    ),
    Condition(
        name="a copy immutable",
        do=("chattr +i {raw_copy}",),
        status=0,
        undo=("chattr -i {raw_copy}",),
    ),
    Condition(
        name="other files beside the disks",
        do=("touch {internal}.{name} {external}.old {raw}.pre-revert",),
        status=0,
        undo=("rm {internal}.{name} {external}.old {raw}.pre-revert",),
    ),
    _moved("an image", "{internal}", "{internal}"),
    _moved("the backing file of an image", "{internal_base}", "{internal_base}"),
    _moved("the second backing file of an image", "{internal_bottom}", "{internal_bottom}"),
    _moved("what a frozen file stands on", "{external_base}", "{external_base}"),
    _moved("the lowest file of a chain", "{external_bottom}", "{external_bottom}", lab=True),
    Condition(
        name="a file moved into another directory",
        do=("mkdir {spare}", "mv {internal_base} {spare}/"),
        status=3,
        says="was moved to {spare}/",
        undo=("mv {spare}/* {internal_base}", "rmdir {spare}"),
    ),
    _deleted("an image", "{internal}", "xl pause {domain} && cp --sparse=always /proc/"),
    _deleted("a backing file", "{internal_base}", "(`cp --sparse=always /proc/{pid}/fd/"),
    _deleted("the lowest file", "{external_bottom}", "{external_bottom}, on which"),
    _deleted("the frozen file", "{frozen}", "save it (`cp"),
    Condition(
        name="an image deleted, and the domain off",
        do=("cp -p {internal} {spare}", "xl destroy {domain}", "rm {internal}"),
        status=3,
        says="{internal}",
        undo=("cp -p {spare} {internal}",),
    ),
    Condition(
        name="a backing file truncated",
        do=("cp -p {internal_base} {spare}", "truncate -s 100 {internal_base}"),
        status=3,
        says="{internal_base}",
        undo=("cp -p {spare} {internal_base}",),
        harms=True,  # the guest reads what was there
    ),
    Condition(
        name="a backing file that is a directory now",
        do=("mv {internal_base} {spare}", "mkdir {internal_base}"),
        status=3,
        says="{internal_base}",
        undo=("rmdir {internal_base}", "mv {spare} {internal_base}"),
    ),
    Condition(
        name="the disk snapshot deleted inside an image",
        do=("xl destroy {domain}", "qemu-img snapshot -d {name} {internal}"),
        status=3,
        says="{internal} has no disk snapshot '{name}'",
        final=True,
        off_xen_only=True,  # (the lab's snapshot serves all conditions)
    ),
    Condition(
        name="the disk snapshot damaged inside an image",
        do=(f"python3 -c '{_DAMAGE}' {{internal}}",),
        status=3,
        says="the snapshot in {internal} cannot be applied",
        final=True,
        off_xen_only=True,
    ),
    _replaced("an image", "{internal}"),
    _replaced("a backing file", "{internal_base}"),
    _replaced("the image of an external snapshot", "{external}"),
    _replaced("the frozen file", "{frozen}"),
    _replaced("a raw file", "{raw}"),
    _unchangeable("an image", "i", "{internal}", "immutable", harms=True),
    _unchangeable("the image of an external snapshot", "i", "{external}", "immutable", harms=True),
    _unchangeable("a raw file", "i", "{raw}", "immutable"),
    _unchangeable("an image", "a", "{internal}", "append-only", harms=True),
    _unchangeable("the directory of the disks", "i", "{dir}", "immutable"),
    _unchangeable("the directory of the disks", "a", "{dir}", "append-only"),
    Condition(
        name="a read-only mount over the directory of the disks",
        do=("mount --bind {dir} {dir}", "mount -o remount,bind,ro {dir}"),
        status=3,
        says="read-only",
        undo=("umount {dir}",),
        off_xen_only=True,
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
        off_xen_only=True,
    ),
    _moved("the image of an external snapshot", "{external}", "{external}"),
    _moved("a raw file", "{raw}", "{raw}"),
    Condition(
        name="somebody took the name to keep an image",
        do=("touch {external}.{name}.pre-revert",),
        status=3,
        says="{external}.{name}.pre-revert exists",
        undo=("rm {external}.{name}.pre-revert",),
        lab=True,
    ),
    Condition(
        name="somebody took the name to keep a raw file",
        do=("ln -s /none {raw}.{name}.pre-revert",),
        status=3,
        says="{raw}.{name}.pre-revert exists",
        undo=("rm {raw}.{name}.pre-revert",),
    ),
    _written("a backing file", "{internal_base}"),
    _written("the frozen file", "{frozen}"),
    _written("the lowest file of a chain", "{external_bottom}"),
    Condition(
        name="a backing file that has lost its end",
        do=("cp -p {external_bottom} {spare}", "truncate -s -64K {external_bottom}"),
        status=5,
        says="{external_bottom}, on which the disk will stand, ends before data",
        undo=("cp -p {spare} {external_bottom}",),
        off_xen_only=True,
    ),
    Condition(
        name="a raw file made larger",
        do=("truncate -s +4096 {raw}",),
        status=5,
        says="the disk was made larger since",
    ),
)
