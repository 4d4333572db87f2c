"""What fails or is refused leaves the guest running and nothing behind."""

import time

import pytest

from tests.lab.harness.guests import Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import (
    SNAPSHOTS,
    Before,
    create,
    disk_snapshots,
    forget,
    pyxlsnap,
    unchanged,
)

pytestmark = pytest.mark.usefixtures("tidy")


def wait_for_memory_file(guest: Guest, timeout: float = 180.0) -> None:
    """Wait until some memory has been written to a temporary file."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found = guest.dom0.run(f"find {SNAPSHOTS} -name '.*.tmp' -size +1M", check=False).out
        if found:
            return
    raise TimeoutError("no memory was written")


def test_a_disk_that_fails_in_the_window_is_undone(lab: Lab) -> None:
    """Somebody takes the name in the second disk while the memory is being saved."""
    guest = lab.guest("pvh")
    before = Before.of(guest)
    command = ["pyxlsnap", "snapshot-create", "pvh", "--live", "--name", "taken"]
    with lab.dom0.start(command) as running:
        running.end_input()
        wait_for_memory_file(guest)
        # Through libxl's monitor: the other one is ours while we work.
        take = "snapshot_blkdev_internal xvdb-qcow2 taken"
        lab.dom0.run(["xl", "qemu-monitor-command", "pvh", take])
        done = running.wait(240)
    assert done.rc == 1, done
    assert "taken" in done.err
    assert "everything is as before" in done.err
    # The first disk's is gone; what we did not make stays.
    assert disk_snapshots(guest) == {"xvda": [], "xvdb": ["taken"]}
    forget(guest)
    unchanged(guest, before)


REFUSED = [
    (["nobody"], 3, "'nobody'"),
    (["0"], 3, "domain 0"),
    (["pv", "--name", "12345"], 2, "'12345'"),
    (["pv", "/tmp/snap/none.cfg"], 2, "/tmp/snap/none.cfg"),
    (["pv", "/tmp/snap/key.cfg"], 2, "memory_paht"),
    (["pv", "/tmp/snap/disk.cfg"], 2, "xvdz"),
    (["pv", "/tmp/snap/exists.cfg"], 3, "/tmp/snap/there.save"),
    (["pv", "--name", "mine"], 3, "xvdb"),
    (["pv", "--live"], 3, "shadow paging"),
]


@pytest.mark.soak
def test_refused_before_anything_is_touched(lab: Lab) -> None:
    guest = lab.guest("pv")
    lab.dom0.run("mkdir -p /tmp/snap && echo precious > /tmp/snap/there.save")
    lab.dom0.write("/tmp/snap/key.cfg", 'memory_paht="/tmp/x"\n')
    lab.dom0.write("/tmp/snap/disk.cfg", "disks=[',,xvdz']\n")
    lab.dom0.write("/tmp/snap/exists.cfg", 'name="x"\nmemory_path="/tmp/snap/there.save"\n')
    guest.qmp("blockdev-snapshot-internal-sync", device="xvdb-qcow2", name="mine")
    before = Before.of(guest)
    for words, code, says in REFUSED:
        done = pyxlsnap(lab.dom0, "snapshot-create", *words)
        assert done.rc == code, (words, done)
        assert done.out == ""
        (line,) = done.err.splitlines()
        assert says in line
    unchanged(guest, before)
    assert lab.dom0.read("/tmp/snap/there.save") == b"precious\n"


def test_a_domain_that_has_shut_down_is_refused(fresh_lab: Lab) -> None:
    guest = fresh_lab.guest("pv")
    guest.assert_healthy()
    fresh_lab.dom0.run("pkill -STOP -f cfg/pv.cfg")  # xl's monitor would destroy it
    fresh_lab.dom0.run(["xl", "sysrq", "pv", "o"])
    end = time.monotonic() + 60
    while guest.state() != "---s--":
        assert time.monotonic() < end, guest.state()
    domid = guest.domid()
    done = pyxlsnap(fresh_lab.dom0, "snapshot-create", "pv")
    assert done.rc == 3, done
    (line,) = done.err.splitlines()
    assert "shut down (poweroff)" in line
    assert (guest.domid(), guest.state()) == (domid, "---s--")
    assert not fresh_lab.dom0.run(f"find {SNAPSHOTS}", check=False).out


@pytest.mark.soak  # test_rehearsal.py has other files that are damaged in `make test`
def test_a_damaged_memory_file_is_refused_before_the_domain_is_destroyed(lab: Lab) -> None:
    guest = lab.guest("pv")
    snapshot = create(guest, "--name", "whole")
    lab.dom0.run(f"truncate -s -4096 {snapshot['memory_path']}")
    before = Before.of(guest)
    done = pyxlsnap(lab.dom0, "snapshot-revert", "pv", snapshot["cfgfile"])
    assert done.rc == 3, done
    assert snapshot["memory_path"] in done.err
    unchanged(guest, before)


@pytest.mark.soak
def test_a_guest_without_pv_drivers_is_refused(spent_lab: Lab) -> None:
    """Its QEMU has the image open twice, as an IDE disk and as a PV disk."""
    guest = spent_lab.fresh("tiny", "tinyhvm")
    before = guest.assert_healthy()
    done = pyxlsnap(spent_lab.dom0, "snapshot-create", "tiny")
    assert done.rc == 3, done
    (line,) = done.err.splitlines()
    assert "hda: " in line
    assert "open twice" in line
    assert "load the PV drivers" in line
    assert guest.assert_healthy().n > before.n
