"""qcow2 with the snapshot in a file of its own: the frozen-base chain.

The path in the cfgfile (the external path) becomes the FROZEN state. The running disk keeps its own
path, because libxl keeps that path in its store and would reboot the guest from it; from then on
the path leads to a new overlay, which stands on the frozen file. Two traps, both seen as silent
corruption on a real Xen (xen-lab.md, E1), dictate the order and the names:

- At the switch QEMU reopens the old file BY ITS NAME. So QEMU switches to the overlay under a name
  that no file has had before, and only after that the overlay is renamed over the disk's path.
- Between switch and rename a guest that runs would write to a file that its next boot does not
  find. So the guest must not be resumed in between: :meth:`External.settle` finishes the rename.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyxlsnap.disks.failures import os_errors
from pyxlsnap.disks.in_use import wait_until_unused
from pyxlsnap.disks.kept import KeptFiles
from pyxlsnap.disks.protocol import DiskTask
from pyxlsnap.disks.qcow2 import checks
from pyxlsnap.disks.qcow2.chain import Chain
from pyxlsnap.disks.qcow2.qemu import GuestQemu
from pyxlsnap.disks.undo import Undo
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.results import Artefact


class External:
    """The disks of an operation with external snapshots; a part of :mod:`.strategy`."""

    def __init__(self, disks: Sequence[tuple[Disk, DiskRequest]], task: DiskTask) -> None:
        self.disks = tuple(disk for disk, _ in disks)
        self._name = task.name
        self._kept = KeptFiles(task)
        self._chains = [Chain.of(disk, request) for disk, request in disks]

    def state(self) -> dict[str, str]:
        """The overlays' names, which are new each time; and the files that a revert keeps."""
        overlays = {f"{c.disk.vdev} overlay": str(c.overlay) for c in self._chains}
        return overlays | self._kept.state()

    def adopt(self, state: Mapping[str, str]) -> None:
        """Use the overlays' names of another process."""
        for chain in self._chains:
            chain.overlay = Path(state[f"{chain.disk.vdev} overlay"])

    # create

    def check(self, qemu: GuestQemu) -> None:
        """:raises Refused: an external snapshot of a disk would not work."""
        for chain in self._chains:
            checks.check_create(chain, qemu, self._name)

    def prepare(self, qemu: GuestQemu) -> None:
        """Make the overlays, and the second names of the files that are to be frozen."""
        for chain in self._chains:
            chain.prepare(qemu.image(chain.disk.vdev)["virtual-size"])

    def actions(self, qemu: GuestQemu) -> list[dict[str, Any]]:
        """The actions of a QMP transaction."""
        return [
            {
                "type": "blockdev-snapshot-sync",
                "data": {
                    "node-name": qemu.node(chain.disk.vdev),
                    "snapshot-file": str(chain.overlay),
                    "snapshot-node-name": chain.node,
                    "format": "qcow2",
                    "mode": "existing",
                },
            }
            for chain in self._chains
        ]

    def switched(self) -> None:
        """QEMU writes to the overlays now: give them the disks' names.

        :raises DiskError: a rename failed. The guest must not run before :meth:`settle` has worked.
        """
        for chain in self._chains:
            chain.take_name()

    def protect(self) -> None:
        """Make the frozen files read-only: writing to one damages the disk."""
        for chain in self._chains:
            chain.protect()

    def settle(self) -> None:
        """See :meth:`pyxlsnap.disks.protocol.DiskStrategy.settle`.

        Whether QEMU has switched is seen from whether it has the overlay open. So this works when
        QMP does not answer, and for a snapshot that another process began.
        """
        for chain in self._chains:
            chain.settle()

    def undos(self) -> list[Undo]:
        """The undo of each disk; to be called by :func:`~pyxlsnap.disks.undo.undo_each`."""
        return [chain.undo for chain in self._chains]

    def artefacts(self) -> list[Artefact]:
        """The frozen files, and how to delete each."""
        return [chain.artefact() for chain in self._chains]

    # revert

    def check_revert(self) -> None:
        """:raises Refused: a frozen file is not there, or no image; or more would be lost."""
        for chain in self._chains:
            checks.check_revert(chain)
            with os_errors(chain.disk, chain.active, refuse=True):
                self._kept.check(chain.disk, chain.active)

    def revert(self) -> None:
        """Put a new overlay of the frozen file in the place of each disk, which is kept.

        :raises DiskError: somebody still has an image in use; nothing was written then.
        """
        for chain in self._chains:
            wait_until_unused(chain.disk, Path(chain.disk.target))
        for chain in self._chains:
            with os_errors(chain.disk, chain.active):
                self._kept.keep(chain.disk, chain.active)
            chain.put_back(self._kept.path(chain.active))

    def finish_revert(self) -> list[str]:
        """Remove the disks that were kept; returns what could not be removed, a line each."""
        return self._kept.remove((chain.disk, chain.active) for chain in self._chains)
