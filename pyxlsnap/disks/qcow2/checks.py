"""The checks before an external snapshot of a qcow2 disk, and before going back to one.

They look, and change nothing. Each raises :class:`~pyxlsnap.Refused`.
"""

import os
from pathlib import Path

from pyxlsnap.disks.kept import refuse_long_kept
from pyxlsnap.disks.qcow2.backing import refuse_broken
from pyxlsnap.disks.qcow2.chain import Chain
from pyxlsnap.disks.qcow2.qemu import GuestQemu, checked_tags, image_info
from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.linux.files import hidden_name, refuse_existing
from pyxlsnap.linux.there import exists, is_file


def check_create(chain: Chain, qemu: GuestQemu, name: str) -> None:
    """:raises Refused: an external snapshot of the disk would not work."""
    vdev = chain.disk.vdev
    if not is_file(chain.active):
        raise Refused(
            f"{vdev}: {chain.active} is no regular file, and only a regular file can be frozen: "
            f"write ',,{vdev}' for an internal snapshot"
        )
    refuse_existing(chain.frozen)
    refuse_long_kept(chain.disk, chain.active, name)
    _refuse_not_utf8(chain)
    if tags := qemu.tags(vdev):
        raise Refused(
            f"{vdev}: {chain.active} has disk snapshots inside ({tags[0].name}, …), which an "
            f"external snapshot would put out of reach: write ',,{vdev}' for another internal "
            f"snapshot, or delete them first"
        )
    _refuse_other_backing_file(chain)
    _refuse_no_link(chain)


def _refuse_not_utf8(chain: Chain) -> None:
    """QMP carries only UTF-8; without this check that would be found out in the window."""
    try:
        f"{chain.overlay}{chain.frozen}".encode()
    except UnicodeEncodeError:
        raise Refused(
            f"{chain.disk.vdev}: {chain.active} is not UTF-8, and QEMU takes no other path: rename "
            f"it, or write ',,{chain.disk.vdev}' for an internal snapshot"
        ) from None


def _refuse_other_backing_file(chain: Chain) -> None:
    """QEMU looks for a relative backing file beside the file that names it.

    From the external path it must find the same backing file as from the disk's.
    """
    backing = image_info(chain.disk, str(chain.active)).get("backing-filename", "")
    if not backing or Path(backing).is_absolute() or ":" in backing.split("/")[0]:
        return
    here, there = chain.active.parent / backing, chain.frozen.parent / backing
    if not (exists(there) and there.samefile(here)):
        raise Refused(
            f"{chain.disk.vdev}: {chain.active} stands on {backing}, by a relative name that leads "
            f"elsewhere from {chain.frozen.parent}: choose an external path beside the disk"
        )


def _refuse_no_link(chain: Chain) -> None:
    """Make a link, and remove it: bind mounts refuse one where nothing else tells."""
    probe = hidden_name(chain.frozen, f".{os.urandom(8).hex()}.probe")
    try:
        os.link(chain.active, probe, follow_symlinks=False)
        probe.unlink()
    except OSError as e:
        raise Refused(
            f"{chain.disk.vdev}: {chain.frozen} cannot be a link to {chain.active} ({e.strerror}): "
            f"choose an external path on the same filesystem"
        ) from e


def check_revert(chain: Chain) -> None:
    """:raises Refused: the frozen file is not there, or no image; or more would be lost."""
    vdev = chain.disk.vdev
    if not is_file(chain.frozen):
        raise Refused(
            f"{vdev}: there is no file {chain.frozen}, the disk snapshot: without it the disk "
            f"cannot be reverted"
        )
    refuse_broken(chain.disk, chain.frozen)
    if inside := _snapshots_inside(chain):
        raise Refused(
            f"{vdev}: {chain.active} has disk snapshots inside that were taken since "
            f"({', '.join(inside)}); a revert replaces the file, and they would be lost: delete "
            f"them first (qemu-img snapshot -d)"
        )


def _snapshots_inside(chain: Chain) -> list[str]:
    """The disk snapshots in the file that a revert replaces.

    One that an interrupted revert kept counts, too: it may be the only copy of the disk.
    """
    try:
        tags = checked_tags(chain.disk)
    except DiskError:
        return []  # damaged, or not there: a good reason to go back
    return [tag.name for tag in tags]
