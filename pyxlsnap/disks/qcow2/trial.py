"""Trying whether a snapshot inside an image can be applied, before the domain is destroyed.

What qemu-img will do to the image after the destroy is done here to an overlay in memory, of the
whole file with its metadata: a damaged snapshot table or reference count shows, and the space that
is needed, also on a block device that is full. The image is only read.

A guest may write to the image meanwhile, so the trial may read metadata of two moments. So a
failure counts only if it is repeated.
"""

import errno
import json
import logging
import os
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyxlsnap.dataclass import dataclass
from pyxlsnap.errors import Refused
from pyxlsnap.linux.extents import space_to_write
from pyxlsnap.linux.there import is_block_device
from pyxlsnap.model import Disk
from pyxlsnap.text import quote

log = logging.getLogger(__name__)

_TRIES, _PAUSE_S = 5, 0.3
_LIMIT_S = 60.0
# The overlay gets what qemu-img writes: an image with larger tables is not tried.
_TABLES_LIMIT = 64 << 20
_GROWTH = 1 << 30
# bytes; the second is QEMU's default
_BLOCK, _CLUSTER = 4096, 65536
_MOST_TABLES = 4 << 20  # entries of an L1 table
#: space, in bytes, for what a filesystem itself needs
SLACK = 1 << 20


def refuse_inapplicable(disk: Disk, virtual_size: int, cluster: int, tags: list[str]) -> int:
    """Try what a revert does to an image.

    :param tags: the arguments of ``qemu-img snapshot``, in turn: ``-c NAME`` and ``-a NAME``.
    :returns: the space that it takes on the image's filesystem, bytes.
    :raises Refused: it would fail.
    """
    tables = virtual_size // cluster * 8
    if tables > _TABLES_LIMIT:
        log.info("%s: %s is too large to try the revert on an overlay", disk.vdev, disk.target)
        return tables * 2
    for left in reversed(range(_TRIES)):
        try:
            return _written(disk, cluster, tags)
        except subprocess.TimeoutExpired:
            log.info("%s: trying the revert on an overlay takes too long", disk.vdev)
            return tables * 2
        except subprocess.CalledProcessError as e:
            if not left:
                raise _refusal(
                    disk, e.stderr.strip().splitlines() or [f"status {e.returncode}"]
                ) from e
            time.sleep(_PAUSE_S)
    raise AssertionError


def _refusal(disk: Disk, said: list[str]) -> Refused:
    if os.strerror(errno.ENOSPC) in said[-1] and is_block_device(disk.target):
        return Refused(
            f"{disk.vdev}: {disk.target} has no room for what the revert writes there: make the "
            f"device larger (lvextend), and run the command again"
        )
    return Refused(
        f"{disk.vdev}: the snapshot in {disk.target} cannot be applied, as a trial on an overlay "
        f"shows ({said[-1]}): shut the domain down, and see what `qemu-img check "
        f"{quote(disk.target)}` says"
    )


@dataclass(frozen=True, slots=True)
class _Overlay:
    """An overlay of an image's file, in memory."""

    #: the overlay's own file, and the image's
    memory: int
    file: int
    node: Mapping[str, object]
    #: the name of the image on the overlay
    image: str

    def qemu_img(self, *arguments: str) -> str:
        """Run qemu-img on the overlay, which may be lost at any time; so it can be killed."""
        done = subprocess.run(
            ["qemu-img", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=_LIMIT_S,
            pass_fds=(self.memory, self.file),
        )
        return done.stdout

    def written(self) -> list[tuple[int, int]]:
        """The parts of the file that were written: start and length of each."""
        said = self.qemu_img("map", "--output=json", f"json:{json.dumps(self.node)}")
        return [(e["start"], e["length"]) for e in json.loads(said) if not e["depth"] and e["data"]]


def _written(disk: Disk, cluster: int, tags: list[str]) -> int:
    """Do it on an overlay; returns the space that it takes on the filesystem, bytes."""
    with _overlay(disk, cluster) as overlay:
        for option, name in zip(tags[::2], tags[1::2], strict=True):
            overlay.qemu_img("snapshot", option, name, overlay.image)
        return space_to_write(overlay.file, overlay.written())


@contextmanager
def _overlay(disk: Disk, cluster: int) -> Iterator[_Overlay]:
    fd = os.memfd_create("pyxlsnap-trial")
    try:
        # (By its descriptor: JSON holds no name that is not UTF-8.)
        file = os.open(disk.target, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        os.close(fd)
        raise
    try:
        size = os.lseek(file, 0, os.SEEK_END)
        is_device = stat.S_ISBLK(os.fstat(file).st_mode)
        node = _node(fd, file, is_device=is_device)
        # A device does not grow.
        whole = {"driver": "raw", "size": size, "file": node} if is_device else node
        image = {"driver": "qcow2", "backing": None, "file": whole}
        overlay = _Overlay(fd, file, node, f"json:{json.dumps(image)}")
        clusters = f"cluster_size={_cluster(size + _GROWTH, cluster)}"
        memory = f"/proc/self/fd/{fd}"
        virtual = str(size + _GROWTH)
        overlay.qemu_img("create", "-q", "-f", "qcow2", "-o", clusters, memory, virtual)
        yield overlay
    finally:
        os.close(file)
        os.close(fd)


def _node(memory: int, file: int, *, is_device: bool) -> dict[str, object]:
    """The overlay's block node, for QEMU."""
    below = {
        "driver": "host_device" if is_device else "file",
        "filename": f"/proc/self/fd/{file}",
        "locking": "off",
    }
    return {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": f"/proc/self/fd/{memory}"},
        "backing": {"driver": "raw", "file": below},
    }


def _cluster(size: int, image_cluster: int) -> int:
    """The cluster size of an overlay: that of the image, if QEMU's limit of tables allows it.

    With larger ones each table that is written would take a larger cluster of memory.
    """
    small = max(image_cluster, _BLOCK)
    return min(small, _CLUSTER) if size < small * small // 8 * _MOST_TABLES else _CLUSTER
