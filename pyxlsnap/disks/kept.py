"""The disks as they were before a revert: kept until the domain is restored, then removed."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.linux.files import NAME_LIMIT, NO_LINKS, sync_directory
from pyxlsnap.linux.there import lexists
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


class KeptFiles:
    """The files that a revert keeps: a second name of each disk's file.

    Ours is what this revert made, or the run that it finishes. It is the file that was the disk:
    its inode is noted before anything is changed, and journalled. (Without the device: its number
    may be another after a reboot, and the second name is in the same directory.)
    """

    def __init__(self, task: DiskTask) -> None:
        self._name = task.name
        self._noted: dict[str, str] = {}
        self._of_killed = dict(task.finishes or {})

    def path(self, target: Path) -> Path:
        """See :func:`kept_path`."""
        return kept_path(target, self._name)

    def check(self, disk: Disk, target: Path) -> None:
        """Note which file will be kept. Changes nothing.

        :raises Refused: the name is too long, or a file has it that is not ours.
        :raises OSError: the disk's file is not there.
        """
        refuse_long_kept(disk, target, self._name)
        kept, key = self.path(target), kept_key(disk.vdev)
        found = _inode(kept)
        if found is None:
            self._noted[key] = str(target.stat().st_ino)
            return
        if found not in (self._noted.get(key), self._of_killed.get(key)):
            raise Refused(
                f"{disk.vdev}: {kept} exists, and a revert would keep the disk under this name: "
                f"move that file away (an earlier revert may have kept the disk there), or remove "
                f"it if nobody needs it"
            )
        self._noted[key] = found

    def state(self) -> dict[str, str]:
        """What the run needs that finishes this one."""
        return dict(self._noted)

    def present(self, disk: Disk, target: Path) -> Path:
        """Where the disk's file is: the run that this one finishes may have renamed it.

        :raises OSError: it cannot be looked for.
        """
        if lexists(target):
            return target
        kept = self.path(target)
        key = kept_key(disk.vdev)
        ours = self._noted.get(key) or self._of_killed.get(key)
        return kept if ours and _inode(kept) == ours else target

    def keep(self, disk: Disk, target: Path) -> None:
        """Give the disk's file its second name, durably.

        Where the filesystem has no hard links, that is the only name of the file then.

        :raises DiskError: the disk's file was replaced since :meth:`check`, or another file has
            taken the name.
        :raises OSError: the filesystem refuses it.
        """
        if kept_key(disk.vdev) not in self._noted:
            self.check(disk, target)
        kept, made = self.path(target), False
        if lexists(target) or not lexists(kept):
            made = _second_name(target, kept)
        if _inode(kept) == self._noted[kept_key(disk.vdev)]:
            return
        if made:
            _take_back(target, kept)
        what = f"{target} was replaced" if made else f"another program made {kept}"
        way = "" if made else "move that file away, then "
        raise DiskError(
            f"{what} while the revert was prepared: {way}run the command again", vdev=disk.vdev
        )

    def remove(self, disks: Iterable[tuple[Disk, Path]]) -> list[str]:
        """Remove the second names; returns what could not be removed, a line each.

        :param disks: each disk, and where its path really leads to.
        """
        left = []
        for disk, target in disks:
            kept, ours = self.path(target), self._noted or self._of_killed
            try:
                found = _inode(kept)
                if found is not None and found != ours.get(kept_key(disk.vdev)):
                    left.append(f"{kept}: this revert did not make that file")
                elif found is not None:
                    kept.unlink()
            except OSError as e:
                left.append(f"{kept} (the disk before the revert): {e.strerror}")
        return left


def kept_key(vdev: str) -> str:
    """The key of what a strategy's state says of the disk that a revert keeps."""
    return f"{vdev} kept"


def _second_name(target: Path, kept: Path) -> bool:
    """Give a file a second name, or rename it; returns whether the name was free."""
    try:
        os.link(target, kept, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as e:
        if e.errno not in NO_LINKS:
            raise
        if lexists(kept):
            return False
        os.rename(target, kept)
    sync_directory(kept.parent)
    return True


def _take_back(target: Path, kept: Path) -> None:
    if lexists(target):
        kept.unlink()
    else:
        os.rename(kept, target)


def _inode(path: Path) -> str | None:
    try:
        return str(path.lstat().st_ino)
    except FileNotFoundError:
        return None


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
