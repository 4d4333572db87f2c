"""The files that a qcow2 image stands on, at any depth, by the names in the headers.

``qemu-img info --backing-chain`` tells nothing of a chain with a missing file.
"""

import os
import stat
from pathlib import Path

from pyxlsnap.disks.failures import os_errors
from pyxlsnap.disks.qcow2.qemu import image_chain
from pyxlsnap.disks.standing import backing_name
from pyxlsnap.errors import Refused
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.stalled import stat_within
from pyxlsnap.model import Disk


def chain_files(image: Path) -> list[Path]:
    """An image and its backing files, down to the first that is not there (which is included).

    A backing file with a name that only QEMU understands (``json:``, ``nbd:``) ends the list.

    :raises OSError: a file cannot be read, or its server does not answer.
    """
    found: list[Path] = []
    while image not in found:
        found.append(image)
        if not _is_file(image):
            break
        name = backing_name(image)
        if not name or ":" in name.partition("/")[0]:
            break
        # QEMU looks beside the file that a link leads to.
        image = Path(os.path.normpath(image.resolve().parent / name))
    return found


def _is_file(path: Path) -> bool:
    """:raises TimeoutError: the server of the file does not answer."""
    try:
        return stat.S_ISREG(stat_within(path).st_mode)
    except TimeoutError:
        raise
    except OSError:
        return False


def refuse_broken(disk: Disk, image: Path) -> None:
    """Open an image and all that it stands on, in the formats that QEMU would take them for.

    :raises Refused: a file is not there, or is not of its format; the message names it.
    """
    with os_errors(disk, image, refuse=True):
        files = chain_files(image)
    if not files[-1].exists():
        raise Refused(
            f"{disk.vdev}: {image} stands on {files[-1]}, and there is no such file: put it back, "
            f"or restore it from a backup"
        )
    with refusing_os_errors():
        image_chain(disk, str(image))
