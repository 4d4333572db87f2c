"""Reverts of a domain to which something has happened since; those that are refused or risky."""

from collections.abc import Callable

import pytest

from tests.lab.harness.external import take as take_external
from tests.lab.harness.guests import Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.reverts import Taken, check_back, goes_on, take
from tests.lab.harness.snapshots import Before, pyxlsnap, revert, run_script, unchanged

pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("tidy")]


def refused(guest: Guest, code: int, says: str, *words: str) -> None:
    """A revert that must be refused, in one line, with nothing touched."""
    before = Before.of(guest)
    done = pyxlsnap(guest.dom0, "snapshot-revert", *words)
    assert done.rc == code, done
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert says in line
    unchanged(guest, before)


def test_to_the_older_and_then_to_the_newer(lab: Lab) -> None:
    guest = lab.guest("pvh")
    older = take(guest, "--name", "older")
    guest.wait_advance(5)
    newer = take(guest, "--name", "newer")
    mark = goes_on(guest, newer)
    revert(guest, older.cfgfile)
    check_back(guest, older, mark)
    mark = guest.mark()
    revert(guest, newer.cfgfile)
    check_back(guest, newer, mark)


def test_twice_in_a_row(lab: Lab) -> None:
    guest = lab.guest("pvh")
    taken = take(guest, "--name", "again")
    for _ in range(2):
        mark = goes_on(guest, taken)
        revert(guest, taken.cfgfile)
        check_back(guest, taken, mark)


def test_a_domain_that_is_off(lab: Lab) -> None:
    guest = lab.guest("pvh")
    taken = take(guest, "--name", "off")
    for domain in (guest.name, guest.uuid):
        mark = goes_on(guest, taken)
        guest.destroy()
        done = pyxlsnap(lab.dom0, "snapshot-revert", domain, taken.cfgfile)
        assert done.rc == 0, done
        check_back(guest, taken, mark)


def test_a_domain_that_was_renamed(spent_lab: Lab) -> None:
    """By its present name or its uuid: it keeps that name. By the old one it is told."""
    guest = spent_lab.guest("pvh")
    taken = take(guest, "--name", "named")
    goes_on(guest, taken)
    spent_lab.dom0.run(["xl", "rename", "pvh", "renamed"])
    renamed = Guest(spent_lab.dom0, "renamed", "pvh")
    renamed.disks = guest.disks
    domid = renamed.domid()
    done = pyxlsnap(spent_lab.dom0, "snapshot-revert", "pvh", taken.cfgfile)
    assert done.rc == 3, done
    assert "'pvh' is called 'renamed' now: use this name" in done.err
    assert renamed.domid() == domid
    for domain in ("renamed", guest.uuid):
        done = pyxlsnap(spent_lab.dom0, "snapshot-revert", domain, taken.cfgfile)
        assert done.rc == 0, done
        check_back(renamed, taken, 0)  # a log of that name begins with the first revert
        assert not guest.exists()
        spent_lab.dom0.run(["truncate", "-s", "0", renamed.log])


def test_a_name_that_another_domain_has(spent_lab: Lab) -> None:
    """Never taken from it, except by destroying it: if it is that which is named, and forced."""
    guest, other = spent_lab.guest("pvh"), spent_lab.guest("pv")
    other.assert_healthy()
    taken = take(guest, "--name", "held")
    mark = goes_on(guest, taken)
    guest.destroy()
    spent_lab.dom0.run(["xl", "rename", "pv", "pvh"])
    now = Guest(spent_lab.dom0, "pvh", "pv")  # called so, but the log and the disks are pv's
    now.log, now.disks = other.log, other.disks
    for force in ([], ["--force"]):
        refused(now, 3, "holds pvh", guest.uuid, taken.cfgfile, *force)
    refused(now, 5, "another uuid", "pvh", taken.cfgfile)
    revert(guest, taken.cfgfile, "--force")
    check_back(guest, taken, mark)


def test_the_present_is_kept(spent_lab: Lab) -> None:
    """Its disks are frozen, too: in the files that the revert replaces they would be lost."""
    guest = spent_lab.guest("pvh")
    before = guest.assert_healthy()
    made = take_external(guest, "first", "--live")
    first = Taken(made["cfgfile"], made["memory_path"], before, guest.assert_healthy())
    mark = goes_on(guest, first)
    was = guest.last()
    kept = revert(guest, first.cfgfile, "--keep-current")["kept"]
    check_back(guest, first, mark)
    mark = guest.mark()
    revert(guest, kept)
    tick = guest.assert_healthy()
    assert guest.ticks_since(mark)[-1].n >= was.n
    assert tick.boot == before.boot


# Risky: each makes a snapshot to which a revert is risky, and says why it is.


def attach(guest: Guest) -> None:
    """One more disk; it is too small for the guest to use it."""
    path = f"/lab/disk/{guest.name}-c.qcow2"
    guest.dom0.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"])
    disk = f"format=qcow2,vdev=xvdc,access=rw,target={path}"
    guest.dom0.run(["xl", "block-attach", guest.name, disk])


def a_disk_added(guest: Guest) -> tuple[Taken, str]:
    taken = take(guest, "--name", "risky")
    attach(guest)
    return taken, "changed since: xvdc"


def a_disk_removed(guest: Guest) -> tuple[Taken, str]:
    attach(guest)
    taken = take(guest, "--name", "risky")
    guest.dom0.run(["xl", "block-detach", guest.name, "xvdc"])
    return taken, "changed since: xvdc"


def a_disk_not_in_it(guest: Guest) -> tuple[Taken, str]:
    attach(guest)
    guest.dom0.write("/tmp/snap/two.cfg", "name='risky'\ndisks=[',,xvda', ',,xvdb']\n")
    taken = take(guest, "/tmp/snap/two.cfg")
    return taken, "disks are not in the snapshot and may have changed since: xvdc"


def another_xen(guest: Guest, taken: Taken | None = None) -> tuple[Taken, str]:
    taken = taken or take(guest, "--name", "risky")
    patched = run_script(guest.dom0, "other_xen.py", taken.memory_path)
    assert patched.rc == 0, patched
    return taken, "the memory was saved on Xen 4.11"


def two_at_once(guest: Guest) -> tuple[Taken, str]:
    taken, disk = a_disk_not_in_it(guest)
    _, xen = another_xen(guest, taken)
    return taken, f"{disk}; {xen}"


RISKS = [a_disk_added, a_disk_removed, a_disk_not_in_it, another_xen, two_at_once]


@pytest.mark.parametrize("risk", RISKS, ids=lambda risk: risk.__name__)
def test_risky(spent_lab: Lab, risk: Callable[[Guest], tuple[Taken, str]]) -> None:
    guest = spent_lab.guest("pvh")
    taken, says = risk(guest)
    goes_on(guest, taken)
    refused(guest, 5, says, "pvh", taken.cfgfile)
    mark = guest.mark()
    done = pyxlsnap(spent_lab.dom0, "snapshot-revert", "pvh", taken.cfgfile, "--force")
    assert done.rc == 0, done
    assert all(reason in done.err for reason in says.split("; "))  # as warnings
    check_back(guest, taken, mark)
