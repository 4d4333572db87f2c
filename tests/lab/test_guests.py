"""The instrument itself: a guest whose memory and disks are of different moments says so."""

from .lab import Lab
from .snapshots import check_images


def test_a_disk_of_another_moment_is_noticed(lab: Lab) -> None:
    """Memory and one disk go back, the other disk does not: the revert that no test may pass."""
    guest = lab.guest("pv")
    guest.assert_healthy()
    lab.dom0.run(["xl", "save", "pv", "/lab/save/then"], timeout=120)
    for path in guest.disks.values():
        lab.dom0.run(["qemu-img", "snapshot", "-c", "then", path])
    lab.dom0.run(["xl", "restore", "/lab/save/then"], timeout=120)
    guest.assert_healthy(10)
    lab.dom0.run(["xl", "destroy", "pv"])
    lab.dom0.run(["qemu-img", "snapshot", "-a", "then", guest.disks["xvda"]])
    check_images(guest)
    mark = guest.mark()
    lab.dom0.run(["xl", "restore", "/lab/save/then"], timeout=120)
    tick = guest.wait_advance(5)
    assert not tick.ok
    assert tick.mem_ok
    assert "BAD xvdb header" in guest.text_since(mark)
    assert "BAD xvda" not in guest.text_since(mark)
