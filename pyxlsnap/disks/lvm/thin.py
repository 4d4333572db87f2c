"""Thin LVM volumes: the snapshot stays as it is, and a snapshot of it takes the disk's place.

So a revert can be repeated, to any snapshot and in any order. After each revert the disk is another
volume, and the previous volume is removed. So LVM's "origin" does not tell which disk a snapshot is
of; a tag on the snapshot (:data:`~pyxlsnap.disks.lvm.base.OF_TAG`) does.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from pyxlsnap.disks.kept import kept_key
from pyxlsnap.disks.lvm.base import OF_TAG, TAG, Groups, LvmDisks, remove
from pyxlsnap.disks.lvm.clones import ThinClones
from pyxlsnap.disks.lvm.commands import Volume, lvm, volumes, wait_for_path
from pyxlsnap.disks.lvm.names import Place, stays_valid
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import undo_each
from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.results import CloneDisk
from pyxlsnap.text import mib

_FULL_PERCENT = 95.0


class LvmThin(LvmDisks):
    """Thin volumes. See :class:`pyxlsnap.disks.protocol.DiskStrategy`."""

    kind = "LVM thin"
    # Active only during a revert: so nothing writes to it, or finds its filesystems twice.
    options = ("-ky", "-an")
    seconds = 0.5  # 3 to 5 s where everything is emulated, most of it waiting for udev

    def __init__(self, disks: Sequence[tuple[Disk, DiskRequest]], task: DiskTask) -> None:
        super().__init__(disks, task)
        #: the uuid of each volume that is kept: it stays the same when the volume is renamed
        self._noted: dict[str, str] = {}
        self._of_killed = task.finishes
        #: a killed run has made what has the names of the new volumes
        self._killed = task.finishes is not None or task.prepared is not None
        #: by vdev: the uuids of the new volumes that are made already; "": it is being made
        self._made: dict[str, str] = {}
        self._clones = ThinClones(self._places, task)

    def state(self) -> dict[str, str]:
        return super().state() | self._noted | self._clones.state()

    # create

    def check_kind(self, at: Place, origin: Volume) -> None:
        if "thin" not in origin.layout or "pool" in origin.layout:
            raise Refused(
                f"{at.vdev}: {at.full(at.lv)} is not a thin volume any more: run the command again"
            )
        self._check_path(at)

    def _check_path(self, at: Place) -> None:
        target = self._targets[at.vdev]
        if not stays_valid(target, at.vg, at.lv):
            raise Refused(
                f"{at.vdev}: {target} would not lead to the disk after a revert, which makes "
                f"another volume of the same name: write /dev/{at.vg}/{at.lv} in the domain's "
                f"configuration"
            )

    def check_room(self, origins: Sequence[tuple[Place, Volume]], found: Groups) -> None:
        for at, origin in origins:
            check_pool(at, found[at.vg], origin.pool)

    def taken(self, at: Place) -> str:
        return f"takes what changes in the disk from now on, up to {mib(self._sizes[at.vdev])}"

    # revert

    def check_revert(self) -> None:
        with refusing_os_errors():
            found = self.volumes_now()
            for at in self._places:
                self._check_names(at, found[at.vg])
            self.refuse_unchangeable()
        for at in self._places:
            self._check_path(at)
            snapshot = _snapshot(at, found[at.vg])
            check_pool(at, found[at.vg], snapshot.pool)

    def _check_names(self, at: Place, found: Mapping[str, Volume]) -> None:
        """Note which volume will be kept.

        :raises DiskError: a volume is in the way that was not made by the run that this revert
            finishes.
        """
        key, disk, kept = kept_key(at.vdev), found.get(at.lv), found.get(at.kept)
        if kept is None:
            self._noted[key] = disk.uuid if disk else ""
        elif kept.uuid in (self._noted.get(key), (self._of_killed or {}).get(key)):
            self._noted[key] = kept.uuid
        else:
            raise DiskError(
                f"the volume {at.full(at.kept)} exists, and a revert would keep the disk under "
                f"this name: rename it (an earlier revert may have kept the disk there), or remove "
                f"it if nobody needs it",
                vdev=at.vdev,
            )
        fresh = found.get(at.fresh)
        if fresh and not self._is_ours(at, fresh):
            raise _in_the_way(at, fresh)
        if kept and disk and disk.origin != at.snapshot:
            raise _in_the_way(at, disk)

    def _is_ours(self, at: Place, fresh: Volume) -> bool:
        """Whether this run, or a killed one, has made a volume with the name of the new one."""
        known = self._killed or self._made.get(at.vdev) in ("", fresh.uuid)
        return known and fresh.origin == at.snapshot

    def prepare_revert(self, check: Callable[[], None]) -> None:
        found = self.volumes_now()
        for at in self._places:
            check()
            self._remove_fresh(at, found[at.vg])
            self._made[at.vdev] = ""
            _make(at, _owners_tags(at, found[at.vg]))
        found = self.volumes_now()
        for at in self._places:
            if fresh := found[at.vg].get(at.fresh):
                self._made[at.vdev] = fresh.uuid

    def undo_prepared(self) -> None:
        undo_each(partial(self._undo_prepared, at) for at in self._places)

    def _undo_prepared(self, at: Place) -> list[str]:
        if self._killed or at.vdev in self._made:
            self._remove_fresh(at, volumes(at.vdev, at.vg))
            self._made.pop(at.vdev, None)
        return []

    def _remove_fresh(self, at: Place, found: Mapping[str, Volume]) -> None:
        fresh = found.get(at.fresh)
        if fresh and not self._is_ours(at, fresh):
            raise _in_the_way(at, fresh)
        if fresh:
            remove(at, fresh)

    def revert(self) -> None:
        found = self.closed_volumes()
        for at in self._places:
            self._check_names_again(at, found[at.vg])
        self.put_each_back(lambda at: _swap(at, found[at.vg], made=self._made.get(at.vdev)))

    def _check_names_again(self, at: Place, found: Mapping[str, Volume]) -> None:
        """:raises DiskError: another program has changed the volumes since the check."""
        key = kept_key(at.vdev)
        was = self._noted.get(key)
        self._check_names(at, found)
        if was not in (None, self._noted[key]):
            raise DiskError(
                f"{at.full(at.lv)} was replaced while the revert was prepared: run the command "
                f"again",
                vdev=at.vdev,
            )

    def finish_revert(self, domid: int) -> list[str]:
        left = []
        for at in self._places:
            try:
                kept = volumes(at.vdev, at.vg).get(at.kept)
                ours = (self._noted or self._of_killed or {}).get(kept_key(at.vdev))
                if kept and kept.uuid != ours:
                    left.append(f"the volume {at.full(at.kept)}: this revert did not make it")
                elif kept:
                    self._waiting(f"lvremove of what was kept of {at.vdev}")
                    remove(at, kept)
            except DiskError as e:
                left.append(f"the volume {at.full(at.kept)} (the disk before the revert): {e}")
        return left

    # clones

    def check_clone(self, name: str, wanted: Mapping[str, DiskRequest]) -> list[CloneDisk]:
        chosen = []
        with refusing_os_errors():
            found = self.volumes_now()
            self.refuse_unchangeable()
            for at in self._places:
                check_pool(at, found[at.vg], _snapshot(at, found[at.vg]).pool)
                asked = wanted.get(at.vdev)
                chosen.append(self._clones.choose(at, name, asked, found[at.vg]))
        return chosen

    def clone(self) -> None:
        self._clones.make()

    def delete_clone(self, disks: Sequence[CloneDisk], state: Mapping[str, str]) -> list[str]:
        return self._clones.delete(disks, state)


def check_pool(at: Place, found: Mapping[str, Volume], name: str) -> None:
    """:raises Refused: the pool has no room for changes after a snapshot, or has a problem."""
    pool = found.get(name)
    if pool is None:
        raise Refused(
            f"{at.vdev}: the thin pool of {at.full(at.lv)} was not found: see `lvs -a {at.vg}`"
        )
    if pool.trouble:
        raise Refused(
            f"{at.vdev}: the thin pool {at.full(name)} has a problem ({pool.trouble}): repair it "
            f"first (lvmthin(7))"
        )
    # An inactive pool (no volume of it is in use) has no percentages; a revert will find out.
    for what, percent in (("data", pool.data_percent), ("metadata", pool.metadata_percent)):
        if percent is not None and percent >= _FULL_PERCENT:
            raise Refused(
                f"{at.vdev}: the thin pool {at.full(name)} ({mib(pool.size)}) has its {what} space "
                f"{percent:g} % full: extend it (lvextend"
                f"{' --poolmetadatasize' * (what == 'metadata')}), or remove volumes"
            )


def _snapshot(at: Place, found: Mapping[str, Volume]) -> Volume:
    """The snapshot of the disk.

    :raises Refused: it is not there, or not known as a snapshot of this disk.
    """
    snapshot = found.get(at.snapshot)
    if snapshot is None:
        raise Refused(
            f"{at.vdev}: there is no volume {at.full(at.snapshot)}, the disk snapshot (see `lvs "
            f"{at.vg}`): without it the disk cannot be reverted"
        )
    if "thin" not in snapshot.layout or snapshot.merging:
        raise Refused(
            f"{at.vdev}: {at.full(at.snapshot)} is not a thin snapshot, or is being merged (see "
            f"`lvs -a {at.vg}`): name another snapshot"
        )
    if snapshot.origin not in (at.lv, at.kept) and f"{OF_TAG}{at.lv}" not in snapshot.tags:
        raise Refused(
            f"{at.vdev}: {at.full(at.snapshot)} is not known as a snapshot of {at.full(at.lv)}; "
            f"if it is one, run `lvchange --addtag {OF_TAG}{at.lv} {at.full(at.snapshot)}`"
        )
    return snapshot


def _in_the_way(at: Place, volume: Volume) -> DiskError:
    return DiskError(
        f"the volume {at.full(volume.name)} is in the way, and was not made from "
        f"{at.full(at.snapshot)} by an interrupted revert to it: rename or remove it",
        vdev=at.vdev,
    )


def _make(at: Place, tags: Sequence[str]) -> None:
    """Make the new volume.

    :param tags: those of the disk's owner, and none of ours: the volume is a disk, not a snapshot.
    """
    tagging = [word for tag in tags for word in ("--addtag", tag)]
    # -kn: activated at every start of the host, like the disk and unlike the snapshot.
    lvm(at.vdev, "lvcreate", "-s", "-kn", "-ay", *tagging, "-n", at.fresh, at.full(at.snapshot))


def _owners_tags(at: Place, found: Mapping[str, Volume]) -> list[str]:
    was = found.get(at.kept) or found.get(at.lv)
    return [tag for tag in was.tags if not _is_ours(tag)] if was else []


def _swap(at: Place, found: Mapping[str, Volume], *, made: str | None) -> None:
    """Put a snapshot of the snapshot in the place of the disk, which is kept.

    If this is killed at any moment, either the disk still has its name, or the disk is kept and the
    next run gives the name to a new volume. The names were checked: a kept volume that is there
    already was kept by the run that this one finishes, and stays; a volume with the disk's name was
    then made by that run.

    :param made: the uuid of the new volume, if it was made beforehand.
    """
    fresh, tags = found.get(at.fresh), _owners_tags(at, found)
    if fresh and not (fresh.uuid == made and sorted(fresh.tags) == sorted(tags)):
        remove(at, fresh)
        fresh = None
    if fresh is None:
        _make(at, tags)
    disk, kept = found.get(at.lv), found.get(at.kept)
    if disk and kept:
        remove(at, disk)
    elif disk:
        lvm(at.vdev, "lvrename", at.vg, at.lv, at.kept)
    lvm(at.vdev, "lvrename", at.vg, at.fresh, at.lv)
    wait_for_path(at.vdev, at.vg, at.lv, fresh)


def _is_ours(tag: str) -> bool:
    return tag == TAG or tag.startswith(f"{TAG}.")
