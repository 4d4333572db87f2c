"""What may become of the files of disks."""

from tests.rehearsal.condition import Condition


def _moved(what: str, file: str, says: str, *, lab: bool = False) -> Condition:
    return Condition(
        name=f"{what} moved",
        do=(f"mv {file} {{spare}}",),
        status=3,
        says=says,
        undo=(f"mv {{spare}} {file}",),
        lab=lab,
    )


CONDITIONS = (
    Condition(name="nothing", status=0, lab=True),
    Condition(
        name="an image moved, and a link to it in its place",
        do=("mv {internal} {spare}", "ln -s {spare} {internal}"),
        status=0,
        lab=True,
    ),
    Condition(name="an image read-only by its mode", do=("chmod 0444 {internal}",), status=0),
    Condition(
        name="a disk snapshot immutable",
        do=("chattr +i {frozen}",),
        status=0,
        undo=("chattr -i {frozen}",),
        lab=True,
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
    ),
    _moved("an image", "{internal}", "{internal}", lab=True),
    _moved("the image of an external snapshot", "{external}", "{external}"),
    _moved("a raw file", "{raw}", "{raw}"),
    Condition(
        name="somebody took the name to keep an image",
        do=("touch {external}.{name}.pre-revert",),
        status=3,
        says="{external}.{name}.pre-revert exists",
        undo=("rm {external}.{name}.pre-revert",),
    ),
    Condition(
        name="somebody took the name to keep a raw file",
        do=("ln -s /none {raw}.{name}.pre-revert",),
        status=3,
        says="{raw}.{name}.pre-revert exists",
        undo=("rm {raw}.{name}.pre-revert",),
    ),
)
