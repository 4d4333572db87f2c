"""Many reverts to one snapshot through one warm process: nothing grows, each is correct."""

import pytest

from tests.lab.harness.cycles import assert_no_growth, run
from tests.lab.harness.lab import Lab


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_fifty_reverts_through_one_warm_process(spent_lab: Lab) -> None:
    """The script sees that the memory goes back; the guest itself compares it with its disks."""
    guest = spent_lab.guest("pvh")
    guest.assert_healthy()
    *figures, end = run(spent_lab, guest, next(iter(guest.disks.values())))
    for at in figures:
        print(
            "revert {cycle}: {revert:.1f} s; {fds} descriptors, {threads} threads, {rss_kib} KiB; "
            "the warm process: {warm_fds}, {warm_threads}, {warm_rss_kib} KiB".format(**at)
        )
    guest.assert_healthy()
    assert_no_growth(figures, "warm_fds", "warm_threads")
    assert figures[-1]["children"] == 1  # the warm process
    moved, renamed = end["refused"]
    assert moved
    assert "is called 'taken' now: use this name" in renamed
    assert end["children"] == end["zombies"] == 0
