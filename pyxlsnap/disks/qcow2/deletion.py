"""Deleting snapshots of qcow2 disks: those inside an image, and frozen files.

An image that a QEMU has open is left to this QEMU, an image that nobody has open to qemu-img. What
stands on a frozen file is first made independent of the file: :mod:`.frozen`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pyxlsnap.disks.failures import os_errors
from pyxlsnap.disks.in_use import users
from pyxlsnap.disks.qcow2 import stream
from pyxlsnap.disks.qcow2.chain import Chain
from pyxlsnap.disks.qcow2.frozen import Frozen
from pyxlsnap.disks.qcow2.inside import delete_served, in_file, notice_long_delete
from pyxlsnap.disks.qcow2.qemu import GuestQemu, checked_tags
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import undo_each
from pyxlsnap.errors import DiskError, QmpError, Refused
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.there import exists
from pyxlsnap.model import Disk, DiskRequest


class Deletion:
    """The disks of a delete; a part of :mod:`.strategy`."""

    def __init__(
        self, disks: Sequence[tuple[Disk, DiskRequest]], task: DiskTask, qemu: GuestQemu
    ) -> None:
        self._disks = tuple(disk for disk, _ in disks)
        self._inside = [disk for disk, request in disks if request.internal]
        self._frozen = [
            Frozen(Chain.of(disk, request), task, qemu)
            for disk, request in disks
            if not request.internal
        ]
        self._name = task.name
        self._attached = task.attached
        self._qemu = qemu
        #: the vdevs of the disks that the guest's QEMU has open
        self._served: set[str] = set()

    def check(self, domid: int | None) -> None:
        """See :meth:`pyxlsnap.disks.abilities.DeletingStrategy.check_delete`."""
        with refusing_os_errors():
            served = [disk for disk in self._disks if in_use(disk)]
            for disk in self._disks:
                self._refuse_starting(disk, served)
            if served and domid is None:
                raise _in_use_elsewhere(served[0])
            if served and domid is not None:
                self._connect(domid, served)
            self._served = {disk.vdev for disk in served}
            for disk in self._inside:
                self._refuse_twice(disk)
                if disk.vdev in self._served and self._name in self._tags(disk):
                    notice_long_delete(disk, self._name)
            for frozen in self._frozen:
                frozen.check(served=frozen.disk.vdev in self._served)

    def _refuse_starting(self, disk: Disk, served: Sequence[Disk]) -> None:
        if disk.vdev in self._attached and disk not in served:
            raise Refused(
                f"{disk.vdev}: the domain has this disk, and its QEMU has not opened "
                f"{disk.target}: wait until the domain has started, or was the file replaced? Then "
                f"restart the domain"
            )

    def _connect(self, domid: int, disks: Sequence[Disk]) -> None:
        for disk in disks:
            if len(users(Path(disk.target))) > 1:
                raise _in_use_elsewhere(disk)
        vdevs = ", ".join(disk.vdev for disk in disks)
        try:
            self._qemu.connect(domid, disks)
            job = stream.left(self._qemu)
        except QmpError as e:
            raise Refused(
                f"{vdevs}: cannot talk to the guest's QEMU ({e}): is another program (xentop?) "
                f"connected to its QMP socket?"
            ) from e
        if job:
            raise Refused(
                f"{vdevs}: the guest's QEMU still works for a delete that was killed (job {job}): "
                f"run it again when the job has ended"
            )

    def _refuse_twice(self, disk: Disk) -> None:
        found = self._tags(disk).count(self._name)
        if found > 1:
            raise Refused(
                f"{disk.vdev}: {disk.target} has {found} disk snapshots named {self._name!r}: "
                f"delete all but the right one by hand"
            )

    def _tags(self, disk: Disk) -> list[str]:
        """The names of the snapshots inside an image; none if there is no image any more."""
        if disk.vdev in self._served:
            return [tag.name for tag in self._qemu.tags(disk.vdev)]
        return [tag.name for tag in checked_tags(disk)] if exists(disk.target) else []

    def free(self) -> list[str]:
        """See :meth:`pyxlsnap.disks.abilities.DeletingStrategy.prepare_delete`."""
        return [line for frozen in self._frozen for line in frozen.free()]

    def delete(self) -> list[str]:
        """See :meth:`pyxlsnap.disks.abilities.DeletingStrategy.delete`."""
        inside = [partial(self._delete_inside, disk) for disk in self._inside]
        return undo_each([*inside, *(frozen.delete for frozen in self._frozen)])

    def _delete_inside(self, disk: Disk) -> list[str]:
        if in_use(disk) != (disk.vdev in self._served):
            raise DiskError("the domain was started or has ended meanwhile", vdev=disk.vdev)
        if self._name not in self._tags(disk):
            return []
        if disk.vdev in self._served:
            delete_served(self._qemu, disk, self._name)
        else:
            in_file(disk, "-d", self._name)
        return [f"deleted the disk snapshot {self._name!r} of {disk.vdev}"]


def in_use(disk: Disk) -> bool:
    """Whether anybody has a disk's image open, or serves it.

    :raises DiskError: that cannot be told.
    """
    target = Path(disk.target)
    with os_errors(disk, target):
        return exists(target) and bool(users(target))


def _in_use_elsewhere(disk: Disk) -> Refused:
    found = ", ".join(users(Path(disk.target)))
    return Refused(
        f"{disk.vdev}: {disk.target} is in use by {found}, and the domain's own QEMU is not the "
        f"only one: end the others first"
    )
