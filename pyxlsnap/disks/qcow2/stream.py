"""block-stream in the guest's QEMU: makes an image independent of its backing file.

For an image below the disk QEMU opens the image again, to write to it, BY THE NAME that the node
has. For a file that was frozen while this QEMU ran this is not the file's name, but that of the
disk or of the overlay before its rename (see :mod:`.external`). If it is the disk's name, which
leads to another file by now, this is refused: QEMU would write into the wrong file. The name of the
overlay has no file any more: it becomes a second name of the image while QEMU works.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.qcow2.chain import OVERLAY_SUFFIX
from pyxlsnap.disks.qcow2.qemu import NODE_PREFIX, GuestQemu, image_chain
from pyxlsnap.disks.standing import stands_on
from pyxlsnap.errors import DiskError, PyxlsnapError, Refused
from pyxlsnap.linux.there import exists, lexists
from pyxlsnap.linux.waiting import until
from pyxlsnap.model import Disk

_POLL_S = 0.1
_ENDING_S = 30.0
_PROTOCOLS = ("file", "host_device")


@dataclass(frozen=True, slots=True)
class Place:
    """An image in the chain of a guest's QEMU, and the node below its backing file."""

    image: Path
    #: the image's backing file
    frozen: Path
    node: str
    #: the name by which QEMU would open the image again; ``None`` for the disk: it never does
    name: Path | None
    #: "" if there is none
    base: str

    @property
    def is_overlay(self) -> bool:
        """Whether the name is one that only an overlay of ours had, until its rename."""
        return self.name is not None and self.name.name.endswith(OVERLAY_SUFFIX)


def find(qemu: GuestQemu, disk: Disk, image: Path, frozen: Path) -> Place:
    """The place of an image in the guest's QEMU.

    :param frozen: what the image stands on.
    :raises Refused: QEMU's chain is not as that of the files, or QEMU could not write to the image.
    """
    nodes = _chain(qemu, disk)
    files = _files(disk)
    at = next((n for n, file in enumerate(files) if file.samefile(image)), -1)
    if len(nodes) != len(files) or at < 0 or not files[at + 1].samefile(frozen):
        raise _refused(disk, image, "the guest's QEMU has another chain of files open")
    base = nodes[at + 2]["node-name"] if at + 2 < len(nodes) else ""
    name = Path(_file_name(nodes[at]["file"])) if at else None
    place = Place(image, frozen, nodes[at]["node-name"], name, base)
    there = name is None or lexists(name)
    if name and not (exists(name) and name.samefile(image) if there else place.is_overlay):
        raise _refused(disk, image, f"QEMU knows the file as {name}, which is another file now")
    return place


def is_as_the_files(qemu: GuestQemu, disk: Disk) -> bool:
    """Whether the guest's QEMU has as many files in its chain as the headers of the files say."""
    return len(_chain(qemu, disk)) == len(_files(disk))


def _files(disk: Disk) -> list[Path]:
    return [Path(i["filename"]) for i in image_chain(disk, os.path.realpath(disk.target))]


def _refused(disk: Disk, image: Path, why: str) -> Refused:
    return Refused(
        f"{disk.vdev}: while the domain runs, {image} cannot be made independent of the disk "
        f"snapshot: {why}: shut down the domain first"
    )


def _file_name(of_node: str) -> str:
    """The name of the file in a node's name: that has the node's options, if it needs them."""
    if not of_node.startswith("json:"):
        return of_node
    return str(json.loads(of_node.removeprefix("json:"))["file"]["filename"])


def _chain(qemu: GuestQemu, disk: Disk) -> list[dict[str, Any]]:
    """QEMU's nodes of a disk, from the disk to the file that stands on nothing.

    A node tells the name of its backing file, not of the backing node.
    """
    nodes = qemu.execute("query-named-block-nodes", {"flat": True})
    nodes = [node for node in nodes if node["drv"] not in _PROTOCOLS]
    (first,) = [node for node in nodes if node["node-name"] == qemu.node(disk.vdev)]
    chain = [first]
    while under := chain[-1].get("backing_file"):
        found = [node for node in nodes if node["file"] == under and node not in chain]
        if len(found) != 1:
            raise _refused(disk, Path(disk.target), f"{len(found)} of QEMU's nodes are {under}")
        chain += found
    return chain


def left(qemu: GuestQemu) -> str:
    """The id of a job that a process of ours has left in QEMU; "" if there is none."""
    return next((id_ for id_ in _jobs(qemu) if id_.startswith(f"{NODE_PREFIX}-")), "")


def run(
    qemu: GuestQemu,
    disk: Disk,
    place: Place,
    under: str,
    *,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Let an image take over the data of its backing file, and stand on what is below that.

    The guest runs on. If this is cut off, QEMU finishes the job by itself. A job that has ended
    does not stay in QEMU to tell how it ended: while it does, QEMU 7.2 dies of
    ``query-named-block-nodes``. The header of the image tells.

    :param under: the new backing file's name, for the image's header; "" for none.
    :param check: called often; an exception from it cancels the job.
    :raises DiskError: the job failed; the image stands on its backing file as before.
    """
    job = f"{NODE_PREFIX}-{os.urandom(4).hex()}"
    arguments: dict[str, object] = {"job-id": job, "device": place.node}
    if place.base:
        arguments |= {"base-node": place.base, "backing-file": under}
    with _named(place):
        qemu.execute("block-stream", arguments)
        try:
            while job in _jobs(qemu):
                check()
                time.sleep(_POLL_S)
        except BaseException:
            _cancel(qemu, job)
            raise
    if stands_on(place.image, place.frozen):
        raise DiskError(
            f"the guest's QEMU could not copy the data of {place.frozen} into {place.image}: see "
            f"whether the filesystem is full, and what the log of the QEMU says",
            vdev=disk.vdev,
        )


@contextmanager
def _named(place: Place) -> Iterator[None]:
    """Make sure that the name by which QEMU opens the image leads to the image."""
    if place.name is None or not place.is_overlay:
        yield
        return
    if not lexists(place.name):  # else a delete that was killed has left it
        os.link(place.image, place.name, follow_symlinks=False)
    try:
        yield
    finally:
        os.unlink(place.name)


def _jobs(qemu: GuestQemu) -> list[str]:
    return [str(job["id"]) for job in qemu.execute("query-jobs")]


def _cancel(qemu: GuestQemu, job: str) -> None:
    """Cancel the job, and wait for its end: QEMU may open the image by its name until then."""
    try:
        qemu.execute("job-cancel", {"id": job})
    except PyxlsnapError:
        pass  # it has just ended
    try:
        until(lambda: job not in _jobs(qemu), within_s=_ENDING_S, poll_s=_POLL_S)
    except PyxlsnapError:
        pass  # QEMU has ended, or does not answer
