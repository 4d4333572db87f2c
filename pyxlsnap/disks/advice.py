"""What a user should know of disk snapshots that take long."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pyxlsnap.disks.abilities import AdvisingStrategy
from pyxlsnap.disks.protocol import DiskStrategy

_LONG_S = 2.0


def quicker(strategy: DiskStrategy) -> str:
    """A quicker way than the requested one, for a message; "" if none is known."""
    return strategy.quicker() if isinstance(strategy, AdvisingStrategy) else ""


def slow_disks(
    strategies: Sequence[DiskStrategy], hidden_s: Mapping[str, float] = MappingProxyType({})
) -> list[str]:
    """A warning for each strategy that takes long while there is a quicker way.

    :param hidden_s: by vdev, for how long a strategy can work without keeping the guest waiting.
    """
    found = []
    for strategy in strategies:
        seconds = strategy.expected_seconds()
        hidden = min((hidden_s.get(vdev, 0.0) for vdev in strategy.vdevs), default=0.0)
        if seconds - hidden > _LONG_S and (way := quicker(strategy)):
            found.append(
                f"{', '.join(strategy.vdevs)}: the disk snapshots are expected to take "
                f"{seconds:.0f} s, and the guest is suspended meanwhile: {way}"
            )
    return found
