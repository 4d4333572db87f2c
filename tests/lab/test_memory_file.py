"""The memory file as the stream writer makes it, on every kind of guest: xl restores it.

That ``snapshot-revert`` takes it, test_create_revert.py and others tell.
"""

import pytest

from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import create, forget, goes_back

MIB = 1 << 20
CELLS = [("pv", False), ("pvh", False), ("pvh", True), ("hvm", False), ("hvm", True)]

pytestmark = [pytest.mark.usefixtures("tidy"), pytest.mark.soak]


@pytest.mark.parametrize(("kind", "live"), CELLS)
def test_xl_restores_the_memory_file(lab: Lab, kind: str, live: bool) -> None:
    guest = lab.guest(kind)
    guest.assert_healthy()
    snapshot = create(guest, "--name", "for-xl", *(["--live"] if live else []))
    later, mark = guest.wait_advance(10), guest.mark()
    lab.dom0.run(["xl", "destroy", kind])
    for path in guest.disks.values():
        lab.dom0.run(["qemu-img", "snapshot", "-a", "for-xl", path])
    lab.dom0.run(["xl", "restore", snapshot["memory_path"]], timeout=240)
    goes_back(guest, mark, later)


@pytest.mark.parametrize("kind", ["pv", "pvh", "hvm"])
def test_the_file_is_no_larger_than_that_of_xl(lab: Lab, kind: str) -> None:
    guest = lab.guest(kind)
    lab.dom0.run("mkdir -p /tmp/snap")
    lab.dom0.run(["xl", "save", "-c", kind, "/tmp/snap/by-xl"], timeout=240)
    guest.wait_advance()
    size, blocks = sizes(lab, "/tmp/snap/by-xl")
    for live in (False, True) if kind != "pv" else (False,):
        snapshot = create(guest, "--name", "sized", *(["--live"] if live else []))
        ours, on_disk = sizes(lab, snapshot["memory_path"])
        print(f"{kind} live={live}: {ours} bytes, {on_disk} on disk; xl: {size}, {blocks}")
        assert ours <= size * 1.002 + MIB
        assert on_disk < blocks
        lab.dom0.run(["rm", snapshot["memory_path"], snapshot["cfgfile"]])
        forget(guest, "sized")


def sizes(lab: Lab, path: str) -> tuple[int, int]:
    """Size of a file, and the space that it takes on the disk, in bytes."""
    size, blocks = lab.dom0.run(["stat", "-c", "%s %b", path]).out.split()
    return int(size), int(blocks) * 512
