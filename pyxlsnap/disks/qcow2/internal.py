"""qcow2 with the snapshot inside the image: made by the guest's QEMU, put back by qemu-img."""

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pyxlsnap.disks.changeable import refuse_full, refuse_unchangeable
from pyxlsnap.disks.failures import os_errors, refuse_missing
from pyxlsnap.disks.in_use import users, wait_until_unused
from pyxlsnap.disks.kept import kept_key
from pyxlsnap.disks.qcow2.backing import refuse_broken
from pyxlsnap.disks.qcow2.features import refuse_unfit
from pyxlsnap.disks.qcow2.inside import (
    TakesLong,
    delete_served,
    in_file,
    is_left,
    note_left,
    work_in,
)
from pyxlsnap.disks.qcow2.qemu import GuestQemu
from pyxlsnap.disks.qcow2.tables import Work
from pyxlsnap.disks.qcow2.tags import Tag, image_tags, tags_of
from pyxlsnap.disks.qcow2.trial import SLACK, refuse_inapplicable
from pyxlsnap.disks.side_by_side import side_by_side
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import Undo
from pyxlsnap.errors import AlreadyExists, DiskError, QmpError, Refused
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.there import is_file
from pyxlsnap.model import KEPT_SUFFIX, Disk
from pyxlsnap.results import Artefact
from pyxlsnap.text import quote

_NEW_AND_KEPT = 2  # the snapshot, and the one that a revert to it keeps


class Internal:
    """The disks of an operation whose snapshots stay inside; a part of :mod:`.strategy`."""

    def __init__(self, disks: Sequence[Disk], task: DiskTask) -> None:
        self.disks = tuple(disks)
        self._name = task.name
        self._waiting = task.waiting
        self._may_start = task.may_start
        self._claim = task.claim
        #: the work of each disk snapshot, by vdev
        self._work: dict[str, Work] = {}
        #: by vdev and a word: the time after which a revert of ours has kept the disk
        self._noted: dict[str, str] = {}
        self._of_killed = dict(task.finishes or {})
        #: by vdev: the bytes that a revert writes, as tried
        self._needed: dict[str, int] = {}
        #: when the snapshots were begun, seconds since the epoch; ``None``: nothing was made
        self.began: float | None = None
        #: the domain of a create that is undone does not exist any more
        self._gone = False

    # create

    def check(self, qemu: GuestQemu) -> None:
        """Check that the images can hold the snapshots, and that a revert can apply them.

        :raises AlreadyExists: a disk has a snapshot of that name.
        :raises Refused: an image has a feature that prevents it.
        """
        for disk in self.disks:
            refuse_unfit(disk, qemu.image(disk.vdev), more=_NEW_AND_KEPT)
            if any(t.name == self._name for t in qemu.tags(disk.vdev)):
                raise AlreadyExists(
                    f"{disk.vdev} has a disk snapshot {self._name!r} already: choose another name",
                    where=disk.vdev,
                )
            self._work[disk.vdev] = work_in(disk, refuse=True)

    def expected_seconds(self) -> float:
        """How long QEMU will work on the disk snapshots."""
        return sum(work.seconds() for work in self._work.values())

    def actions(self, qemu: GuestQemu) -> list[dict[str, Any]]:
        """The actions of a QMP transaction."""
        self.began = time.time() if self.disks else None
        return [
            {
                "type": "blockdev-snapshot-internal-sync",
                "data": {"device": qemu.node(disk.vdev), "name": self._name},
            }
            for disk in self.disks
        ]

    def refused(self) -> None:
        """QEMU refused the transaction: a disk snapshot of our name is somebody else's."""
        self.began = None

    def adopt(self, began: float, *, gone: bool) -> None:
        """Take over the snapshots of a dead process.

        :param gone: their domain does not exist any more, so there is no QEMU to ask.
        """
        self.began, self._gone = began, gone

    def undos(self, qemu: GuestQemu) -> list[Undo]:
        """The undo of each disk; to be called by :func:`~pyxlsnap.disks.undo.undo_each`."""
        return [partial(self._undo, qemu, disk) for disk in self.disks]

    def _undo(self, qemu: GuestQemu, disk: Disk) -> list[str]:
        """Delete the disk snapshot, if a transaction of ours made it.

        A transaction that failed was undone by QEMU itself. A disk snapshot of that name that is
        older was made by somebody else, and stays. Without a QEMU that has the disk, qemu-img
        looks and deletes, once nobody has the image open.

        :raises DiskError: the disk snapshot may be left.
        """
        if self.began is None:
            return []
        if self._gone:
            return self._undo_in_file(disk, self.began)
        try:
            if not self._is_ours(qemu.tags(disk.vdev), disk, self.began):
                return []
            delete_served(qemu, disk, self._name)
        except QmpError as e:
            if not e.refused and not _in_use(disk):  # QEMU has ended, or has this disk no more
                return self._undo_in_file(disk, self.began)
            raise DiskError(
                f"a disk snapshot {self._name!r} may be left: {e}", vdev=disk.vdev
            ) from e
        return [self._deleted(disk)]

    def _undo_in_file(self, disk: Disk, began: float) -> list[str]:
        refuse_missing(disk, Path(disk.target), f"a disk snapshot {self._name!r}")
        wait_until_unused(disk, Path(disk.target))
        if not self._is_ours(image_tags(disk), disk, began):
            return []
        if self._may_start():
            raise DiskError(
                f"a disk snapshot {self._name!r} may be left: the guest is just being started "
                f"again",
                vdev=disk.vdev,
            )
        in_file(disk, "-d", self._name, self._waiting)
        return [self._deleted(disk)]

    def _is_ours(self, tags: Sequence[Tag], disk: Disk, began: float) -> bool:
        named = [tag for tag in tags if tag.name == self._name]
        ours = any(tag.date >= began - 1 for tag in named)
        if ours and len(named) > 1:  # a name is all that can be told to QEMU and qemu-img
            raise DiskError(
                f"{disk.target} has {len(named)} disk snapshots named {self._name!r}: delete the "
                f"newest, which was not completed (qemu-img snapshot -l shows the dates)",
                vdev=disk.vdev,
            )
        return ours

    def _deleted(self, disk: Disk) -> str:
        return f"deleted the disk snapshot {self._name!r} of {disk.vdev}"

    def artefacts(self, qemu: GuestQemu, domain: str) -> list[Artefact]:
        """The disk snapshots, and how to delete each."""
        return [
            Artefact(
                kind="disk snapshot",
                where=f"{self._name} in {disk.target} ({disk.vdev})",
                delete=f"domain running: xl qemu-monitor-command {quote(domain)} "
                f"'snapshot_delete_blkdev_internal {qemu.node(disk.vdev)} {self._name}'; "
                f"domain off: qemu-img snapshot -d {self._name} {quote(disk.target)}",
                vdev=disk.vdev,
            )
            for disk in self.disks
        ]

    # revert

    def check_revert(self) -> None:
        """:raises Refused: a disk snapshot is not there, is not the only one, or does not apply."""
        for disk in self.disks:
            path = Path(os.path.realpath(disk.target))
            image = refuse_broken(disk, path)[0]
            found = tags_of(image)
            tags = [t for t in found if t.name == self._name]
            if not tags:
                raise Refused(
                    f"{disk.vdev}: {disk.target} has no disk snapshot {self._name!r} "
                    f"(see `qemu-img snapshot -U -l {quote(disk.target)}`)"
                )
            if len(tags) > 1:
                raise Refused(
                    f"{disk.vdev}: {disk.target} has {len(tags)} disk snapshots named "
                    f"{self._name!r}: delete all but the one to revert to"
                )
            kept = any(t.name == self._kept_name for t in found)
            refuse_unfit(disk, image, more=0 if kept else 1)
            with refusing_os_errors():
                self._check_kept(disk, found)
            refuse_unchangeable(disk, path)
            self._try(disk, path, image, kept=kept)

    def _try(self, disk: Disk, path: Path, image: Mapping[str, Any], *, kept: bool) -> None:
        """:raises Refused: the disk snapshot does not apply, or there is no room for it."""
        if disk.vdev not in self._needed:  # the trial may take long: once is enough
            steps = ["-a", self._name] if kept else ["-c", self._kept_name, "-a", self._name]
            size, cluster = image["virtual-size"], image["cluster-size"]
            self._needed[disk.vdev] = refuse_inapplicable(disk, size, cluster, steps)
        if is_file(path):
            need = self._needed[disk.vdev]
            refuse_full(disk, path.parent, need, self._claim, spare=SLACK)

    def _check_kept(self, disk: Disk, found: Sequence[Tag]) -> None:
        """Note when the disk will be kept.

        :param found: the disk snapshots in the image.
        :raises DiskError: a disk snapshot has the name already, and is not ours.
        """
        key = kept_key(disk.vdev)
        there = self._kept_tags(found)
        ours = self._noted.get(key) or self._of_killed.get(key)
        if not there:
            self._noted[key] = str(time.time())
        elif ours and self._is_kept(there, ours):
            self._noted[key] = ours
        elif is_left(disk, there):  # it is deleted before the disk is kept
            self._noted[key] = str(time.time())
        else:
            raise DiskError(
                f"{disk.target} has a disk snapshot {self._kept_name!r}, and a revert would keep "
                f"the disk under this name (an earlier one may have kept the disk there): if "
                f"nobody needs it, delete it while the domain is off: qemu-img snapshot -d "
                f"{self._kept_name} {quote(disk.target)}",
                vdev=disk.vdev,
            )

    def _kept_tags(self, tags: Sequence[Tag]) -> list[Tag]:
        return [tag for tag in tags if tag.name == self._kept_name]

    def _is_kept(self, there: Sequence[Tag], since: str) -> bool:
        return len(there) == 1 and there[0].date >= float(since) - 1

    def state(self) -> dict[str, str]:
        """What the run needs that finishes this revert."""
        return dict(self._noted)

    def revert(self) -> None:
        """Apply the snapshots; first keep the present state of each image inside, under a tag.

        A tag of that name that is there already was made by the run that this revert finishes: it
        stays as it is, for it holds the only copy of the previous state.

        :raises DiskError: an image is still in use, or has such a tag that is not ours; nothing was
            written then.
        """
        found = {}
        for disk in self.disks:
            wait_until_unused(disk, Path(disk.target))
            found[disk.vdev] = image_tags(disk)
            self._check_kept(disk, found[disk.vdev])
        side_by_side([partial(self._apply, disk, found[disk.vdev]) for disk in self.disks])

    def _apply(self, disk: Disk, found: Sequence[Tag]) -> None:
        # (Each qemu-img takes time in which the domain is off. Nobody else changes the image.)
        if self._drop_left(disk, found):
            found = image_tags(disk)
        if not self._kept_tags(found):
            in_file(disk, "-c", self._kept_name, self._waiting)
        in_file(disk, "-a", self._name, self._waiting)

    def _drop_left(self, disk: Disk, found: Sequence[Tag]) -> bool:
        """Delete what an earlier revert has kept, and left because a delete would have taken long.

        It is of no use: that revert has succeeded.

        :returns: whether there was any.
        """
        left = [tag for tag in found if tag.name.endswith(KEPT_SUFFIX) and is_left(disk, [tag])]
        for tag in left:
            in_file(disk, "-d", tag.name, self._waiting)
        return bool(left)

    def finish_revert(self, qemu: GuestQemu) -> list[str]:
        """Delete the kept states; returns what could not be deleted, a line each."""
        left = []
        for disk in self.disks:
            try:
                there = self._kept_tags(qemu.tags(disk.vdev))
                if self._made_here(disk, there):
                    self._waiting(f"QEMU to delete what was kept of {disk.vdev}")
                    delete_served(qemu, disk, self._kept_name)
                elif there:
                    left.append(
                        f"disk snapshot {self._kept_name!r} in {disk.target}: this revert did not "
                        f"make it"
                    )
            except TakesLong as e:
                again = ", or revert this disk again" * note_left(disk, there)
                left.append(f"{e}{again} (this is the disk before the revert)")
            except (QmpError, DiskError) as e:
                left.append(
                    f"disk snapshot {self._kept_name!r} (the disk before the revert) in "
                    f"{disk.target}: {e}"
                )
        return left

    def leave_kept(self) -> bool:
        """Leave the kept states to the next revert of the disks.

        :returns: whether the next revert will know them as ours.
        """
        noted = []
        for disk in self.disks:
            there = self._kept_tags(image_tags(disk))
            if there:
                noted.append(self._made_here(disk, there) and note_left(disk, there))
        return all(noted)

    def _made_here(self, disk: Disk, there: Sequence[Tag]) -> bool:
        """Whether this revert, or the one that it finishes, has kept the disk in these tags."""
        since = (self._noted or self._of_killed).get(kept_key(disk.vdev))
        return bool(since and self._is_kept(there, since))

    @property
    def _kept_name(self) -> str:
        return self._name + KEPT_SUFFIX


def _in_use(disk: Disk) -> bool:
    target = Path(disk.target)
    refuse_missing(disk, target, "a disk snapshot")
    with os_errors(disk, target):
        return bool(users(target))
