"""The commands of the guide that need a real Xen: a copy of a snapshot, used on another host.

The other host is this one, from which everything of the guest was removed.
"""

import pytest

from tests.guide import blocks
from tests.lab.harness.guests import Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import SLOW, SNAPSHOTS, check_images

pytestmark = pytest.mark.soak

FROZEN, COPIES = "/lab/guide", "/lab/backup"


def ours(text: str, guest: Guest) -> str:
    """What the guide says, of a guest of ours."""
    root, data = guest.disks["xvda"], guest.disks["xvdb"]
    for theirs, here in (
        ("srv/web1-data.qcow2", data.lstrip("/")),
        ("srv/web1.qcow2", root.lstrip("/")),
        ("srv/snap", FROZEN.lstrip("/")),
        ("/backup", COPIES),
        ("/etc/xen/web1.cfg", guest.config),
        ("<uuid>", guest.uuid),
        (" web1 ", f" {guest.name} "),
        ("xl destroy web1", f"xl destroy {guest.name}"),
    ):
        text = text.replace(theirs, here)
    return text


def run(guest: Guest, page: str, number: int) -> None:
    """Type a block of the guide, every command of which must work."""
    text = ours(blocks(page)[number].text, guest)
    guest.dom0.run(f"set -eu\n{text}", timeout=SLOW)


def remove(guest: Guest) -> None:
    """Leave nothing of a guest on this host but its config file and the copies."""
    paths = [*guest.disks.values(), FROZEN, f"{SNAPSHOTS}/{guest.uuid}"]
    guest.dom0.run(["rm", "-rf", *paths])


@pytest.mark.timeout(1200)
def test_a_snapshot_on_another_host(spent_lab: Lab) -> None:
    guest = spent_lab.guest("pvh")
    before = guest.assert_healthy()
    run(guest, "backups", 5)
    after = guest.assert_healthy()

    run(guest, "moving", 0)
    remove(guest)
    run(guest, "moving", 1)
    assert guest.assert_healthy(1).boot == before.boot
    assert before.n < guest.last().n

    guest.dom0.run(["xl", "destroy", guest.name])
    remove(guest)
    run(guest, "disaster-recovery", 2)
    assert guest.assert_healthy(1).boot == after.boot

    # Without the memory it boots, with what was on its disks.
    guest.dom0.run(["xl", "destroy", guest.name])
    guest.dom0.run(["rm", *guest.disks.values()])
    run(guest, "disaster-recovery", 3)
    guest.wait_advance(2, timeout=180)
    booted = guest.assert_healthy()
    assert booted.boot != after.boot
    assert booted.n > before.n
    guest.dom0.run(["xl", "destroy", guest.name])
    check_images(guest)
