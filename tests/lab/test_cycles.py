"""One caller that takes snapshots and reverts to them again and again grows by nothing."""

import pytest

from tests.lab.harness.cycles import assert_no_growth, run
from tests.lab.harness.lab import Lab


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_caller_that_goes_on_and_on(spent_lab: Lab) -> None:
    guest = spent_lab.guest("pv")
    guest.assert_healthy()
    figures = run(spent_lab, guest)
    for at in figures:
        print(
            "cycle {cycle}: create {create:.1f} s, revert {revert:.1f} s; {fds} descriptors, "
            "{threads} threads, {children} children, {rss_kib} KiB; {processes} processes, "
            "{zombies} zombies, {xenstore} nodes in xenstore".format(**at)
        )
    guest.assert_healthy()
    assert_no_growth(figures)
    assert figures[-1]["children"] == 0
