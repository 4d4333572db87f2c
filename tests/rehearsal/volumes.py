"""What may become of logical volumes and block devices."""

from tests.rehearsal.condition import Condition


def _renamed(what: str, volume: str, says: str) -> Condition:
    return Condition(
        name=f"{what} renamed",
        do=(f"lvrename {{group}}/{volume} {{group}}/spare",),
        status=3,
        says=says,
        undo=(f"lvrename {{group}}/spare {{group}}/{volume}",),
        lab=True,
        xen_only=True,
    )


CONDITIONS = (
    Condition(
        name="a block device read-only",
        do=("blockdev --setro {block}",),
        status=3,
        says="{block} is read-only: `blockdev --setrw` it first",
        undo=("blockdev --setrw {block}",),
    ),
    _renamed("the snapshot of a thin volume", "{thin_snapshot}", "there is no volume"),
    _renamed("the snapshot of a thick volume", "{thick_snapshot}", "there is no volume"),
    Condition(
        name="the snapshot of a thin volume active",
        do=("lvchange -ay -K {group}/{thin_snapshot}",),
        status=0,
        undo=("lvchange -an {group}/{thin_snapshot}",),
        xen_only=True,
    ),
    Condition(
        name="a thick volume read-only",
        do=("lvchange -pr {group}/{thick}",),
        status=3,
        says="{group}/{thick} is read-only",
        undo=("lvchange -prw {group}/{thick}",),
        xen_only=True,
    ),
    Condition(
        name="somebody took the name to keep a volume",
        do=("lvcreate -s -kn -n {thin}.{name}.pre-revert {group}/{thin_snapshot}",),
        status=3,
        says="{thin}.{name}.pre-revert exists",
        undo=("lvremove -f {group}/{thin}.{name}.pre-revert",),
        lab=True,
        xen_only=True,
    ),
    Condition(
        name="the volumes of a domain that is off inactive",
        do=("xl destroy {domain}", "lvchange -an {group}/{thin} {group}/{thick}"),
        status=0,
        xen_only=True,
    ),
    Condition(
        name="a mount over a block device",
        do=("mke2fs -q -F {block}", "mkdir {spare}", "mount {block} {spare}"),
        status=3,
        says="{block} is in use by a mount on ",
        undo=("umount {spare}", "rmdir {spare}"),
        off_xen_only=True,  # (the guest would find its counters overwritten)
    ),
    Condition(
        name="a loop device over a raw file",
        do=("losetup --find --show {raw} >{spare}",),
        status=3,
        says="{raw} is in use by loop",
        undo=('losetup --detach "$(cat {spare})"',),
    ),
    Condition(
        name="a volume suspended",
        do=("dmsetup suspend /dev/{group}/{thin}",),
        status=3,
        says="is suspended in the device mapper",
        undo=("dmsetup resume /dev/{group}/{thin}",),
        harms=True,
        xen_only=True,
    ),
)
