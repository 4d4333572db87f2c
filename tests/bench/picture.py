"""The picture of "How fast": for how long a guest is suspended, ours beside the others'."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from tests.bench.measure import Way
from tests.bench.report import SAVES
from tests.bench.targets import Bench, Figures

#: marker and colour of each way, and its place in the row; the colours differ for colour-blind
#: eyes, too
LOOKS: Final = {
    Way.XL_SAVE: ("s", "#d55e00", -0.22),
    Way.BARE_STOPPED: ("v", "#888888", 0.0),
    Way.STOPPED: ("o", "#0072b2", 0.22),
    Way.BARE_LIVE: ("^", "#888888", -0.11),
    Way.LIVE: ("D", "#009e73", 0.11),
}


def draw(bench: Bench, path: Path) -> None:
    """Draw a line for each guest: the median of each way, and from minimum to maximum."""
    mpl.rcParams["svg.hashsalt"] = "pyxlsnap"  # the same figures make the same file
    cells = {
        n: c for n, c in bench["lab"].items() if any(way in c.get("ways", {}) for way in SAVES)
    }
    figure = Figure(figsize=(9, 1.3 + 0.45 * len(cells)), layout="constrained")
    axes: Any = figure.subplots()
    for way in SAVES:
        _draw_way(axes, way, cells)
    axes.set_yticks(range(len(cells)), [cell["what"] for cell in cells.values()])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("seconds suspended, in the emulated lab (logarithmic scale)")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _draw_way(axes: Any, way: Way, cells: Mapping[str, Any]) -> None:
    marker, colour, place = LOOKS[way]
    spreads = [Figures(cell).spread(way, "suspended_s") for cell in cells.values()]
    found = [(row, spread) for row, spread in enumerate(spreads) if spread]
    middles = [spread["median"] for _, spread in found]
    below = [spread["median"] - spread["min"] for _, spread in found]
    above = [spread["max"] - spread["median"] for _, spread in found]
    rows = [row + place for row, _ in found]
    axes.errorbar(
        middles,
        rows,
        xerr=[below, above],
        fmt=marker,
        color=colour,
        capsize=3,
        markersize=5,
        label=str(way),
    )
