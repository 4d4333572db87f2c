"""Many reverts and clones through one warm process: nothing grows, each is correct."""

import pytest

from tests.lab.harness.cycles import Figures, assert_no_growth, run
from tests.lab.harness.guests import LOGS, Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.mixed import quicken_hotplug, write_cfg
from tests.lab.harness.snapshots import create

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

FROZEN = "/lab/disk/base"


def repeated(lab: Lab, guest: Guest, what: str, *words: str) -> list[str]:
    """Do it again and again; what was said to the changes at the end."""
    *figures, end = run(lab, guest, what, *words)
    for at in figures:
        print(_line(what, at))
    guest.assert_healthy()
    assert_no_growth(figures, "warm_fds", "warm_threads")
    assert figures[-1]["children"] == 1  # the warm process
    assert end["children"] == end["zombies"] == 0
    said: list[str] = end["refused"]
    return said


def _line(what: str, at: Figures) -> str:
    own = f"{at['fds']} descriptors, {at['threads']} threads, {at['rss_kib']} KiB"
    warm = f"{at['warm_fds']}, {at['warm_threads']}, {at['warm_rss_kib']} KiB"
    return f"{what} {at['cycle']}: {at[what]:.1f} s; {own}; the warm process: {warm}"


def test_fifty_reverts_through_one_warm_process(spent_lab: Lab) -> None:
    """The script sees that the memory goes back; the guest itself compares it with its disks."""
    guest = spent_lab.guest("pvh")
    guest.assert_healthy()
    moved, renamed = repeated(spent_lab, guest, "revert", next(iter(guest.disks.values())))
    assert moved
    assert "is called 'taken' now: use this name" in renamed


def test_fifty_clones_through_one_warm_process(spent_lab: Lab) -> None:
    """The same of a clone that is made anew, beside the guest that it was made from."""
    dom0, guest = spent_lab.dom0, spent_lab.guest("pvh")
    quicken_hotplug(dom0)
    guest.assert_healthy()
    disks = [f"{FROZEN}.{vdev},qcow2,{vdev}" for vdev in guest.disks]
    made = create(guest, write_cfg(guest, disks), "--name", "base")
    files = f"sha256sum {made['memory_path']} {FROZEN}.*"
    checksums = dom0.run(files).out
    frozen = f"{FROZEN}.{next(iter(guest.disks))}"
    log = f"{LOGS}/guest-again.log"
    for said in repeated(spent_lab, guest, "clone", made["cfgfile"], frozen, "again", log):
        assert "No such file" in said or "there is no file" in said, said
    assert dom0.run(files).out == checksums
