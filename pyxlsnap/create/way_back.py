"""What is kept of a guest that cannot be resumed: memory file and disks are its only copy."""

import logging
from collections.abc import Iterable

from pyxlsnap import cfgfile
from pyxlsnap.create.files import SnapshotFiles
from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.errors import NeedsAttention, PyxlsnapError
from pyxlsnap.journal import CreateEntry, Journal, way_back_command
from pyxlsnap.model import SnapshotConfig

log = logging.getLogger(__name__)


def keep_everything(
    plan: CreatePlan, files: SnapshotFiles, entry: CreateEntry | None, failed: NeedsAttention
) -> NeedsAttention:
    """Keep what was made: the guest cannot be resumed.

    The journal stays: a recovery tries again to resume the guest, and a revert to the cfgfile that
    is written here ends it.

    :param entry: see :func:`keep`; ``None``: the memory is not complete, so nothing is published.
    :param failed: what happened, and what is left; its ``finish`` recovers.
    :returns: the error to raise.
    """
    left, recover = list(failed.left), failed.finish
    finish = recover
    if entry:
        try:
            left += keep(plan, files, entry)
            finish = way_back_command(entry)
        except (PyxlsnapError, OSError) as e:
            left.append(f"its memory is in {files.memory} ({e})")
    files.close()
    return NeedsAttention(
        f"{failed}; {'; '.join(left)}; nothing was deleted; `{recover}` tries again to resume the "
        f"guest",
        step=failed.step,
        left=left,
        finish=finish,
    )


def keep(plan: CreatePlan, files: SnapshotFiles, entry: CreateEntry) -> list[str]:
    """Publish the two files of a snapshot whose guest is suspended, and cannot be resumed.

    The journal knows first: a recovery would take the files for a whole snapshot else.

    :param entry: has the :attr:`~CreateEntry.way_back`. Without disk snapshots, the disks match the
        memory as long as the guest stays suspended: the cfgfile then names no disks, and a revert
        does not change them.
    :returns: which disk snapshots could not be finished, a line each.
    :raises PyxlsnapError, OSError: the journal or a file could not be written; the memory is in
        :attr:`SnapshotFiles.memory`.
    """
    Journal(entry.uuid).rewrite(entry)
    files.publish_memory()
    unfinished = finish(plan.strategies) if entry.has_disks else []
    files.publish_cfgfile(plan.places.cfgfile_text if entry.has_disks else _without_disks(plan))
    return unfinished


def finish(strategies: Iterable[DiskStrategy]) -> list[str]:
    """Finish disk snapshots as far as possible; returns the failures, a line each."""
    left = []
    for strategy in strategies:
        try:
            strategy.finish_create()
        except Exception as e:
            log.debug("a disk snapshot could not be finished", exc_info=e)
            left.append(f"a disk snapshot may not be durable: {e or type(e).__name__}")
    return left


def _without_disks(plan: CreatePlan) -> str:
    meta = plan.metadata
    memory = str(plan.memory_path)
    return cfgfile.render(SnapshotConfig(meta.name, meta.description, memory, disks=()))
