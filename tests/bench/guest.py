"""The guests of the bench: those of the lab, with a memory, disks and a load of their own."""

from collections.abc import Iterator
from itertools import pairwise

from tests.bench.cells import Cell
from tests.lab.harness.dom0 import Dom0
from tests.lab.harness.guests import DISK_SIZE, DISKS, KERNEL_WORDS, Guest
from tests.lab.harness.storage import GROUP, POOL

NAME = "bench"
# The pool of the lab's volumes is small; the guest needs 5 MiB.
VOLUME_SIZE = "8M"


class BenchGuest(Guest):
    """The guest of a cell."""

    def __init__(self, dom0: Dom0, cell: Cell) -> None:
        super().__init__(dom0, NAME, cell.kind)
        self.cell = cell
        letters = "abcdefgh"[: cell.disks]
        place = f"/dev/{GROUP}/{NAME}-{{}}" if cell.lvm else f"{DISKS}/{NAME}-{{}}.qcow2"
        self.disks = {f"xvd{letter}": place.format(letter) for letter in letters}

    @property
    def names(self) -> list[str]:
        """The disks as the commands that revert them name them: files, or group/volume."""
        return [path.removeprefix("/dev/") for path in self.disks.values()]

    def create(self) -> None:
        """Start it on new disks; its log begins anew."""
        self.dom0.run(["rm", "-f", self.log])
        self.make_disks()
        self.dom0.write(self.config, self.config_text())
        self.start()

    def make_disks(self) -> None:
        for path in self.disks.values():
            if self.cell.lvm:
                name = path.rpartition("/")[2]
                thin = ["lvcreate", "-q", "-V", VOLUME_SIZE, "-T", f"{GROUP}/{POOL}", "-n", name]
                self.dom0.run(thin)
            else:
                # New files: the QEMU of the guest before may not have ended yet.
                self.dom0.run(f"rm -f {path}*; {'; '.join(self._images(path))}")

    def _images(self, path: str) -> Iterator[str]:
        """The commands that make an image, and the files that it stands on."""
        files = [*(f"{path}.{n}" for n in range(self.cell.chain)), path]
        yield f"qemu-img create -q -f qcow2 {files[0]} {DISK_SIZE}"
        for below, file in pairwise(files):
            yield f"qemu-img create -q -f qcow2 -b {below} -F qcow2 {file}"

    def config_text(self) -> str:
        """The lab's, and lines that change it: of several lines for one key xl takes the last."""
        cell = self.cell
        format_ = "raw" if cell.lvm else "qcow2"
        disks = ", ".join(
            f'"format={format_},vdev={vdev},access=rw,target={path}"'
            for vdev, path in self.disks.items()
        )
        load = f"disks={cell.disks} filled={cell.filled_mib} dirty={cell.dirty_kib}"
        own = (
            f"disk = [ {disks} ]",
            f"memory = {cell.memory_mib}",
            f"vcpus = {cell.vcpus}",
            f'extra = "{KERNEL_WORDS} {load}"',
        )
        return "\n".join((super().config_text(), *own)) + "\n"
