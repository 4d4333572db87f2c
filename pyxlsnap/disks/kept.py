"""The disks as they were before a revert: kept until the domain is restored, then removed."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.errors import Refused
from pyxlsnap.linux.files import NAME_LIMIT
from pyxlsnap.model import KEPT_SUFFIX, Disk


def kept_path(target: Path, name: str) -> Path:
    """Where a revert to snapshot ``name`` keeps a disk's file: beside it."""
    return target.with_name(f"{target.name}.{name}{KEPT_SUFFIX}")


def refuse_long_kept(disk: Disk, target: Path, name: str) -> None:
    """Refuse a name that is too long to keep the disk's file under.

    Checked beforehand: a revert would find out after the domain is destroyed.

    :raises Refused: it is too long.
    """
    kept = kept_path(target, name).name
    if len(os.fsencode(kept)) >= NAME_LIMIT:  # RawFile adds a dot
        raise Refused(
            f"{disk.vdev}: a revert keeps {target} as {kept}, which is longer than a file's name "
            f"may be: choose a shorter name for the snapshot, or for the disk's file"
        )


def remove_kept_files(files: Iterable[Path]) -> list[str]:
    """Remove files that a revert kept; returns what could not be removed, a line each."""
    left = []
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as e:
            left.append(f"{file} (the disk before the revert): {e.strerror}")
    return left


def drop_kept(strategies: Sequence[DiskStrategy], domid: int) -> list[str]:
    """Have each strategy drop what it kept; returns a warning for each thing that is left.

    The domain is restored, as ``domid``: what is left is no failure of the revert.
    """
    warnings = []
    for strategy in strategies:
        try:
            left = [str(line) for line in strategy.finish_revert(domid)]
        except Exception as e:
            left = [f"what {strategy.kind} kept of {', '.join(strategy.vdevs)}: {e}"]
        warnings += [f"could not be removed: {line}" for line in left]
    return warnings
