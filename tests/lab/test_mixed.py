"""Disks of every kind at once, on every kind of guest: snapshot, go on, revert twice."""

import itertools
import json
from dataclasses import dataclass

import pytest

from .guests import STANDARD, Guest, Tick
from .lab import Lab
from .snapshots import check_images, create, disk_snapshots, goes_back, revert

# A file on a filesystem that shares blocks, a thin volume and a thick one.
STORAGE = """\
set -e
echo 'activation { monitoring = 0 }' > /etc/lvm/lvmlocal.conf
truncate -s 300M /lab/btrfs.img
mkfs.btrfs -q /lab/btrfs.img
mkdir /lab/btrfs
mount -o loop /lab/btrfs.img /lab/btrfs
truncate -s 16M /lab/btrfs/raw.img
truncate -s 400M /lab/group.img
vgcreate -q lab "$(losetup -f --show /lab/group.img)"
lvcreate -q -L 100M -T lab/pool
lvcreate -q -V 16M -T lab/pool -n thin
lvcreate -q -L 16M -n thick lab
"""
MORE = {"xvdc": "/lab/btrfs/raw.img", "xvdd": "/dev/lab/thin", "xvde": "/dev/lab/thick"}
EXTERNAL = {
    "xvda": "/lab/disk/{name}.a,qcow2",
    "xvdb": "/lab/disk/{name}.b,qcow2",
    "xvdc": "/lab/btrfs/{name}.c,raw",
    "xvdd": "/dev/lab/{name}-d,raw",
    "xvde": "/dev/lab/{name}-e,raw",
}


@dataclass(frozen=True)
class Cell:
    """One round."""

    kind: str
    live: bool
    external: bool

    def __str__(self) -> str:
        live, external = (
            ("live", "stopped")[not self.live],
            ("external", "internal")[not self.external],
        )
        return f"{self.kind}-{live}-{external}"


# One revert is enough for these: LVM waits for udev again and again, minutes under emulation.
ROUND = [Cell("pv", False, False)]
# (A live PV guest needs a Xen with shadow paging, which Debian's is not.)
MATRIX = [
    Cell(kind, live, external)
    for kind, live, external in itertools.product(STANDARD, (False, True), (False, True))
    if not (kind == "pv" and live)
]
CELLS = [pytest.param(cell, id=str(cell), marks=pytest.mark.soak) for cell in MATRIX]


def attach(guest: Guest) -> Tick:
    """Give a guest the other kinds of disk; its first tick with all of them."""
    guest.dom0.run(STORAGE, timeout=240)
    for vdev, target in MORE.items():
        disk = f"format=raw,vdev={vdev},access=rw,target={target}"
        guest.dom0.run(["xl", "block-attach", guest.name, disk], timeout=120)
    while len(guest.wait_advance(1).disks) < 2 + len(MORE):
        pass
    return guest.assert_healthy()


def snapshot(guest: Guest, cell: Cell, name: str) -> dict[str, object]:
    words = ["--name", name, *(["--live"] if cell.live else [])]
    if cell.external:
        disks = ", ".join(f"'{spec.format(name=name)},{vdev}'" for vdev, spec in EXTERNAL.items())
        guest.dom0.write("/tmp/snap/mixed.cfg", f"disks=[{disks}]\n")
        words.insert(0, "/tmp/snap/mixed.cfg")
    return create(guest, *words)


def generation(guest: Guest) -> str:
    """The VM generation ID of an HVM guest; "" for others."""
    (config,) = json.loads(guest.dom0.run(["xl", "list", "-l", guest.name]).out)
    return str(config["config"]["b_info"].get("type.hvm", {}).get("ms_vm_genid", ""))


def check_reverted(guest: Guest, mark: int, later: Tick, before: Tick, after: Tick) -> None:
    first = goes_back(guest, mark, later)
    assert before.n < first.n <= after.n + 1
    assert first.boot == before.boot
    assert first.disks.keys() == before.disks.keys()
    assert all(n == first.n - 1 for n, _ in first.disks.values())


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cell", CELLS)
def test_disks_of_every_kind(spent_lab: Lab, cell: Cell) -> None:
    guest = spent_lab.guest(cell.kind)
    before, was = attach(guest), generation(guest)
    assert len(before.disks) == 5
    assert bool(was) == (cell.kind == "hvm")
    made = snapshot(guest, cell, "first")
    after = guest.assert_healthy()
    print(f"{cell}: suspended for {made['seconds_suspended']:.2f} s")
    if not cell.external:
        assert disk_snapshots(guest) == {vdev: ["first"] for vdev in guest.disks}
    reverts = 1 if cell in ROUND else 2
    for again in range(reverts):
        later, mark = guest.wait_advance(6), guest.mark()
        result = revert(guest, str(made["cfgfile"]))
        assert sorted(result["disks"]) == sorted(before.disks)
        check_reverted(guest, mark, later, before, after)
        if was:
            assert generation(guest) != was
        if again < reverts - 1:
            second = snapshot(guest, cell, "second")
    if reverts > 1:  # from the older to the newer, which the present state does not stand on
        revert(guest, str(second["cfgfile"]))
        assert guest.assert_healthy().n > before.n
    left = guest.dom0.run("ls /lab/btrfs /lab/disk; lvs --noheadings -o lv_name lab").out
    assert "pre-revert" not in left
    guest.destroy()
    check_images(guest)
