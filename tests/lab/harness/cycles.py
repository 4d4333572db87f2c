"""One caller that does the same again and again: what it and the host have after each time."""

import json
from collections.abc import Sequence
from typing import Any

from tests.lab.harness.guests import Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import SCRIPTS

#: the cycles, and those after which nothing may grow any more
CYCLES, WARM = 50, 10
GROWTH_KIB = 1024

Figures = dict[str, Any]


def run(lab: Lab, guest: Guest, *more: str) -> list[Figures]:
    """What scripts/cycles.py says, cycle by cycle."""
    lab.dom0.write("/root/cycles.py", (SCRIPTS / "cycles.py").read_bytes())
    command = ["python3", "/root/cycles.py", guest.name, guest.log, str(CYCLES), *more]
    with lab.dom0.start(command) as running:
        running.end_input()
        figures = [json.loads(line) for line in running.lines(timeout=300)]
        done = running.wait()
    assert done.rc == 0, (figures[-1:], done.err)
    return figures


def assert_no_growth(figures: Sequence[Figures], *more: str) -> None:
    """After the first cycles nothing grows.

    :param more: more figures that stay as they are.
    """
    assert len(figures) == CYCLES
    warm, last = figures[WARM - 1], figures[-1]
    same = ("fds", "threads", "children", "files", "zombies", *more)
    assert {key: last[key] for key in same} == {key: warm[key] for key in same}
    assert last["zombies"] == 0
    for key in ("rss_kib", "warm_rss_kib"):
        assert last.get(key, 0) - warm.get(key, 0) <= GROWTH_KIB
    # What comes and goes by itself may be there just now; what stays would be there each time.
    for key in ("processes", "xenstore"):
        assert last[key] <= max(at[key] for at in figures[:WARM])
