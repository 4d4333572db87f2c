"""Features of a qcow2 image with which a snapshot inside the image fails, or cannot be applied.

QEMU reports them when a snapshot is taken or applied: while the guest is suspended, or after the
domain was destroyed. So they are looked for before. What works was tried, for every feature.
"""

from collections.abc import Mapping
from typing import Any

from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk

# `qemu-img snapshot -a` counts the references of the present state, and adds those of the snapshot
# before it drops them.
_REFERENCES_TO_APPLY = 2


def refuse_unfit(disk: Disk, image: Mapping[str, Any], *, more: int) -> None:
    """Refuse an image that cannot hold snapshots, or cannot be put back to one.

    :param image: QEMU's ImageInfo.
    :param more: the number of snapshots that will be added.
    """
    features = _features(image)
    if name := features.get("data-file"):
        raise Refused(
            f"{disk.vdev}: {disk.target} keeps its data in another file ({name}), and cannot hold "
            f"a snapshot: write '/path,qcow2,{disk.vdev}' for an external snapshot, or convert the "
            f"image (qemu-img convert -O qcow2)"
        )
    if image.get("encrypted"):
        raise Refused(
            f"{disk.vdev}: {disk.target} is encrypted, and qemu-img could not put it back without "
            f"the key: encrypt inside the guest, or leave the disk out of `disks`"
        )
    if features.get("corrupt"):
        raise Refused(
            f"{disk.vdev}: {disk.target} is marked as corrupt, and QEMU writes to no such image: "
            f"shut the domain down and repair the image (qemu-img check -r all)"
        )
    _refuse_bitmaps(disk, features)
    _refuse_few_references(disk, features, len(image.get("snapshots", [])) + more)


def _features(image: Mapping[str, Any]) -> Mapping[str, Any]:
    found = image.get("format-specific", {}).get("data", {})
    return found if isinstance(found, dict) else {}


def _refuse_bitmaps(disk: Disk, features: Mapping[str, Any]) -> None:
    if names := [str(bitmap["name"]) for bitmap in features.get("bitmaps", [])]:
        raise Refused(
            f"{disk.vdev}: {disk.target} has bitmaps ({', '.join(names)}), with which qemu-img "
            f"applies no snapshot: shut the domain down and remove them (qemu-img bitmap "
            f"--remove), or write '/path,qcow2,{disk.vdev}' for an external snapshot"
        )


def _refuse_few_references(disk: Disk, features: Mapping[str, Any], needed: int) -> None:
    bits = int(features.get("refcount-bits", 16))
    possible = max(0, (1 << bits) - 1 - _REFERENCES_TO_APPLY)
    if needed > possible:
        raise Refused(
            f"{disk.vdev}: {disk.target} counts references in {bits} bit{'s' * (bits > 1)}, which "
            f"is enough for {possible} snapshot{'s' * (possible != 1)}, and needs {needed}, with "
            f"the one that a revert keeps: delete some, or shut the domain down and convert the "
            f"image (qemu-img convert -O qcow2)"
        )
