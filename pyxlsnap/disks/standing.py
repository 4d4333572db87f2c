"""Which qcow2 images stand on a file: their headers name the file as the backing file.

Only the header of each image is read, and no program is started: a directory may hold hundreds of
images, and a guest may have some of them open.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from pyxlsnap.linux.files import open_regular
from pyxlsnap.linux.there import is_file

_MAGIC = b"QFI\xfb"
#: magic, version, offset and length of the backing file's name, …, number of snapshots inside
_HEADER = struct.Struct(">4sIQI40xI")
_NAME_LIMIT = 1023  # qcow2's, in bytes


def standing_on(file: Path, directories: Iterable[Path]) -> list[Path]:
    """The images in these directories that stand directly on a file; each image once.

    A directory that does not exist is passed over, and so is an image that ended meanwhile.

    :raises OSError: ``file`` does not exist, or a directory or an image cannot be read.
    """
    found: dict[tuple[int, int], Path] = {}
    wanted = file.stat()
    for path in _images(directories):
        try:
            here = path.stat()
            if not os.path.samestat(here, wanted) and stands_on(path, file):
                found.setdefault((here.st_dev, here.st_ino), path)
        except FileNotFoundError:
            continue
    return list(found.values())


def _images(directories: Iterable[Path]) -> Iterator[Path]:
    for directory in dict.fromkeys(Path(os.path.realpath(d)) for d in directories):
        try:
            yield from sorted(p for p in directory.iterdir() if is_file(p))
        except FileNotFoundError:
            continue


def stands_on(image: Path, file: Path) -> bool:
    """Whether an image's header names the file as its backing file.

    A name in a form that only QEMU understands (``json:``, ``file:``) counts if it has the file's
    name in it.

    :raises OSError: one of them cannot be read.
    """
    name = backing_name(image)
    if ":" in name.partition("/")[0]:
        return file.name in name
    if not name:
        return False
    try:
        return (image.parent / name).samefile(file)  # an absolute name stays as it is
    except FileNotFoundError:
        return False


def backing_name(image: Path) -> str:
    """The name of an image's backing file, as its header has it; "" if it has none.

    Also "" for a file that is no qcow2 image.

    :raises OSError: the file cannot be read.
    """
    with open_regular(image) as file:
        offset, length, _ = _read_header(file)
        if not offset or length > _NAME_LIMIT:
            return ""
        file.seek(offset)
        return os.fsdecode(file.read(length))


def has_snapshots_inside(image: Path) -> bool:
    """Whether a qcow2 image has snapshots inside.

    :raises OSError: the file cannot be read.
    """
    with open_regular(image) as file:
        _, _, snapshots = _read_header(file)
    return snapshots > 0


def _read_header(file: BinaryIO) -> tuple[int, int, int]:
    """Offset and length of the backing file's name, and the number of snapshots inside.

    All 0 for a file that is no qcow2 image.
    """
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return (0, 0, 0)
    magic, _, offset, length, snapshots = _HEADER.unpack(header)
    return (offset, length, snapshots) if magic == _MAGIC else (0, 0, 0)
