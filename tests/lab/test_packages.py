"""The Debian packages, as an admin meets them: in a dom0 without a compiler, from a local folder.

`python -m release deb` tries upgrade, removal and purge without a Xen (release/trial.sh); here an
operation really is under way, with its guest suspended.
"""

import time

import pytest

from release import deb
from tests.lab.harness import cache, image, packages
from tests.lab.harness.dom0 import Dom0
from tests.lab.harness.faults import Case, run_case
from tests.lab.harness.guests import Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.packages import APT, FOLDER, NEWER, SLOW
from tests.lab.harness.reverts import check_back, goes_on, take
from tests.lab.harness.snapshots import SNAPSHOTS, disk_snapshots, pyxlsnap, revert
from tests.project import PROJECT, UNIT
from tests.readme import shell_lines

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        image.wanted().suite not in deb.SUITES, reason="no packages are made for this Debian"
    ),
]

# While the guest is suspended: a removal, which is refused, and an upgrade.
MEANWHILE = f"""
if {APT} remove python3-pyxlsnap >/tmp/removal 2>&1; then exit 1; fi
grep -q "operations are under way on the domains" /tmp/removal
{APT} install {NEWER}/*.deb >/tmp/upgrade 2>&1
"""


#: what an admin answers, and what the folder does not have
ANSWERS = b'APT::Get::Assume-Yes "true";\nAPT::Install-Recommends "false";\n'


def install(lab: Lab) -> Dom0:
    """Type in the folder of the packages what the README says, in a dom0 without a compiler."""
    dom0 = lab.dom0
    packages.deliver(dom0, cache.progress())
    packages.make_bare(dom0)
    dom0.write("/etc/apt/apt.conf.d/99lab", ANSWERS)
    (line,) = (line for line in shell_lines("Packages") if not line.startswith("make "))
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    begun = time.monotonic()
    dom0.run(line, cwd=FOLDER, env=quiet, timeout=SLOW)
    tell("to install the packages", begun)
    return dom0


def tell(what: str, begun: float) -> None:
    """Print how long something took, for whoever looks at the log."""
    print(f"{what}: {time.monotonic() - begun:.0f} s")


def revision(dom0: Dom0) -> str:
    """The last digit of the installed version: 1, and 2 after an upgrade."""
    return dom0.run(["dpkg-query", "-W", "-f", "${Version}", "python3-pyxlsnap"]).out[-1]


def snapshot_into(guest: Guest, name: str, **fault: str) -> Case:
    command = ["pyxlsnap", "snapshot-create", guest.name, "--name", name]
    return Case(command, guest.name, guest.log, "in suspend", **fault)


@pytest.mark.long
@pytest.mark.once
def test_installed_packages_take_a_snapshot_and_revert(spent_lab: Lab) -> None:
    dom0 = install(spent_lab)
    guest = spent_lab.guest("pvh")
    begun = time.monotonic()
    taken = take(guest, "--name", "first")
    tell("the first snapshot", begun)
    mark = goes_on(guest, taken)
    revert(guest, taken.cfgfile)
    check_back(guest, taken, mark)

    assert dom0.run(["systemctl", "is-enabled", UNIT.name]).out == "enabled\n"
    verified = dom0.run(["systemd-analyze", "verify", UNIT.name], check=False)
    assert (verified.rc, verified.out, verified.err) == (0, "", "")
    # The man pages open and completion completes; the same test runs where there is no Xen.
    for name in ("library", "command"):
        dom0.write(f"/tmp/{name}", (PROJECT / "debian" / "tests" / name).read_bytes(), 0o755)
        dom0.run([f"/tmp/{name}"], timeout=SLOW)


@pytest.mark.soak
def test_upgrade_and_removal_while_a_guest_is_suspended(spent_lab: Lab) -> None:
    dom0 = install(spent_lab)
    packages.revise(dom0)
    guest = spent_lab.guest("pvh")
    guest.assert_healthy()

    outcome = run_case(guest, snapshot_into(guest, "upgraded", meanwhile=MEANWHILE))
    assert outcome.rc == 0, outcome
    assert revision(dom0) == "2"
    guest.assert_healthy()
    assert disk_snapshots(guest) == {vdev: ["upgraded"] for vdev in guest.disks}
    taken = take(guest, "--name", "later")
    mark = goes_on(guest, taken)
    revert(guest, taken.cfgfile)
    check_back(guest, taken, mark)

    # All processes of an operation are killed. Its journal outlives a removal.
    journal = f"/var/lib/pyxlsnap/{guest.uuid}.journal"
    run_case(guest, snapshot_into(guest, "killed", who="all"))
    removed = dom0.run(f"{APT} remove python3-pyxlsnap 2>&1", timeout=SLOW)
    assert "pyxlsnap: unfinished operations are described in" in removed.out
    dom0.run(["test", "-s", journal])
    assert dom0.run("command -v pyxlsnap", check=False).rc == 1
    dom0.run(f"{APT} install {NEWER}/*.deb", timeout=SLOW)
    recovered = pyxlsnap(dom0, "snapshot-recover")
    assert recovered.rc == 0, recovered
    guest.assert_healthy()

    purged = dom0.run(f"{APT} purge pyxlsnap python3-pyxlsnap 2>&1", timeout=SLOW)
    assert f"pyxlsnap: left the snapshots in {SNAPSHOTS}" in purged.out
    dom0.run(["test", "-s", taken.cfgfile])
    dom0.run(["test", "!", "-e", "/var/lib/pyxlsnap"])
    guest.assert_healthy()
