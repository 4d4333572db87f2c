"""Disk strategies: one file for each kind of storage, chosen here."""

from collections.abc import Callable, Sequence

from pyxlsnap.disks.qcow2_internal import Qcow2Internal
from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.ports import DiskStrategy

#: makes a strategy for some disks: (disks, the snapshot's name, whether QEMU's nodes are inactive)
Factory = Callable[[Sequence[Disk], str, bool], DiskStrategy]


def choose(disk: Disk, request: DiskRequest) -> Factory:
    """The strategy for one disk.

    :raises Refused: there is none; the message names the disk and says what would work.
    """
    if disk.left_out:
        raise Refused(f"{disk.vdev} is {disk.left_out} and cannot be in a snapshot: leave it out")
    if disk.script or disk.backend_domain not in ("", "0", "Domain-0"):
        raise Refused(
            f"{disk.vdev} is served by a script or another domain, where no snapshot of it can be "
            f"taken: detach it, or leave it out of `disks`"
        )
    if disk.specification != "xen":
        raise Refused(f"{disk.vdev} is a {disk.specification} disk: only Xen's own are supported")
    if disk.format != "qcow2":
        raise Refused(
            f"{disk.vdev} is {disk.format}: only qcow2 disks can be snapshotted; convert it "
            f"(qemu-img convert -O qcow2), or leave it out of `disks`"
        )
    if not request.internal:
        raise Refused(
            f"{disk.vdev}: external snapshots are not supported: write ',,{disk.vdev}' for an "
            f"internal one"
        )
    return Qcow2Internal


def strategies(
    disks: Sequence[tuple[Disk, DiskRequest]], *, name: str, inactive: bool = False
) -> tuple[DiskStrategy, ...]:
    """One strategy object for each kind of storage among the disks.

    :param inactive: at the snapshot QEMU's block nodes are inactive (a live HVM suspend).
    :raises Refused: see :func:`choose`.
    """
    groups: dict[Factory, list[Disk]] = {}
    for disk, request in disks:
        groups.setdefault(choose(disk, request), []).append(disk)
    return tuple(factory(group, name, inactive) for factory, group in groups.items())
