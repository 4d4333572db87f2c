"""Disks of the other kinds, made with the saved state: some of each for every standard guest.

A raw file where the filesystem shares blocks and one where it does not, LVM volumes thin and thick,
and a block device that knows no snapshots.
"""

from .guests import DISKS, STANDARD

SIZE = "8M"
GROUP, POOL = "lab", "pool"
BTRFS = "/lab/btrfs"


def raw(guest: str) -> str:
    return f"{BTRFS}/{guest}.img"


def raw_without_reflink(guest: str) -> str:
    return f"{DISKS}/{guest}.img"


def thin(guest: str) -> str:
    return f"/dev/{GROUP}/{guest}-thin"


def thick(guest: str) -> str:
    return f"/dev/{GROUP}/{guest}-thick"


def plain(guest: str) -> str:
    return f"/dev/loop{5 + STANDARD.index(guest)}"


def script() -> str:
    """Makes all of it, in a new dom0."""
    lines = [
        "set -e",
        f"truncate -s 256M {BTRFS}.img /lab/group.img",
        f"mkfs.btrfs -q {BTRFS}.img",
        f"mkdir {BTRFS}",
        f"mount -o loop {BTRFS}.img {BTRFS}",
        f'vgcreate -q {GROUP} "$(losetup -f --show /lab/group.img)"',
        f"lvcreate -q -L 64M -T {GROUP}/{POOL}",
    ]
    for name in STANDARD:
        lines += [
            f"truncate -s {SIZE} {raw(name)} {raw_without_reflink(name)} /lab/plain-{name}.img",
            f"losetup {plain(name)} /lab/plain-{name}.img",
            f"lvcreate -q -V {SIZE} -T {GROUP}/{POOL} -n {name}-thin",
            f"lvcreate -q -y -L {SIZE} -n {name}-thick {GROUP}",
        ]
    return "\n".join(lines)
