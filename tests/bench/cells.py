"""What is measured in the lab: guests that differ from the first in one thing each."""

from dataclasses import dataclass

from tests.bench.measure import Way

SAVES = (Way.XL_SAVE, Way.STOPPED, Way.LIVE)
REVERTS = (Way.REVERT, Way.XL_REVERT)
LIVE = (Way.BARE_LIVE, Way.LIVE)
GROWTH = (Way.XL_SAVE, Way.LIVE)
LVM = (Way.STOPPED, Way.NO_DISKS, Way.LIVE, *REVERTS)


@dataclass(frozen=True, slots=True)
class Cell:
    """A guest, and the ways to measure with it."""

    name: str
    #: the guest, in words
    what: str
    ways: tuple[Way, ...]
    kind: str = "pvh"
    memory_mib: int = 256
    vcpus: int = 1
    disks: int = 1
    #: each disk is a qcow2 image on a chain of so many others
    chain: int = 0
    #: the disks are thin volumes of LVM, not qcow2 files
    lvm: bool = False
    #: memory that is not zero, beyond what the guest has anyway, MiB
    filled_mib: int = 0
    #: how much of that is written to, KiB a second
    dirty_kib: int = 0
    #: what the dom0's disk takes, MiB a second; 0: as much as comes
    disk_mib: int = 0


#: each way, but for what only a guest with several disks is measured for
EVERY = tuple(way for way in Way if way is not Way.NO_DISKS)

BASE = Cell("base", "PVH, 256 MiB, one qcow2 disk, idle", EVERY)

#: nine of these fit into the lab's machine; with less memory Debian's kernel does not boot
CLONED = Cell("clones", "PVH, 96 MiB, one qcow2 disk, idle", (), memory_mib=96)

# The disk of the last is so slow that it is what everybody waits for, though each page costs the
# emulated processor time, too; with what a guest of 128 MiB has anyway, 20 MiB more leave a third
# of its memory zero.
CELLS = (
    BASE,
    Cell("memory-128", "128 MiB", GROWTH, memory_mib=128),
    Cell("memory-512", "512 MiB", GROWTH, memory_mib=512),
    Cell("dirty-1", "writes to 1 MiB/s of its memory", LIVE, filled_mib=32, dirty_kib=1024),
    Cell("dirty-16", "writes to 16 MiB/s of its memory", LIVE, filled_mib=32, dirty_kib=16384),
    Cell("disks-4", "four disks", (Way.LIVE, *REVERTS), disks=4),
    Cell("lvm-4", "four thin LVM volumes", LVM, disks=4, lvm=True),
    Cell("chain-8", "its image stands on eight others", (Way.LIVE, Way.REVERT), chain=8),
    Cell("pv", "PV", (Way.XL_SAVE, Way.STOPPED, *REVERTS), kind="pv"),
    Cell("hvm", "HVM", (*SAVES, *REVERTS), kind="hvm"),
    Cell("vcpus-2", "two vcpus", GROWTH, vcpus=2),
    Cell(
        "slow-disk",
        "128 MiB, a third of them zero, disk of 6 MiB/s",
        (Way.XL_SAVE, Way.STOPPED),
        memory_mib=128,
        filled_mib=20,
        disk_mib=6,
    ),
)
BY_NAME = {cell.name: cell for cell in CELLS}
