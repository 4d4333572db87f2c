"""What fails, is refused or is killed leaves the guest running and nothing behind."""

import signal
import time

import pytest

from .guests import Guest
from .lab import Lab
from .snapshots import SNAPSHOTS, Before, create, disk_snapshots, forget, pyxlsnap, unchanged

pytestmark = pytest.mark.usefixtures("tidy")


def wait_for_memory_file(guest: Guest, timeout: float = 60.0) -> None:
    """Wait until some memory has been written to a temporary file."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found = guest.dom0.run(f"find {SNAPSHOTS} -name '.*.tmp' -size +1M", check=False).out
        if found:
            return
    raise TimeoutError("no memory was written")


def test_live_is_refused_for_pv_without_shadow_paging(lab: Lab) -> None:
    guest = lab.guest("pv")
    before = Before.of(guest)
    done = pyxlsnap(lab.dom0, "snapshot-create", "pv", "--live")
    assert done.rc == 3
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert "PV guest" in line
    assert "shadow paging" in line
    assert "without --live" in line
    unchanged(guest, before)


def test_a_disk_that_fails_in_the_window_is_undone(lab: Lab) -> None:
    """Somebody takes the name in the second disk while the memory is being saved."""
    guest = lab.guest("pvh")
    before = Before.of(guest)
    command = ["pyxlsnap", "snapshot-create", "pvh", "--live", "--name", "taken"]
    with lab.dom0.start(command) as running:
        running.end_input()
        wait_for_memory_file(guest)
        guest.qmp("blockdev-snapshot-internal-sync", device="xvdb-qcow2", name="theirs")
        guest.qmp("blockdev-snapshot-internal-sync", device="xvdb-qcow2", name="taken")
        done = running.wait(120)
    assert done.rc == 1, done
    assert "taken" in done.err
    assert "xvdb" in done.err
    assert "everything is as before" in done.err
    # The first disk's is gone; what we did not make stays.
    assert disk_snapshots(guest) == {"xvda": [], "xvdb": ["theirs", "taken"]}
    forget(guest)
    unchanged(guest, before)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nobody"], 3, "'nobody'"),
        (["0"], 3, "domain 0"),
        (["pv", "--name", "12345"], 2, "'12345'"),
        (["pv", "--name", "a/b"], 2, "'a/b'"),
        (["pv", "/tmp/snap/none.cfg"], 2, "/tmp/snap/none.cfg"),
        (["pv", "/tmp/snap/key.cfg"], 2, "memory_paht"),
        (["pv", "/tmp/snap/disk.cfg"], 2, "xvdz"),
        (["pv", "/tmp/snap/exists.cfg"], 3, "/tmp/snap/there.save"),
    ],
)
def test_refused_before_anything_is_touched(
    lab: Lab, words: list[str], code: int, says: str
) -> None:
    guest = lab.guest("pv")
    lab.dom0.run("mkdir -p /tmp/snap && echo precious > /tmp/snap/there.save")
    lab.dom0.write("/tmp/snap/key.cfg", 'memory_paht="/tmp/x"\n')
    lab.dom0.write("/tmp/snap/disk.cfg", "disks=[',,xvdz']\n")
    lab.dom0.write("/tmp/snap/exists.cfg", 'name="x"\nmemory_path="/tmp/snap/there.save"\n')
    before = Before.of(guest)
    done = pyxlsnap(lab.dom0, "snapshot-create", *words)
    assert done.rc == code, done
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert says in line
    unchanged(guest, before)
    assert lab.dom0.read("/tmp/snap/there.save") == b"precious\n"


def test_a_name_in_use_is_refused(lab: Lab) -> None:
    guest = lab.guest("pv")
    guest.qmp("blockdev-snapshot-internal-sync", device="xvdb-qcow2", name="mine")
    before = Before.of(guest)
    done = pyxlsnap(lab.dom0, "snapshot-create", "pv", "--name", "mine")
    assert done.rc == 3, done
    assert "xvdb" in done.err
    assert "mine" in done.err
    unchanged(guest, before)


def test_domains_that_do_not_run_are_refused(lab: Lab) -> None:
    guest = lab.fresh("other", "pv")
    try:
        lab.dom0.run(["xl", "pause", "other"])
        done = pyxlsnap(lab.dom0, "snapshot-create", "other")
        assert done.rc == 3, done
        assert "paused" in done.err
        lab.dom0.run(["xl", "unpause", "other"])
        lab.dom0.run("sed -i s/restart/preserve/ /lab/cfg/other.cfg")
        guest.assert_healthy()
    finally:
        guest.destroy()


def test_a_damaged_memory_file_is_refused_before_the_domain_is_destroyed(lab: Lab) -> None:
    guest = lab.guest("pv")
    snapshot = create(guest, "--name", "whole")
    lab.dom0.run(f"truncate -s -4096 {snapshot['memory_path']}")
    before = Before.of(guest)
    done = pyxlsnap(lab.dom0, "snapshot-revert", "pv", snapshot["cfgfile"])
    assert done.rc == 3, done
    assert snapshot["memory_path"] in done.err
    unchanged(guest, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_snapshot_is_rolled_back(lab: Lab, number: int) -> None:
    """SIGKILL of the caller: its worker sees that it is gone, and rolls back."""
    guest = lab.guest("pvh")
    before = Before.of(guest)
    with lab.dom0.start(["pyxlsnap", "snapshot-create", "pvh", "--live"]) as running:
        running.end_input()
        wait_for_memory_file(guest)
        running.kill(number)
        done = running.wait(60)
    assert done.rc == (128 + number if number != signal.SIGKILL else -signal.SIGKILL), done
    end = time.monotonic() + 60
    while lab.dom0.run("pgrep -f pyxlsnap.worker", check=False).rc == 0:
        assert time.monotonic() < end, "the worker is still there"
        time.sleep(0.5)
    unchanged(guest, before)


def test_a_worker_that_is_killed_is_recovered_from(lab: Lab) -> None:
    guest = lab.guest("pvh")
    before = Before.of(guest)
    with lab.dom0.start(["pyxlsnap", "snapshot-create", "pvh", "--live"]) as running:
        running.end_input()
        wait_for_memory_file(guest)
        lab.dom0.run("pkill -KILL -f pyxlsnap.worker")
        done = running.wait(120)
    assert done.rc == 1, done
    assert "killed by signal 9" in done.err
    assert "everything is as before" in done.err
    unchanged(guest, before)
