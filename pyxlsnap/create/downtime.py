"""For how long a snapshot is expected to suspend a domain: the memory, and the disks beside it."""

from collections.abc import Sequence

from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.abilities import BesideStrategy
from pyxlsnap.disks.advice import quicker
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.errors import Refused

# Cautious estimates for real hardware: the last pass of a live save and the work after it, the rate
# at which a suspended domain's memory is written, and the resume.
_LAST_PASS_S = 0.3
_SAVED_KB_PER_S = 256 * 1024
_RESUME_S = 0.1
# What a strategy still does for its other disks, when it has taken a part of its snapshots.
_REST_S = 0.2


def memory_seconds(memory_kb: int, *, live: bool) -> float:
    """For how long the memory of a domain suspends it, if nothing was measured."""
    return _RESUME_S + (_LAST_PASS_S if live else memory_kb / _SAVED_KB_PER_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Downtime:
    """An estimate of how long a snapshot suspends a domain."""

    #: the domain's name
    domain: str
    live: bool
    #: for how long the memory suspends the domain, seconds
    memory_s: float
    #: that is the time of its last snapshots
    measured: bool
    strategies: Sequence[DiskStrategy]
    #: those at work beside the memory: see :func:`pyxlsnap.disks.registry.lanes`
    lanes: Sequence[Sequence[BesideStrategy]]
    #: the vdevs of the disks whose snapshots they take so
    beside: frozenset[str]

    @property
    def seconds(self) -> float:
        """The estimate."""
        return self._seconds(self.strategies)

    def _seconds(self, strategies: Sequence[DiskStrategy]) -> float:
        """The estimate if only these strategies are at work.

        What is done beside the memory takes no time of its own, as long as the memory takes longer.
        """
        lanes = [[s for s in lane if s in strategies] for lane in self.lanes]
        beside_s = [sum(s.expected_seconds() for s in lane) + _RESUME_S for lane in lanes if lane]
        return max([self.memory_s, *beside_s]) + sum(map(self._after, strategies))

    def _after(self, strategy: DiskStrategy) -> float:
        """How long a strategy works when the memory is complete, seconds."""
        if self.beside.issuperset(strategy.vdevs):
            return 0.0
        begun = any(strategy in lane for lane in self.lanes)
        return _REST_S if begun else strategy.expected_seconds()

    def refuse_longer(self, max_downtime: float) -> None:
        """:raises Refused: the domain is expected to be suspended for longer."""
        if self.seconds <= max_downtime:
            return
        disks = max(self.strategies, key=lambda s: s.expected_seconds(), default=None)
        slowest = disks.expected_seconds() if disks else 0.0
        others = [s for s in self.strategies if s is not disks]
        if not self.live and self._seconds(others) > max_downtime:
            way_out = "take a live snapshot (--live)"
        elif disks and slowest > _LAST_PASS_S:
            way_out = f"most of this time is for {', '.join(disks.vdevs)} ({disks.kind})"
            way_out += f"; {way}" if (way := quicker(disks)) else ""
        else:
            way_out = "no shorter time is possible: allow more"
        raise Refused(
            f"{self.domain} is expected to be suspended for about {self.seconds:.1f} s"
            f"{self._measured()}, and max_downtime allows {max_downtime:g} s: {way_out}"
        )

    def _measured(self) -> str:
        """Where the estimate comes from, if it may change by itself: a part of a sentence."""
        if not self.measured:
            return ""
        return f" (its last snapshots within a day needed {self.memory_s:.1f} s for memory)"
