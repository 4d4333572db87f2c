"""Disks that dom0 itself uses: a revert is refused before the guest is touched."""

import pytest

from tests.lab.harness import storage
from tests.lab.harness.guests import Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.mixed import attach, words, write_cfg
from tests.lab.harness.reverts import check_back, goes_on, take
from tests.lab.harness.snapshots import Before, pyxlsnap, revert, unchanged
from tests.lab.harness.support import Cell

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


def assert_refused(guest: Guest, cfgfile: str, *says: str) -> None:
    before = Before.of(guest)
    done = pyxlsnap(guest.dom0, "snapshot-revert", guest.name, cfgfile)
    assert done.rc == 3, done
    (line,) = done.err.splitlines()
    assert all(word in line for word in says), line
    unchanged(guest, before)


def test_a_disk_that_dom0_uses_is_not_reverted(spent_lab: Lab) -> None:
    guest = spent_lab.guest("pv")
    raw, thin, plain = storage.raw("pv"), storage.thin("pv"), storage.plain("pv")
    attach(guest, {"xvdc": raw, "xvdd": thin, "xvde": storage.thick("pv"), "xvdf": plain})
    taken = take(guest, *words(guest, Cell("pv", live=False, external=True), "rival"))
    mark = goes_on(guest, taken)
    run = guest.dom0.run

    device = run("losetup -f --show " + raw).out.strip()
    assert_refused(guest, taken.cfgfile, "xvdc", raw, device.removeprefix("/dev/"), "losetup -d")
    run(f"losetup -d {device}")

    size = f"$(blockdev --getsz {thin})"
    run(f"echo 0 {size} linear {thin} 0 | dmsetup create rival")
    assert_refused(guest, taken.cfgfile, "xvdd", thin, "dm-", "dmsetup remove")
    run("dmsetup remove rival")

    # (The reader ends by itself.)
    run(f"sleep 60 <{plain} >/dev/null 2>&1 &")
    assert_refused(guest, taken.cfgfile, "xvdf", plain, "sleep (pid ")
    run("sleep 60")

    revert(guest, taken.cfgfile)
    check_back(guest, taken, mark)


def test_what_serves_a_disk_is_not_its_rival(spent_lab: Lab) -> None:
    """The kernel names the thread of qemu-nbd that serves the device."""
    guest = spent_lab.guest("pv")
    image = "/lab/nbd.qcow2"
    guest.dom0.run(f"modprobe nbd && qemu-img create -q -f qcow2 {image} {storage.SIZE}")
    guest.dom0.run(f"qemu-nbd -c /dev/nbd0 {image}")
    attach(guest, {"xvdg": "/dev/nbd0"})
    cfg = write_cfg(guest, [",,xvda", ",,xvdb", "/lab/disk/nbd.copy,raw,xvdg"])
    taken = take(guest, cfg, "--name", "nbd")
    mark = goes_on(guest, taken)
    revert(guest, taken.cfgfile)
    check_back(guest, taken, mark)
