"""What a revert makes ready while the domain still runs: then the domain is off for a shorter time.

The memory file is read ahead, the disk strategies make what they can make beforehand, and the
process that will watch the domain is started. All of it can be taken back: :func:`take_back` does
that for a revert that was killed, too.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

from pyxlsnap.disks.abilities import PreparingStrategy
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.disks.registry import close_all, strategies
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import NeedsAttention
from pyxlsnap.guest.saved import read_memory_ahead
from pyxlsnap.journal import RevertEntry
from pyxlsnap.monitor.launch import PreparedWatch
from pyxlsnap.request import Callbacks
from pyxlsnap.revert.plan import RevertPlan

log = logging.getLogger(__name__)


class Ready:
    """What one run of a plan has made ready. To be closed."""

    def __init__(self, plan: RevertPlan, callbacks: Callbacks) -> None:
        self._plan = plan
        self.watch = PreparedWatch(callbacks)

    def make(self, check: Callable[[], None]) -> None:
        """Make all ready.

        :param check: called often; an exception from it ends the work.
        :raises PyxlsnapError: a disk could not be prepared, or the memory file cannot be read.
        """
        self.watch.prepare(self._plan.config.name, self._plan.config.uuid)
        for strategy in self._plan.strategies:
            if isinstance(strategy, PreparingStrategy):
                strategy.prepare_revert(check)
        read_memory_ahead(self._plan.memory_path, check)

    def undo(self) -> list[str]:
        """Take all back; returns what could not be, a line each."""
        self.close()
        return _undo(self._plan.strategies)

    def close(self) -> None:
        """Let the waiting process end, if its watch has not begun. Idempotent."""
        self.watch.close()


def take_back(entry: RevertEntry) -> list[str]:
    """Take back what a revert made ready that was killed before it destroyed the domain.

    :returns: what could not be, a line each.
    """
    if not entry.prepares:
        return []
    chosen = list(zip(entry.devices, entry.disks, strict=True))
    try:
        found = strategies(chosen, DiskTask(entry.name, prepared=entry.disk_state), entry.kinds)
    except Exception as e:
        return [f"what the revert to {entry.name} had prepared may be left: {e}"]
    try:
        return _undo(found)
    finally:
        close_all(found)


def not_taken_back(
    what: str, domain: str, uuid: str, step: str, left: Sequence[str]
) -> NeedsAttention:
    """Make (not raise) the error of a revert that has changed nothing, but has left something.

    The journal stays, so that a recovery can remove what is left.

    :param what: what has happened.
    """
    finish = f"pyxlsnap snapshot-recover {uuid}"
    return NeedsAttention(
        f"{what}; {'; '.join(left)}; {domain} is as before; to remove that, run `{finish}`",
        step=step,
        left=left,
        finish=finish,
    )


def _undo(strategies: Iterable[DiskStrategy]) -> list[str]:
    left = []
    for strategy in strategies:
        if not isinstance(strategy, PreparingStrategy):
            continue
        try:
            strategy.undo_prepared()
        except Exception as e:
            log.debug("%s", strategy.kind, exc_info=e)
            disks = ", ".join(strategy.vdevs)
            left.append(f"what the revert had prepared for {disks} could not be removed: {e}")
    return left
