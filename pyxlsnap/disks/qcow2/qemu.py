"""The guest's QEMU as the disk strategies see it; qemu-img, for images that no QEMU has open.

Under Xen QEMU opens its images with locking off. So nothing here runs qemu-img for writing on an
image that any process has open.
"""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyxlsnap.disks.qcow2.tags import Tag, tags_of
from pyxlsnap.errors import DiskError, QmpError, Refused
from pyxlsnap.linux.files import scratch_file, scratch_text
from pyxlsnap.linux.processes import Process
from pyxlsnap.model import Disk

if TYPE_CHECKING:
    from pyxlsnap.disks.qcow2 import qmp

TELL_EVERY_S = 5.0
_ASK_EVERY_S = 1.0
_CONNECT_S, _RECONNECT_S = 5.0, 0.1
#: prefix of the nodes that we make, before the vdev: QEMU does not tell which disk a node is of
NODE_PREFIX = "xlsnap"


class _DomainGone(Exception):
    """Ends a wait for a QEMU."""


class GuestQemu:
    """A connection to the QEMU of one guest, and the node of each disk in it."""

    def __init__(self) -> None:
        self._domid = -1
        self._connection: qmp.QmpConnection | None = None
        self._nodes: dict[str, str] = {}

    def connect(self, domid: int, disks: Sequence[Disk]) -> None:
        """Connect and find the disks.

        :raises QmpError: QEMU does not answer.
        :raises Refused: it does not have a disk, or has it twice; the other disks were found.
        """
        from pyxlsnap.disks.qcow2 import qmp  # only here: asyncio takes long to load

        self._domid = domid
        self._connection = qmp.QmpConnection(qmp.socket_path(domid))
        self._find(disks)

    def _find(self, disks: Sequence[Disk]) -> None:
        attached = [
            b["inserted"]["node-name"] for b in self.execute("query-block") if "inserted" in b
        ]
        nodes = [n for n in self._qcow2_nodes() if n["node-name"] in attached]
        wrong = []
        for disk in disks:
            try:
                self._nodes[disk.vdev] = _only_node(disk, nodes)
            except Refused as e:
                wrong.append(str(e))
        if wrong:
            raise Refused("; ".join(wrong))

    def ask_nodes(
        self,
        disks: Sequence[Disk],
        *,
        waiting: Callable[[], None],
        unheld: Callable[[], bool],
        gone: Callable[[], bool],
    ) -> list[dict[str, Any]] | None:
        """QEMU's block nodes, once it answers; until then ask, however long that takes.

        :param disks: to be found, if that has not been done.
        :param waiting: called every few seconds.
        :param unheld: whether no process has the disks' images open; asked if no QEMU listens.
        :param gone: whether the QEMU's domain is gone. Then another QEMU may have the images open,
            and this one may never answer.
        :returns: ``None`` if the QEMU has ended, or its domain is gone.
        """

        def tell() -> None:
            if gone():
                raise _DomainGone
            waiting()

        try:
            return self._until_answered(disks, tell, unheld)
        except _DomainGone:
            self.close()
            return None

    def _until_answered(
        self, disks: Sequence[Disk], waiting: Callable[[], None], unheld: Callable[[], bool]
    ) -> list[dict[str, Any]] | None:
        from pyxlsnap.disks.qcow2 import qmp

        while True:
            try:
                if self._connection is None:
                    path = qmp.socket_path(self._domid)
                    self._connection = qmp.QmpConnection(path, timeout_s=_CONNECT_S)
                found: list[dict[str, Any]] = self._connection.ask(
                    "query-named-block-nodes",
                    {"flat": True},
                    every_s=_ASK_EVERY_S,
                    waiting=waiting,
                )
                if not self._nodes:
                    self._find(disks)
                return found
            except Refused:
                return found  # the undo of the disks that were not found says so
            except QmpError as e:
                self.close()
                if qmp.nobody_listens(e) and unheld():
                    return None
            waiting()
            time.sleep(_RECONNECT_S)

    def close(self) -> None:
        """Disconnect. Idempotent."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def node(self, vdev: str) -> str:
        """:raises QmpError: the disk was not found."""
        if vdev not in self._nodes:
            raise QmpError(f"{vdev}: not found in the guest's QEMU", command="connect")
        return self._nodes[vdev]

    def execute(
        self, command: str, arguments: dict[str, object] | None = None, *, expected_s: float = 0.0
    ) -> Any:
        """See :meth:`pyxlsnap.disks.qcow2.qmp.QmpConnection.execute`."""
        return self._connected().execute(command, arguments, expected_s=expected_s)

    def version(self) -> tuple[int, int]:
        """QEMU's major and minor version."""
        return self._connected().version()

    def image(self, vdev: str) -> dict[str, Any]:
        """QEMU's ImageInfo of a disk; the file itself may not have all of it yet."""
        node = self.node(vdev)
        image: dict[str, Any] = next(
            n["image"] for n in self._qcow2_nodes() if n["node-name"] == node
        )
        return image

    def tags(self, vdev: str) -> list[Tag]:
        """The snapshots in a disk's image."""
        return tags_of(self.image(vdev))

    def _connected(self) -> "qmp.QmpConnection":
        if self._connection is None:
            raise QmpError("not connected to the guest's QEMU", command="connect")
        return self._connection

    def _qcow2_nodes(self) -> list[dict[str, Any]]:
        nodes = self.execute("query-named-block-nodes", {"flat": True})
        return [n for n in nodes if n["drv"] == "qcow2"]


def _only_node(disk: Disk, nodes: list[dict[str, Any]]) -> str:
    """The node that serves this disk, among the nodes that serve disks.

    A node that an external snapshot made has a file name that is gone; it is found by its own name.

    :raises Refused: QEMU does not have the disk, or has it twice.
    """
    ours = f"{NODE_PREFIX}-{disk.vdev}-"
    found = [
        n for n in nodes if n["node-name"].startswith(ours) or _same_file(n["file"], disk.target)
    ]
    if not found:
        raise Refused(
            f"{disk.vdev}: the guest's QEMU does not have {disk.target} open: was the file "
            f"replaced? Restart the guest, or leave {disk.vdev} out of `disks`"
        )
    if len(found) > 1:
        raise Refused(
            f"{disk.vdev}: {disk.target} is open twice in the guest's QEMU, as an emulated "
            f"and as a PV disk, and a snapshot would damage it: load the PV drivers in the "
            f"guest (they unplug the emulated disk), or shut it down and copy the image"
        )
    return str(found[0]["node-name"])


def _same_file(a: str, b: str) -> bool:
    try:
        return Path(a).samefile(b)
    except OSError:
        return False


#: qemu-img's information on an image and on each file that it stands on
Chain = list[dict[str, Any]]


def image_info(disk: Disk, path: str = "") -> dict[str, Any]:
    """qemu-img's information on the disk's image, or on another image of the disk.

    With -U, as a QEMU may have the image open: then the information may be old.

    :raises DiskError: it is not a qcow2 image, or is damaged.
    """
    said = qemu_img(disk, "info", "-U", "-f", "qcow2", "--output=json", path or disk.target)
    info: dict[str, Any] = json.loads(said)
    return info


def image_chain(disk: Disk, path: str) -> Chain:
    """The same of an image and all its backing files, which need not be qcow2.

    :raises DiskError: it is not a qcow2 image, or a file is missing or damaged.
    """
    said = qemu_img(disk, "info", "-U", "-f", "qcow2", "--backing-chain", "--output=json", path)
    chain: Chain = json.loads(said)
    return chain


def checked_tags(disk: Disk) -> list[Tag]:
    """The snapshots in a disk's image, of which qemu-img has made sure that QEMU can open it.

    Where that is known, :func:`~pyxlsnap.disks.qcow2.tags.image_tags` is quicker.

    :raises DiskError: it is not a qcow2 image, or is damaged.
    """
    return tags_of(image_info(disk))


def qemu_img(disk: Disk, *arguments: str, waiting: Callable[[], None] = lambda: None) -> str:
    """Run qemu-img, and wait for its end: a qemu-img that was killed may leave a damaged image.

    So an interrupt is raised only when qemu-img has ended, and a Ctrl-C does not reach qemu-img. If
    this process is killed, qemu-img does its work to the end.

    :param waiting: called every few seconds; it raises nothing.
    :raises DiskError: it failed; the message has its last line of output.
    """
    with scratch_file() as out, scratch_file() as err:
        try:
            running = subprocess.Popen(
                ["qemu-img", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        except FileNotFoundError as e:
            raise missing(disk) from e
        try:
            _wait(running, waiting)
        finally:
            status = running.wait()
        said, complaint = scratch_text(out), scratch_text(err)
    if status:
        raise failure(disk, arguments[0], complaint, status)
    return said


def missing(disk: Disk) -> DiskError:
    """Make (not raise) the error for a host without qemu-img."""
    return DiskError("qemu-img is missing: install qemu-utils", vdev=disk.vdev)


def failure(disk: Disk, what: str, complaint: str, status: int) -> DiskError:
    """Make (not raise) the error for a qemu-img that failed: it has the last line it printed."""
    lines = complaint.strip().splitlines() or [f"status {status}"]
    return DiskError(f"qemu-img {what} failed: {lines[-1]}", vdev=disk.vdev)


def _wait(running: "subprocess.Popen[bytes]", waiting: Callable[[], None]) -> None:
    with Process(running.pid) as process:
        while not process.ended(within_s=TELL_EVERY_S):
            waiting()
