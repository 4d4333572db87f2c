"""What a revert has kept inside an image and could not delete: a note at the image says so.

The guest's QEMU cannot always delete it: that of an HVM guest which stays paused after its restore
has each disk twice until the guest runs. The next revert of the disk deletes it.
"""

import logging
import os
from collections.abc import Sequence

from pyxlsnap.disks.qcow2.qemu import Tag
from pyxlsnap.model import Disk

log = logging.getLogger(__name__)

#: attribute of an image: the disk snapshot that was left inside
_LEFT = "user.pyxlsnap.left"


def note_left(disk: Disk, tags: Sequence[Tag]) -> bool:
    """Note at the image that a disk snapshot inside was left, and is of no use any more.

    :returns: whether that worked; not all filesystems can hold such a note.
    """
    try:
        os.setxattr(disk.target, _LEFT, _note(tags))
    except OSError as e:
        log.info("%s: %s", disk.target, e.strerror)
    return is_left(disk, tags)


def is_left(disk: Disk, tags: Sequence[Tag]) -> bool:
    """Whether the disk snapshot is the one that :func:`note_left` has noted."""
    try:
        return os.getxattr(disk.target, _LEFT) == _note(tags)
    except OSError:
        return False


def _note(tags: Sequence[Tag]) -> bytes:
    return "\n".join(f"{tag.date!r} {tag.name}" for tag in tags).encode()
