"""qcow2 with the snapshot inside the image: made by the guest's QEMU, put back by qemu-img.

QEMU makes the snapshots of all disks in one QMP ``transaction``, so there are all or none. Under
Xen QEMU opens its images with locking off: nothing here runs qemu-img for writing on an image
while any process has it.
"""

import json
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyxlsnap import qmp
from pyxlsnap.errors import AlreadyExists, DiskError, MonitorError, Refused
from pyxlsnap.files import holders, process_name
from pyxlsnap.model import KEPT_SUFFIX, Artefact, Disk

_QEMU_IMG_S = 600.0
_RELEASED_S = 60.0
_POLL_S = 0.2
_SET_ACTIVE_SINCE = (10, 0)  # QEMU's blockdev-set-active


@dataclass(frozen=True, slots=True)
class _Tag:
    """A snapshot in an image, as QEMU lists it."""

    name: str
    #: host time when it was made, seconds since the epoch
    date: float


class Qcow2Internal:
    """All qcow2 disks of an operation. See :class:`pyxlsnap.ports.DiskStrategy`."""

    kind = "qcow2, internal"

    def __init__(self, disks: Sequence[Disk], name: str, inactive: bool) -> None:
        self._disks = tuple(disks)
        self._name = name
        self._inactive = inactive
        self.vdevs = tuple(d.vdev for d in disks)
        self._monitor: qmp.Monitor | None = None
        self._nodes: dict[str, str] = {}
        self._activate: tuple[tuple[str, dict[str, object]], ...] = ()
        self._began: float | None = None

    # create

    def check_create(self, domid: int) -> None:
        try:
            self._connect(domid)
            self._activate = self._how_to_activate(self._connected())
        except MonitorError as e:
            raise Refused(
                f"{', '.join(self.vdevs)}: cannot talk to the guest's QEMU ({e}); is another "
                f"program (xentop?) connected to its monitor?"
            ) from e
        for vdev, tags in self._tags().items():
            if any(t.name == self._name for t in tags):
                raise AlreadyExists(
                    f"{vdev} has a disk snapshot {self._name!r} already: choose another name",
                    where=vdev,
                )

    def _how_to_activate(self, monitor: qmp.Monitor) -> tuple[tuple[str, dict[str, object]], ...]:
        """After a live suspend of an HVM guest QEMU refuses to write (xen-lab.md, E2)."""
        if not self._inactive:
            return ()
        if monitor.version() >= _SET_ACTIVE_SINCE:
            return (("blockdev-set-active", {"active": True}),)
        # The guest cannot run in between: for Xen it is shut down.
        return (("cont", {}), ("stop", {}))

    def create(self) -> None:
        monitor = self._connected()
        for command, arguments in self._activate:
            monitor.execute(command, arguments)
        actions = [
            {
                "type": "blockdev-snapshot-internal-sync",
                "data": {"device": node, "name": self._name},
            }
            for node in self._nodes.values()
        ]
        self._began = time.time()
        try:
            monitor.execute("transaction", {"actions": actions})
        except MonitorError as e:
            if e.refused:
                self._began = None  # nothing was made: what has that name is another's
            raise

    def undo_create(self) -> list[str]:
        """QEMU undoes a failed transaction itself; what is there was made by one that worked.

        A disk snapshot of that name from before :meth:`create` is another's, and stays.
        """
        if self._began is None:
            return []
        undone = []
        for vdev, tags in self._tags().items():
            if any(t.name == self._name and t.date >= self._began - 1 for t in tags):
                self._delete(vdev, self._name)
                undone.append(f"deleted the disk snapshot {self._name!r} of {vdev}")
        return undone

    def adopt_create(self, domid: int, *, began: float) -> None:
        self._connect(domid)
        self._began = began

    def artefacts(self, domain: str) -> list[Artefact]:
        return [
            Artefact(
                kind="disk snapshot",
                where=f"{self._name} in {disk.target} ({disk.vdev})",
                delete=f"domain running: xl qemu-monitor-command {shlex.quote(domain)} "
                f"'snapshot_delete_blkdev_internal {self._nodes[disk.vdev]} {self._name}'; "
                f"domain off: qemu-img snapshot -d {self._name} {shlex.quote(disk.target)}",
            )
            for disk in self._disks
        ]

    def close(self) -> None:
        if self._monitor:
            self._monitor.close()
            self._monitor = None

    def _connect(self, domid: int) -> None:
        self._monitor = qmp.Monitor(qmp.socket_path(domid))
        nodes = self._qcow2_nodes()
        self._nodes = {disk.vdev: _only_node(disk, nodes) for disk in self._disks}

    def _connected(self) -> qmp.Monitor:
        if self._monitor is None:
            raise MonitorError("not connected to the guest's QEMU", command="connect")
        return self._monitor

    def _qcow2_nodes(self) -> list[dict[str, Any]]:
        nodes = self._connected().execute("query-named-block-nodes", {"flat": True})
        return [n for n in nodes if n["drv"] == "qcow2"]

    def _delete(self, vdev: str, name: str) -> None:
        self._connected().execute(
            "blockdev-snapshot-delete-internal-sync", {"device": self._nodes[vdev], "name": name}
        )

    def _tags(self) -> dict[str, list[_Tag]]:
        """The snapshots in each disk's image, as QEMU knows them."""
        nodes = {n["node-name"]: n for n in self._qcow2_nodes()}
        return {vdev: _tags_of(nodes[node]["image"]) for vdev, node in self._nodes.items()}

    # revert

    def check_revert(self) -> None:
        for disk in self._disks:
            try:
                tags = [t for t in _image_tags(disk) if t.name == self._name]
            except DiskError as e:
                raise Refused(str(e)) from e
            if not tags:
                raise Refused(
                    f"{disk.vdev}: {disk.target} has no disk snapshot {self._name!r} "
                    f"(see `qemu-img snapshot -U -l {disk.target}`)"
                )
            if len(tags) > 1:
                raise Refused(
                    f"{disk.vdev}: {disk.target} has {len(tags)} disk snapshots named "
                    f"{self._name!r}: delete those that are not meant"
                )

    def revert(self) -> None:
        """Apply the snapshots, each image's present state first kept in it under a tag of ours.

        A tag of that name that is there already stays as it is, for it may have been made by a run
        of this that was interrupted, and then has the only copy of what was before. It may also be
        one that :meth:`finish_revert` once failed to delete, and then the present state is not
        kept. Nothing but the run itself can tell the two apart, and only for a restore that fails
        does it matter. Nobody else's can have that name (:data:`~pyxlsnap.model.KEPT_SUFFIX`), so
        :meth:`finish_revert` deletes it in both cases.

        :raises DiskError: another process has an image open, for longer than a QEMU takes to end;
            nothing was written then.
        """
        for disk in self._disks:
            _wait_released(disk)
        for disk in self._disks:
            if self._kept_name not in [t.name for t in _image_tags(disk)]:
                _qemu_img(disk, "snapshot", "-c", self._kept_name, disk.target)
            _qemu_img(disk, "snapshot", "-a", self._name, disk.target)

    def finish_revert(self, domid: int) -> list[str]:
        try:
            self._connect(domid)
            tags = self._tags()
        except (MonitorError, Refused) as e:
            return [self._left(self._disks, e)]
        left = []
        for disk in self._disks:
            try:
                if any(t.name == self._kept_name for t in tags[disk.vdev]):
                    self._delete(disk.vdev, self._kept_name)
            except MonitorError as e:
                left.append(self._left([disk], e))
        return left

    def _left(self, disks: Sequence[Disk], why: Exception) -> str:
        return (
            f"disk snapshots {self._kept_name!r} (the disks before the revert) in "
            f"{', '.join(d.target for d in disks)}: {why}"
        )

    @property
    def _kept_name(self) -> str:
        return self._name + KEPT_SUFFIX


def _only_node(disk: Disk, nodes: list[dict[str, Any]]) -> str:
    """The node that serves a disk; QEMU must have the image open only once."""
    of_file = [n for n in nodes if _same_file(n["file"], disk.target)]
    if not of_file:
        raise Refused(f"{disk.vdev}: the guest's QEMU does not have {disk.target} open")
    if len(of_file) > 1:
        raise Refused(
            f"{disk.vdev}: {disk.target} is open twice in the guest's QEMU, as an emulated "
            f"and as a PV disk, and a snapshot would damage it: load the PV drivers in the "
            f"guest (they unplug the emulated disk), or shut it down and copy the image"
        )
    return str(of_file[0]["node-name"])


def _same_file(a: str, b: str) -> bool:
    try:
        return Path(a).samefile(b)
    except OSError:
        return False


def _tags_of(image: dict[str, Any]) -> list[_Tag]:
    return [
        _Tag(s["name"], s["date-sec"] + s["date-nsec"] / 1e9) for s in image.get("snapshots", [])
    ]


def _wait_released(disk: Disk) -> None:
    """Wait until no other process has the image open; a QEMU that was killed takes a moment."""
    end = time.monotonic() + _RELEASED_S
    while pids := _holders(disk):
        if time.monotonic() >= end:
            raise DiskError(
                f"{disk.target} is still open in {', '.join(map(_process, pids))}, and to write to "
                f"it now would damage it: make sure that this ends, then run the command again",
                vdev=disk.vdev,
            )
        time.sleep(_POLL_S)


def _holders(disk: Disk) -> list[int]:
    try:
        return holders(Path(disk.target))
    except OSError as e:
        raise DiskError(f"{disk.target}: {e.strerror}", vdev=disk.vdev) from e


def _process(pid: int) -> str:
    return f"{process_name(pid)} (pid {pid})"


def _image_tags(disk: Disk) -> list[_Tag]:
    """The snapshots in an image on disk. -U: a QEMU may have it, we only read."""
    info = _qemu_img(disk, "info", "-U", "-f", "qcow2", "--output=json", disk.target)
    return _tags_of(json.loads(info))


def _qemu_img(disk: Disk, *arguments: str) -> str:
    try:
        run = subprocess.run(
            ["qemu-img", *arguments],
            capture_output=True,
            text=True,
            timeout=_QEMU_IMG_S,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as e:
        raise DiskError("qemu-img is missing: install qemu-utils", vdev=disk.vdev) from e
    except subprocess.TimeoutExpired as e:
        raise DiskError(f"qemu-img did not end in {_QEMU_IMG_S:g} s", vdev=disk.vdev) from e
    if run.returncode:
        said = run.stderr.strip().splitlines()
        raise DiskError(
            f"qemu-img {arguments[0]} failed: {said[-1] if said else run.returncode}",
            vdev=disk.vdev,
        )
    return run.stdout
