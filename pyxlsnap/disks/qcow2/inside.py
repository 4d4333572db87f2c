"""Snapshots inside an image that take long, and how the guest is spared that.

With the cache that QEMU takes by itself, an image whose clusters were written at random needs
minutes for what takes a second with a larger one (:mod:`.tables` has the figures). qemu-img is told
to take a larger one. The QEMU of a guest has the smaller one: to change it, QEMU would open the
image again, by its name, which need not lead to the image any more.
"""

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pyxlsnap.disks.failures import os_errors
from pyxlsnap.disks.qcow2.qemu import GuestQemu, qemu_img
from pyxlsnap.disks.qcow2.tables import Work, work_of
from pyxlsnap.disks.qcow2.tags import Tag
from pyxlsnap.disks.undo import LeftOver
from pyxlsnap.linux.there import is_block_device
from pyxlsnap.model import Disk
from pyxlsnap.text import bytes_of, command

log = logging.getLogger(__name__)

_DELETE = "blockdev-snapshot-delete-internal-sync"
#: attribute of an image: the disk snapshot that was left inside
_LEFT = "user.pyxlsnap.left"
#: a delete may stop the guest's disks for so many seconds
_STOPS_S = 5.0
_DOES = {"-a": "apply the disk snapshot", "-c": "keep the disk", "-d": "delete a disk snapshot"}


def work_in(disk: Disk, *, of: str = "", refuse: bool = False) -> Work:
    """See :func:`~pyxlsnap.disks.qcow2.tables.work_of`.

    :raises DiskError: the image cannot be read; :class:`~pyxlsnap.Refused` with ``refuse``.
    """
    with os_errors(disk, Path(disk.target), refuse=refuse):
        return work_of(Path(disk.target), of)


class TakesLong(LeftOver):
    """To delete a disk snapshot now would stop the guest for long; nothing was deleted."""


def delete_served(qemu: GuestQemu, disk: Disk, name: str) -> None:
    """Delete a disk snapshot inside an image that the guest's QEMU has open.

    The guest gets no answers from its disks meanwhile.

    :raises TakesLong: this would take too long.
    :raises QmpError: QEMU refused it, or did not answer: it may be deleted yet.
    """
    expected_s = notice_long_delete(disk, name)
    arguments: dict[str, object] = {"device": qemu.node(disk.vdev), "name": name}
    qemu.execute(_DELETE, arguments, expected_s=expected_s)


def notice_long_delete(disk: Disk, name: str) -> float:
    """How long QEMU will work on the delete of a disk snapshot, seconds.

    :raises TakesLong: too long for a guest that runs.
    """
    expected_s = work_in(disk, of=name).seconds(delete=True)
    if expected_s > _STOPS_S:
        finish = command(["qemu-img", "snapshot", "-d", name, *_with_cache(disk)])
        raise TakesLong(
            f"to delete the disk snapshot {name!r} now would stop the guest's disks for about "
            f"{expected_s:.0f} s: delete it while the domain is off: {finish}",
            vdev=disk.vdev,
            finish=finish,
        )
    return expected_s


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
    return bytes_of("\n".join(f"{tag.date!r} {tag.name}" for tag in tags))


def in_file(
    disk: Disk, option: str, name: str, waiting: Callable[[str], None] = lambda _: None
) -> None:
    """Make, apply or delete a disk snapshot inside an image that nobody has open.

    :param option: of ``qemu-img snapshot``: ``-c``, ``-a`` or ``-d``.
    :param waiting: called every few seconds, with what is waited for.
    :raises DiskError: qemu-img failed.
    """
    on = partial(waiting, f"qemu-img to {_DOES[option]} ({disk.vdev})")
    qemu_img(disk, "snapshot", option, name, *_with_cache(disk), waiting=on)


def _with_cache(disk: Disk) -> list[str]:
    """The words that name the image to qemu-img, and the cache to use."""
    work = work_in(disk)
    protocol = "host_device" if is_block_device(disk.target) else "file"
    options = {
        "driver": "qcow2",
        **({"refcount-cache-size": str(work.cache)} if work.cache else {}),
        "file.driver": protocol,
        "file.filename": disk.target.replace(",", ",,"),
    }
    return ["--image-opts", ",".join(f"{key}={value}" for key, value in options.items())]
