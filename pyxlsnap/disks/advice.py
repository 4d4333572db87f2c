"""What a user should know of disk snapshots that take long."""

from collections.abc import Sequence

from pyxlsnap.disks.abilities import AdvisingStrategy
from pyxlsnap.disks.protocol import DiskStrategy

_LONG_S = 2.0


def quicker(strategy: DiskStrategy) -> str:
    """A quicker way than the requested one, for a message; "" if none is known."""
    return strategy.quicker() if isinstance(strategy, AdvisingStrategy) else ""


def slow_disks(strategies: Sequence[DiskStrategy]) -> list[str]:
    """A warning for each strategy that takes long while there is a quicker way."""
    slow = [s for s in strategies if s.expected_seconds() > _LONG_S and quicker(s)]
    return [
        f"{', '.join(s.vdevs)}: the disk snapshots are expected to take "
        f"{s.expected_seconds():.0f} s, and the guest is suspended meanwhile: {quicker(s)}"
        for s in slow
    ]
