"""Trying whether a snapshot inside an image can be applied, before the domain is destroyed.

What qemu-img will do to the image after the destroy is done here to an overlay in memory, of the
whole file with its metadata: a damaged snapshot table or reference count shows, and the space that
is needed. The image is only read.

A guest may write to the image meanwhile, so the trial may read metadata of two moments. So a
failure counts only if it is repeated.
"""

import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk
from pyxlsnap.text import quote

log = logging.getLogger(__name__)

_TRIES, _PAUSE_S = 5, 0.3
_LIMIT_S = 60.0
# The overlay gets what qemu-img writes: an image with larger tables is not tried.
_TABLES_LIMIT = 64 << 20
_GROWTH = 1 << 30
#: space, in bytes, for what a filesystem itself needs
SLACK = 1 << 20


def refuse_inapplicable(disk: Disk, virtual_size: int, cluster: int, tags: list[str]) -> int:
    """Try what a revert does to an image.

    :param tags: the arguments of ``qemu-img snapshot``, in turn: ``-c NAME`` and ``-a NAME``.
    :returns: the bytes that it writes, at most.
    :raises Refused: it would fail.
    """
    tables = virtual_size // cluster * 8
    if tables > _TABLES_LIMIT:
        log.info("%s: %s is too large to try the revert on an overlay", disk.vdev, disk.target)
        return tables * 2
    for left in reversed(range(_TRIES)):
        try:
            return _written(disk, tags)
        except subprocess.TimeoutExpired:
            log.info("%s: trying the revert on an overlay takes too long", disk.vdev)
            return tables * 2
        except subprocess.CalledProcessError as e:
            if not left:
                said = (e.stderr.strip().splitlines() or [f"status {e.returncode}"])[-1]
                raise Refused(
                    f"{disk.vdev}: the snapshot in {disk.target} cannot be applied, as a trial on "
                    f"an overlay shows ({said}): shut the domain down, and see what "
                    f"`qemu-img check {quote(disk.target)}` says"
                ) from e
            time.sleep(_PAUSE_S)
    raise AssertionError


def _written(disk: Disk, tags: list[str]) -> int:
    with _overlay(disk) as (fd, image):
        for option, name in zip(tags[::2], tags[1::2], strict=True):
            _qemu_img(fd, "snapshot", option, name, image)
        return os.fstat(fd).st_blocks * 512


@contextmanager
def _overlay(disk: Disk) -> Iterator[tuple[int, str]]:
    """An overlay of the image's file in memory, and the name of the image on the overlay."""
    path = os.path.realpath(disk.target)
    fd = os.memfd_create("pyxlsnap-trial")
    try:
        memory = f"/proc/self/fd/{fd}"
        size = _size(path) + _GROWTH
        _qemu_img(fd, "create", "-q", "-f", "qcow2", memory, str(size))
        driver = "host_device" if Path(path).is_block_device() else "file"
        below = {"driver": driver, "filename": path, "locking": "off"}
        overlay = {
            "driver": "qcow2",
            "file": {"driver": "file", "filename": memory},
            "backing": {"driver": "raw", "file": below},
        }
        image = {"driver": "qcow2", "backing": None, "file": overlay}
        yield fd, f"json:{json.dumps(image)}"
    finally:
        os.close(fd)


def _qemu_img(overlay: int, *arguments: str) -> None:
    """Run qemu-img on an overlay, which may be lost at any time; so it can be killed."""
    command = ["qemu-img", *arguments]
    subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=_LIMIT_S,
        pass_fds=(overlay,),
    )


def _size(path: str) -> int:
    """The size of a file or a block device, in bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)
