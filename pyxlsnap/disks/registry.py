"""Chooses the disk strategy for each disk, and makes the strategies of an operation."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from pyxlsnap.disks import plugins
from pyxlsnap.disks.abilities import BesideStrategy
from pyxlsnap.disks.copy import raw_file
from pyxlsnap.disks.copy.block_device import BlockCopy
from pyxlsnap.disks.copy.raw_file import RawFile
from pyxlsnap.disks.lvm.base import LvmDisks
from pyxlsnap.disks.lvm.commands import is_lvm, is_thin
from pyxlsnap.disks.lvm.thick import LvmThick
from pyxlsnap.disks.lvm.thin import LvmThin
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.disks.side_by_side import side_by_side
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import Refused
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.there import is_block_device, is_file
from pyxlsnap.model import Disk, DiskRequest

log = logging.getLogger(__name__)

#: makes a strategy for some disks
Factory = Callable[[Sequence[tuple[Disk, DiskRequest]], DiskTask], DiskStrategy]

# In the order in which they take snapshots; those of other packages come before all of them. QEMU's
# transaction, which is all or nothing, comes last.
KINDS = (LvmThin, LvmThick, RawFile, BlockCopy, Qcow2)
OURS = tuple(kind.kind for kind in KINDS)
_BY_NAME: dict[str, Factory] = {kind.kind: kind for kind in KINDS}


def choose(disk: Disk, request: DiskRequest, kind: str = "") -> Factory:
    """The strategy for one disk.

    :param kind: the strategy that took the disk's snapshot, if known.
    :raises Refused: the disk cannot be in a snapshot; the message says what would work.
    """
    if disk.left_out:
        raise Refused(f"{disk.vdev} is {disk.left_out} and cannot be in a snapshot: leave it out")
    if kind not in OURS and (theirs := plugins.find(disk)):
        return theirs
    if not disk.target.startswith("/"):
        raise Refused(
            f"{disk.vdev}: its path {disk.target} does not begin with /, so QEMU may take it for "
            f"something else than a file: only files and block devices of this host can be "
            f"snapshotted; leave the disk out of `disks`"
        )
    if disk.script or disk.backend_domain not in ("", "0", "Domain-0"):
        raise Refused(
            f"{disk.vdev} is served by a script or by another domain, and cannot be snapshotted "
            f"there: detach the disk, or leave it out of `disks`"
        )
    if disk.specification != "xen":
        raise Refused(
            f"{disk.vdev} is a {disk.specification} disk: only Xen's own disks can "
            f"be in a snapshot; leave it out of `disks`"
        )
    if disk.format == "qcow2":
        return Qcow2
    if disk.format != "raw":
        raise Refused(
            f"{disk.vdev} is {disk.format}: only qcow2 and raw disks can be snapshotted; convert "
            f"it (qemu-img convert -O qcow2), or leave it out of `disks`"
        )
    with refusing_os_errors():
        if is_lvm(disk.target):
            return LvmThin if is_thin(disk.target, vdev=disk.vdev) else LvmThick
    return BlockCopy if is_block_device(disk.target) else RawFile


def default_request(disk: Disk, name: str) -> DiskRequest:
    """The request for a disk that the user has not named: inside, or beside a raw file."""
    ours = plugins.find(disk) is None
    if ours and disk.format == "raw" and is_file(disk.target):
        return raw_file.default_request(disk, name)
    return DiskRequest(disk.vdev)


def strategies(
    disks: Sequence[tuple[Disk, DiskRequest]],
    task: DiskTask,
    recorded: Mapping[str, str] = MappingProxyType({}),
    *,
    trusted: bool = False,
) -> tuple[DiskStrategy, ...]:
    """One strategy object for each kind of storage among the disks.

    :param recorded: by vdev, the strategy that took the disk's snapshot.
    :param trusted: take that strategy, if it is ours, without a look at the disk: a guest may be
        suspended, and a look may take long (lvs).
    :raises Refused: see :func:`choose`; or another strategy handles a disk now.
    """
    known = _BY_NAME if trusted else {}
    chosen = [
        (known.get(kind := recorded.get(disk.vdev, "")) or choose(disk, r, kind), disk, r)
        for disk, r in disks
    ]
    kinds: list[Factory] = [*(kind for kind, _, _ in chosen if kind not in KINDS), *KINDS]
    groups = {kind: [(d, r) for k, d, r in chosen if k is kind] for kind in kinds}
    found = tuple(kind(group, task) for kind, group in groups.items() if group)
    for strategy in found:
        _refuse_kind_of_ours(strategy)
        for vdev in strategy.vdevs:
            if (was := recorded.get(vdev, strategy.kind)) != strategy.kind:
                moved = "move the disk back to that kind of storage"
                raise Refused(
                    f"{vdev}: the snapshot was taken by strategy {was!r}, but {strategy.kind!r} "
                    f"handles this disk now: "
                    f"{moved if was in OURS else f'install the strategy {was!r} again'}"
                )
    return found


def lanes(strategies: Iterable[DiskStrategy]) -> tuple[tuple[BesideStrategy, ...], ...]:
    """The strategies that take disk snapshots beside the memory, in groups.

    Groups can work side by side, the strategies of one group one after the other: all of other
    packages are one group, because they may share more than a disk, and so are ours of LVM.

    :param strategies: their :meth:`~DiskStrategy.check_create` was called.
    """
    groups: dict[object, list[BesideStrategy]] = {}
    for strategy in strategies:
        if isinstance(strategy, BesideStrategy) and strategy.beside():
            lvm = LvmDisks if isinstance(strategy, LvmDisks) else type(strategy)
            groups.setdefault(lvm if type(strategy) in KINDS else None, []).append(strategy)
    return tuple(map(tuple, groups.values()))


def _refuse_kind_of_ours(strategy: DiskStrategy) -> None:
    """A recovery or a revert finds a strategy by its kind, so other packages must not use ours."""
    if type(strategy) not in KINDS and strategy.kind in ("", *OURS):
        raise Refused(
            f"{', '.join(strategy.vdevs)}: an installed disk strategy has the kind "
            f"{strategy.kind!r}, which is empty or pyxlsnap's own: change its kind, or uninstall it"
        )


def revert_all(strategies: Iterable[DiskStrategy]) -> None:
    """Put all disks back: those of our own strategies side by side.

    :raises PyxlsnapError: the first failure; the others are notes on it.
    """
    found = list(strategies)
    for theirs in found:
        if type(theirs) not in KINDS:  # on one thread, one at a time
            theirs.revert()
    side_by_side([ours.revert for ours in found if type(ours) in KINDS])


def close_all(strategies: Iterable[DiskStrategy]) -> None:
    """Close all; a strategy that fails to is only logged, as the work is done."""
    for strategy in strategies:
        try:
            strategy.close()
        except Exception:
            log.exception("%s of %s", strategy.kind, ", ".join(strategy.vdevs))
