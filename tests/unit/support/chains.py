"""Chains of external qcow2 snapshots, of two disks in a real QEMU."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.model import Disk, DiskRequest
from tests.unit.support.qemu import DOMID, Qemu, qemu_img, whole

#: bytes from one pattern to the next
PLACE = 64 << 10


def take(strategy: Qcow2) -> Qcow2:
    """Take the disk snapshots of a strategy, from the checks to the end."""
    strategy.check_create(DOMID)
    strategy.prepare()
    strategy.create()
    strategy.finish_create()
    strategy.close()
    return strategy


@dataclass
class Chains:
    """Two disks in a QEMU, and a directory for what is frozen."""

    disks: list[Disk]
    qemu: Qemu
    frozen: Path

    def strategy(self, name: str, *, looks_in: tuple[Path, ...] = ()) -> Qcow2:
        requests = [
            (d, DiskRequest(d.vdev, str(self.frozen_file(d, name)), "qcow2")) for d in self.disks
        ]
        return Qcow2(requests, DiskTask(name, looks_in=looks_in))

    def frozen_file(self, disk: Disk, name: str) -> Path:
        return self.frozen / f"{disk.vdev}.{name}"

    def write(self, pattern: int) -> None:
        """As the guest would: at the beginning, and at a place that only this pattern has."""
        for disk in self.disks:
            self.qemu.write(disk.vdev, pattern)
            self.qemu.write(disk.vdev, pattern, pattern * PLACE)

    def take(self, name: str) -> Qcow2:
        return take(self.strategy(name))

    def revert(self, name: str) -> None:
        """With QEMU ended; the state before is not kept."""
        strategy = self.strategy(name)
        strategy.check_revert()
        strategy.revert()
        strategy.finish_revert(DOMID)

    def check(self, patterns: dict[str, int]) -> None:
        """Compare what is there: the last pattern of each snapshot, and of "" for the disks.

        A snapshot has all patterns before its own, too, each at the pattern's place.
        """
        for name, last in patterns.items():
            for disk in self.disks:
                path = str(self.frozen_file(disk, name)) if name else disk.target
                image = Disk(disk.vdev, path, "qcow2")
                qemu_img("check", "-q", path)
                places = whole(image)[::PLACE]
                assert places[: last + 1] == bytes([last, *range(1, last + 1)]), path
                assert not any(places[last + 1 :]), path


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a person does who pastes it."""
    return subprocess.run(command, shell=True, capture_output=True, text=True)
