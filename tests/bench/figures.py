"""Figures of several rounds: their median, minimum and maximum."""

import statistics
from collections.abc import Iterable, Mapping

#: by what was measured, with its unit in the name: what one round has found
Round = Mapping[str, float]
#: "median", "min" and "max"
Spread = Mapping[str, float]
#: by what was measured
Spreads = Mapping[str, Spread]


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    known = list(values)
    return {"median": statistics.median(known), "min": min(known), "max": max(known)}


def spreads(rounds: Iterable[Round]) -> dict[str, dict[str, float]]:
    """Median, minimum and maximum of each figure, over the rounds that have it."""
    found: dict[str, list[float]] = {}
    for one in rounds:
        for key, value in one.items():
            found.setdefault(key, []).append(value)
    return {key: spread(values) for key, values in found.items()}
