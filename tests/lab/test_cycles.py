"""One caller that takes snapshots and reverts to them again and again grows by nothing."""

import json
from typing import Any

import pytest

from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import SCRIPTS

CYCLES, WARM = 50, 10
GROWTH_KIB = 1024


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_caller_that_goes_on_and_on(spent_lab: Lab) -> None:
    guest = spent_lab.guest("pv")
    guest.assert_healthy()
    figures = run(spent_lab, CYCLES)
    for at in figures:
        print(
            "cycle {cycle}: create {create:.1f} s, revert {revert:.1f} s; {fds} descriptors, "
            "{threads} threads, {children} children, {rss_kib} KiB; {processes} processes, "
            "{zombies} zombies, {xenstore} nodes in xenstore".format(**at)
        )
    guest.assert_healthy()
    assert len(figures) == CYCLES
    warm, last = figures[WARM - 1], figures[-1]
    same = ("fds", "threads", "children", "files", "zombies")
    assert {key: last[key] for key in same} == {key: warm[key] for key in same}
    assert last["children"] == last["zombies"] == 0
    assert last["rss_kib"] - warm["rss_kib"] <= GROWTH_KIB
    # What comes and goes by itself may be there just now; what stays would be there each time.
    assert last["processes"] <= max(at["processes"] for at in figures[:WARM])
    assert last["xenstore"] <= max(at["xenstore"] for at in figures[:WARM])


def run(lab: Lab, cycles: int) -> list[dict[str, Any]]:
    """What scripts/cycles.py says, cycle by cycle."""
    guest = lab.guest("pv")
    lab.dom0.write("/root/cycles.py", (SCRIPTS / "cycles.py").read_bytes())
    command = ["python3", "/root/cycles.py", guest.name, guest.log, str(cycles)]
    with lab.dom0.start(command) as running:
        running.end_input()
        figures = [json.loads(line) for line in running.lines(timeout=300)]
        done = running.wait()
    assert done.rc == 0, (figures[-1:], done.err)
    return figures
