"""The instrument itself: a guest whose memory and disks are of different moments says so."""

import pytest

from tests.lab.harness.guests import Guest, Tick
from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import check_images

ATTEMPTS = 3


def put_together(guest: Guest, name: str) -> Tick:
    """Memory and one disk go back, the other disk does not; a tick after that."""
    guest.assert_healthy()
    guest.dom0.run(["xl", "save", "pv", f"/lab/save/{name}"], timeout=120)
    for path in guest.disks.values():
        guest.dom0.run(["qemu-img", "snapshot", "-c", name, path])
    guest.dom0.run(["xl", "restore", f"/lab/save/{name}"], timeout=120)
    guest.assert_healthy(10)
    guest.dom0.run(["xl", "destroy", "pv"])
    guest.dom0.run(["qemu-img", "snapshot", "-a", name, guest.disks["xvda"]])
    check_images(guest)
    guest.dom0.run(["xl", "restore", f"/lab/save/{name}"], timeout=120)
    return guest.wait_advance(5)


@pytest.mark.soak
def test_a_disk_of_another_moment_is_noticed(spent_lab: Lab) -> None:
    """The revert that no test may pass.

    A guest that is saved just while it writes writes once more when it is restored, over the very
    sector that would tell: it would see it later, when it comes to what it wrote in between. So it
    has more than one try.
    """
    guest = spent_lab.guest("pv")
    for attempt in range(ATTEMPTS):
        mark = guest.mark()
        tick = put_together(guest, f"then{attempt}")
        if not tick.ok:
            break
    assert not tick.ok
    assert tick.mem_ok
    assert "BAD xvdb header" in guest.text_since(mark)
    assert "BAD xvda" not in guest.text_since(mark)
