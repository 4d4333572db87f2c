"""The command that a person deletes a frozen file with. It checks what it needs, then changes.

The command is one line for a POSIX shell. It stops, and changes nothing, if

- a process has the disk's file open: the domain is not off;
- the disk's file does not stand directly on the frozen file: a later snapshot does;
- another image in the directories of the two files stands on the frozen file, too;
- the disk's file has snapshots inside: qemu-img rebase would take their data away.
"""

import json
import re
from pathlib import Path

from pyxlsnap.disks.qcow2.qemu import Chain
from pyxlsnap.errors import DiskError
from pyxlsnap.model import Disk
from pyxlsnap.text import quote

_CHECKS = (
    """stop() { echo "stopped, nothing was changed: $1" >&2; exit 1; }""",
    """info() { qemu-img info -U -f qcow2 --output=json "$1" 2>/dev/null; }""",
    """on() { info "$1" | grep -qF "$b"; }""",
    # (The list of processes is made before find starts, as find itself opens the file. Without a
    # depth, find would walk through each directory that a process has open.)
    "set -- /proc/[0-9]*/fd",
    """find -L "$@" -maxdepth 1 -samefile "$d" 2>/dev/null | grep -q . && stop "$d is in use\"""",
    """on "$d" || stop "$d does not stand on $f\"""",
    """info "$d" | grep -q '"snapshots": \\[' && stop "$d has snapshots inside\"""",
)
_OTHERS = """[ "$i" -ef "$d" ] || ! on "$i" || stop "$i stands on $f, too\""""


def way_to_delete(disk: Disk, active: Path, frozen: Path, chain: Chain) -> str:
    """How a person takes the frozen file out of the chain, and deletes it.

    :param chain: of the frozen file.
    :raises DiskError: qemu-img does not tell what the frozen file stands on.
    """
    under, form = below(disk, frozen, chain)
    to = f"-b {quote(under)} -F {quote(form)}" if under else "-b ''"
    directories = list(dict.fromkeys(quote(str(path.parent)) for path in (frozen, active)))
    files = " ".join(f"{directory}/* {directory}/.[!.]*" for directory in directories)
    backing = quote(f'"full-backing-filename": {_as_qemu_writes(str(frozen))}')
    words = (
        *(f"d={quote(str(active))}", f"f={quote(str(frozen))}", f"b={backing}"),
        *_CHECKS,
        f"for i in {files}; do {_OTHERS}; done",
        f'qemu-img rebase -f qcow2 {to} "$d" && rm "$f"',
    )
    return (
        f"if no image outside {' and '.join(directories)} stands on the file; domain off: "
        f"({'; '.join(words)})"
    )


def _as_qemu_writes(text: str) -> str:
    """A text in QEMU's JSON, whose escapes are in upper case."""
    return re.sub(r"\\\\|\\u[0-9a-f]{4}", lambda e: _upper(e[0]), json.dumps(text))


def _upper(escape: str) -> str:
    return f"{escape[:2]}{escape[2:].upper()}"


def below(disk: Disk, image: Path, chain: Chain) -> tuple[str, str]:
    """What an image stands on, and the format of that; two empty texts if it stands on nothing.

    The format is always known, even if the image does not name it: qemu-img then takes no backing
    file without it.

    :param chain: what :func:`~pyxlsnap.disks.qcow2.qemu.image_chain` returned for the image.
    :raises DiskError: qemu-img does not tell what the image stands on.
    """
    under = chain[0].get("full-backing-filename", "")
    if not under:
        return "", ""
    if len(chain) < 2:
        raise DiskError(f"qemu-img does not tell what {image} stands on", vdev=disk.vdev)
    return str(under), str(chain[0].get("backing-filename-format") or chain[1]["format"])
