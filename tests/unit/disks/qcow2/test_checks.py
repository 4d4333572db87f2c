"""What the kernel does with a qcow2 file is for somebody else, and known before a revert."""

from pathlib import Path

import pytest

from pyxlsnap import paths
from pyxlsnap.disks.protocol import DiskTask
from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.errors import Refused
from pyxlsnap.model import Disk, DiskRequest
from tests.unit.support.qemu import qemu_img


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /sys without users of anything."""
    found = tmp_path / "sys"
    (found / "block").mkdir(parents=True)
    monkeypatch.setattr(paths, "SYS", found)
    return found


def strategy(disk: Disk, external: str = "") -> Qcow2:
    request = DiskRequest(disk.vdev, external, "qcow2" if external else "")
    return Qcow2([(disk, request)], DiskTask("snap"))


@pytest.mark.parametrize("external", [True, False])
def test_a_loop_device_over_the_disk_is_known_before_the_destroy(
    disks: list[Disk], tree: Path, tmp_path: Path, external: bool
) -> None:
    disk = disks[0]
    frozen = str(tmp_path / "frozen.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", frozen, "1M")
    if not external:
        qemu_img("snapshot", "-c", "snap", disk.target)
    reverting = strategy(disk, frozen if external else "")
    reverting.check_revert()
    loop = tree / "block/loop7/loop"
    loop.mkdir(parents=True)
    (loop / "backing_file").write_text(f"{disk.target}\n")
    with pytest.raises(Refused, match=rf"{disk.vdev}: .* is in use by loop7: detach that first"):
        reverting.check_revert()
