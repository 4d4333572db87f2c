"""What thin and thick LVM volumes have in common: names, the snapshot itself, its undo.

Each snapshot has three tags: :data:`TAG` for people (``lvs @pyxlsnap``), :data:`OF_TAG` with the
volume that it is a snapshot of, and a tag with a token of this operation. By the token the undo
removes what this operation made, and nothing else.
"""

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from pyxlsnap.disks.in_use import users, wait_until_no_users
from pyxlsnap.disks.lvm.commands import Volume, lvm, refuse_unchangeable_group, volumes
from pyxlsnap.disks.lvm.names import Place, device_path, is_suspended, place
from pyxlsnap.disks.side_by_side import grouped
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import undo_each
from pyxlsnap.errors import AlreadyExists, DiskError, Refused
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.results import Artefact
from pyxlsnap.text import quote

log = logging.getLogger(__name__)

TAG = "pyxlsnap"
#: followed by the name of the snapshot's origin
OF_TAG = f"{TAG}.of="

#: the volumes of each group, both by name
Groups = dict[str, dict[str, Volume]]

_WINDOW_S = 60.0  # the guest is suspended meanwhile
_REFRESH_S = 20.0  # likewise
_POLL_S = 0.5


class LvmDisks:
    """The LVM disks of an operation. See :class:`pyxlsnap.disks.protocol.DiskStrategy`."""

    kind = "LVM"
    #: options of ``lvcreate -s`` for such a snapshot
    options: tuple[str, ...] = ()
    #: how long ``lvcreate`` takes, for each disk
    seconds: float = 0.0

    def __init__(self, disks: Sequence[tuple[Disk, DiskRequest]], task: DiskTask) -> None:
        self._places = [place(disk, request, task.name) for disk, request in disks]
        self.vdevs = tuple(p.vdev for p in self._places)
        self._targets = {disk.vdev: disk.target for disk, _ in disks}
        self._tokens = {vdev: os.urandom(8).hex() for vdev in self.vdevs}
        self._waiting = task.waiting
        self._check = task.check
        self._begun = False
        self._sizes: dict[str, int] = {}

    # create

    def check_create(self, domid: int) -> None:
        with refusing_os_errors():
            found = self.volumes_now()
            origins = [(p, self._check_origin(p, found[p.vg])) for p in self._places]
            self._check_twice()
            self.refuse_unchangeable()
            self.check_room(origins, found)
        self._sizes = {p.vdev: origin.size for p, origin in origins}

    def volumes_now(self) -> Groups:
        """The volumes of each group that has a disk; LVM is asked once for a group."""
        return {vg: volumes(vdev, vg) for vg, vdev in self.groups().items()}

    def closed_volumes(self) -> Groups:
        """The volumes of each group, once nobody has the volume of a disk open.

        :raises DiskError: as :func:`wait_until_closed`.
        """
        found = self.volumes_now()
        opened = [at for at in self._places if (v := found[at.vg].get(at.lv)) and v.open]
        for at in opened:
            wait_until_closed(at)
        return self.volumes_now() if opened else found

    def put_each_back(self, put_back: Callable[[Place], object]) -> None:
        """Put back the disks of several groups side by side; LVM does one in a group at a time.

        :raises DiskError: the first failure; the others are notes on it.
        """
        grouped(self._places, lambda at: at.vg, put_back)

    def refuse_unchangeable(self) -> None:
        """:raises Refused: LVM would change nothing in the group of a disk."""
        for vg, vdev in self.groups().items():
            refuse_unchangeable_group(vdev, vg)

    def groups(self) -> dict[str, str]:
        """The groups, each with its first disk, for errors."""
        found: dict[str, str] = {}
        for at in self._places:
            found.setdefault(at.vg, at.vdev)
        return found

    def _check_origin(self, at: Place, found: Mapping[str, Volume]) -> Volume:
        origin = found.get(at.lv)
        if origin is None:
            raise Refused(
                f"{at.vdev}: there is no volume {at.full(at.lv)} (see `lvs {at.vg}`): was it "
                f"renamed? Correct the domain's configuration"
            )
        if origin.merging:
            raise Refused(
                f"{at.vdev}: a snapshot is being merged into {at.full(at.lv)}: wait until the "
                f"merge has ended (`lvs -a {at.vg}`)"
            )
        if at.snapshot in found:
            raise AlreadyExists(
                f"{at.vdev}: the volume {at.full(at.snapshot)} exists, and was left as it is: "
                f"choose another name",
                where=at.vdev,
            )
        self.check_kind(at, origin)
        return origin

    def _check_twice(self) -> None:
        names = [p.full(p.snapshot) for p in self._places]
        for at in self._places:
            if names.count(at.full(at.snapshot)) > 1:
                raise Refused(
                    f"{at.vdev}: two disks cannot both have the snapshot {at.full(at.snapshot)}: "
                    f"give each disk its own"
                )

    def check_kind(self, at: Place, origin: Volume) -> None:
        """:raises Refused: no snapshot of such a volume can be taken."""
        raise NotImplementedError

    def check_room(self, origins: Sequence[tuple[Place, Volume]], found: Groups) -> None:
        """:raises Refused: there is no space for the snapshots."""
        raise NotImplementedError

    def expected_seconds(self) -> float:
        return self.seconds * len(self._places)

    def state(self) -> dict[str, str]:
        return {f"{vdev} token": token for vdev, token in self._tokens.items()}

    def prepare(self) -> None:
        pass

    def beside(self) -> Collection[str]:
        """See :class:`pyxlsnap.disks.abilities.BesideStrategy`."""
        return self.vdevs

    def create_beside(self) -> None:
        """Take the snapshots, one command for each disk. LVM does one in a group at a time.

        lvcreate suspends the origin's device, "with filesystem sync with device flush" as -vvvv
        says. The suspend returns when blkback's requests in flight have reached the volume.
        """
        if not self._begun:
            self._begun = True
            grouped(self._places, lambda at: at.vg, self._take)

    def create(self) -> None:
        self.create_beside()

    def _take(self, at: Place) -> None:
        self._check()
        tags = (TAG, f"{OF_TAG}{at.lv}", self._token_tag(at))
        tagging = [word for tag in tags for word in ("--addtag", tag)]
        name = ("-n", at.snapshot, at.full(at.lv))
        options = (*self.options, *tagging, *name)
        lvm(at.vdev, "lvcreate", "-s", *options, timeout_s=_WINDOW_S)

    def _token_tag(self, at: Place) -> str:
        return f"{TAG}.{self._tokens[at.vdev]}"

    def finish_create(self) -> None:
        pass  # LVM's metadata is on the disk when its commands end

    def settle(self) -> None:
        """Resume volumes that a killed lvcreate has left suspended: the guest would hang.

        The guest would lose no data by that, so it may run even if this fails. LVM is asked for
        nothing else: its commands may take long while the guest waits.
        """
        if not self._begun:
            return
        for at in self._places:
            if not is_suspended(at.vg, at.lv):
                continue
            try:
                lvm(at.vdev, "lvchange", "--refresh", at.full(at.lv), timeout_s=_REFRESH_S)
            except DiskError as e:
                log.warning("%s: %s may be suspended: %s", at.vdev, at.full(at.lv), e)

    def undo_create(self) -> list[str]:
        if not self._begun:
            return []
        return undo_each(partial(self._undo, at) for at in self._places)

    def _undo(self, at: Place) -> list[str]:
        found = volumes(at.vdev, at.vg)
        ours = found.get(at.snapshot)
        undone = []
        if ours and self._token_tag(at) in ours.tags:
            remove(at, ours)
            undone.append(f"removed the volume {at.full(at.snapshot)}")
        if (origin := found.get(at.lv)) and origin.suspended:
            raise DiskError(
                f"{at.full(at.lv)} is suspended, so the guest hangs: resume the volume with "
                f"`lvchange --refresh {at.full(at.lv)}`",
                vdev=at.vdev,
            )
        return undone

    def adopt_create(self, domid: int | None, *, began: float, state: Mapping[str, str]) -> None:
        self._tokens = {vdev: state[f"{vdev} token"] for vdev in self.vdevs}
        self._begun = True

    def artefacts(self, domain: str) -> list[Artefact]:
        return [
            Artefact(
                kind="disk snapshot",
                where=f"{at.full(at.snapshot)} ({at.vdev}; {self.taken(at)})",
                delete=f"lvremove {quote(at.full(at.snapshot))}",
                vdev=at.vdev,
            )
            for at in self._places
        ]

    # delete

    def check_delete(self, domid: int | None) -> None:
        for at in self._places:
            with refusing_os_errors():
                self._snapshot_to_delete(at)

    def prepare_delete(self) -> list[str]:
        """Nothing to do: LVM's other volumes do not depend on a snapshot."""
        return []

    def delete(self) -> list[str]:
        return undo_each(partial(self._delete, at) for at in self._places)

    def _delete(self, at: Place) -> list[str]:
        snapshot = self._snapshot_to_delete(at)
        if snapshot is None:
            return []
        remove(at, snapshot)
        return [f"removed the volume {at.full(at.snapshot)}"]

    def _snapshot_to_delete(self, at: Place) -> Volume | None:
        """The snapshot, if it is there.

        :raises DiskError: it is in use, or is not known as our snapshot of this disk.
        """
        snapshot = volumes(at.vdev, at.vg).get(at.snapshot)
        if snapshot is None:
            return None
        name = at.full(at.snapshot)
        if not {TAG, f"{OF_TAG}{at.lv}"} <= set(snapshot.tags):
            raise DiskError(
                f"{name} is not known as a snapshot of {at.full(at.lv)} that pyxlsnap took (see "
                f"`lvs -o +tags {at.vg}`), and was left as it is: `lvremove {name}` if it is one",
                vdev=at.vdev,
            )
        for wrong, why in (
            (snapshot.open, "is in use"),
            (snapshot.merging, "is being merged"),
            ("thickorigin" in snapshot.role, "has snapshots of its own"),
        ):
            if wrong:
                raise DiskError(
                    f"{name} {why} (see `lvs -a {at.vg}`): end that first", vdev=at.vdev
                )
        return snapshot

    def taken(self, at: Place) -> str:
        """The space that the snapshot takes, in words."""
        raise NotImplementedError

    def close(self) -> None:
        pass


def remove(at: Place, volume: Volume) -> None:
    """Remove a volume.

    :raises DiskError: it could not be removed, or has thick snapshots: LVM would remove them, too.
    """
    if "thickorigin" in volume.role:
        raise DiskError(
            f"{at.full(volume.name)} has snapshots of its own, and LVM would remove them, too: "
            f"remove them first, then `lvremove {at.full(volume.name)}`",
            vdev=at.vdev,
        )
    lvm(at.vdev, "lvremove", "-f", at.full(volume.name))


def wait_until_closed(at: Place) -> None:
    """Wait until nobody has the disk's volume open: blkback takes a moment to close it.

    :raises DiskError: somebody still has it open after a minute; the message says who.
    """
    name = at.full(at.lv)
    wait_until_no_users(name, lambda: _users(at), vdev=at.vdev, poll_s=_POLL_S)


def _users(at: Place) -> list[str]:
    """Who has the disk's volume open; LVM knows whether anybody has, but not who."""
    volume = volumes(at.vdev, at.vg).get(at.lv)
    if volume is None or not volume.open:
        return []
    try:
        found = users(device_path(at.vg, at.lv))
    except OSError:
        found = []
    return found or ["the kernel (is it mounted, or served to a domain?)"]
