"""qemu-img where it may be killed at any moment: no image that anybody needs is damaged by that."""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pyxlsnap.disks.qcow2.qemu import TELL_EVERY_S, failure, missing
from pyxlsnap.linux.files import scratch_file, scratch_text
from pyxlsnap.model import Disk

_POLL_S = 0.05
_ENDING_S = 10.0


def rebase(
    disk: Disk, image: Path, under: str, form: str, *, check: Callable[[], None] = lambda: None
) -> None:
    """Let an image that nobody has open stand on another file; its content stays the same.

    May take long. If this is cut off, the image stands on its old backing file or on the new one,
    with the same content.

    :param under: the new backing file; "" for none.
    :param form: the format of ``under``.
    :param check: called often; an exception from it ends the work.
    :raises DiskError: it failed.
    """
    to = ["-b", under, *(["-F", form] if under else [])]
    words = ["rebase", "-q", "-f", "qcow2", *to, str(image)]
    killable_qemu_img(disk, words, f"rebase of {image}", check=check)


def killable_qemu_img(
    disk: Disk,
    words: Sequence[str],
    what: str,
    *,
    check: Callable[[], None],
    waiting: Callable[[], None] = lambda: None,
) -> None:
    """Run qemu-img; what it prints is not read.

    :param what: what it does, for the error.
    :param check: called often; an exception from it ends qemu-img.
    :param waiting: called every few seconds.
    :raises DiskError: it failed.
    """
    with scratch_file() as err:
        try:
            running = subprocess.Popen(
                ["qemu-img", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
            )
        except FileNotFoundError as e:
            raise missing(disk) from e
        told = time.monotonic()
        try:
            while (status := running.poll()) is None:
                check()
                time.sleep(_POLL_S)
                if time.monotonic() - told >= TELL_EVERY_S:
                    told = time.monotonic()
                    waiting()
        except BaseException:
            _end(running)
            raise
        if status:
            raise failure(disk, what, scratch_text(err), status)


def _end(running: "subprocess.Popen[bytes]") -> None:
    running.terminate()
    try:
        running.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()
