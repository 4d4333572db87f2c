"""qcow2 with the snapshot in a file of its own: the frozen-base chain.

The path in the cfgfile (the external path) becomes the FROZEN state. The running disk keeps its own
path, because libxl keeps that path in its store and would reboot the guest from it; from then on
the path leads to a new overlay, which stands on the frozen file. Two traps, both seen as silent
corruption on a real Xen (xen-lab.md, E1), dictate the order and the names:

- At the switch QEMU reopens the old file BY ITS NAME. So QEMU switches to the overlay under a name
  that no file has had before, and only after that the overlay is renamed over the disk's path.
- Between switch and rename a guest that runs would write to a file that its next boot does not
  find. So the guest must not be resumed in between: :meth:`External.settle` finishes the rename.

A transaction that was not answered may be done yet, or undone yet: QEMU opens the overlays one
after the other, and closes all of them again if one fails. So an overlay that QEMU has open proves
nothing. :meth:`External.withdraw` first takes away the names of all overlays; when QEMU answers
again, its block nodes tell for all disks together.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pyxlsnap.disks.changeable import refuse_full, refuse_unchangeable
from pyxlsnap.disks.failures import os_errors
from pyxlsnap.disks.in_use import wait_until_unused
from pyxlsnap.disks.kept import KeptFiles
from pyxlsnap.disks.qcow2 import checks
from pyxlsnap.disks.qcow2.chain import Chain
from pyxlsnap.disks.qcow2.qemu import GuestQemu
from pyxlsnap.disks.qcow2.trial import SLACK
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import Undo
from pyxlsnap.errors import DiskError
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.there import exists
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.results import Artefact

_OVERLAY = 200 << 10  # bytes of an empty one


class External:
    """The disks of an operation with external snapshots; a part of :mod:`.strategy`."""

    def __init__(self, disks: Sequence[tuple[Disk, DiskRequest]], task: DiskTask) -> None:
        self.disks = tuple(disk for disk, _ in disks)
        self._name = task.name
        self._claim = task.claim
        self._kept = KeptFiles(task)
        self._chains = [Chain.of(disk, request) for disk, request in disks]
        self._use_names_of(task.prepared or task.finishes or {})

    def _use_names_of(self, killed: Mapping[str, str]) -> None:
        """Use the names of a killed revert's overlays, so that those which are left are removed."""
        for chain in self._chains:
            overlay = Path(killed.get(f"{chain.disk.vdev} overlay", chain.overlay))
            if overlay.parent == chain.overlay.parent:
                chain.overlay = overlay

    def state(self) -> dict[str, str]:
        """The names of the overlays and of their nodes, which are new each time; and the files that
        a revert keeps.
        """
        overlays = {f"{c.disk.vdev} overlay": str(c.overlay) for c in self._chains}
        nodes = {f"{c.disk.vdev} node": c.node for c in self._chains if c.node}
        return overlays | nodes | self._kept.state()

    def adopt(self, state: Mapping[str, str]) -> None:
        """Use the names of another process. (A journal of version 1 has no nodes.)"""
        for chain in self._chains:
            chain.overlay = Path(state[f"{chain.disk.vdev} overlay"])
            chain.node = state.get(f"{chain.disk.vdev} node")

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

    def withdraw(self) -> None:
        """Take away the names of all overlays: from now on QEMU cannot begin to switch.

        :raises DiskError: a name is left; the others were taken away.
        """
        failed = []
        for chain in self._chains:
            try:
                chain.withdraw()
            except DiskError as e:
                failed.append(e)
        if failed:
            raise failed[0]

    def settle(self, switched: Collection[str]) -> list[str]:
        """Finish the rename of each disk that QEMU has switched; remove the other overlays.

        :param switched: the vdevs of the disks that QEMU has switched, for certain.
        :returns: what was removed, a line each.
        """
        chains = [(chain, chain.disk.vdev in switched) for chain in self._chains]
        return [line for chain, done in chains for line in chain.settle(switched=done)]

    def refuse_unknown(self) -> None:
        """Make sure that :meth:`switched_in` can tell for each overlay that is not settled.

        :raises DiskError: the name of an overlay's node is not known.
        """
        unknown = [c for c in self._chains if c.node is None and c.waiting_overlay]
        if unknown:
            overlays = ", ".join(str(c.waiting_overlay) for c in unknown)
            raise DiskError(
                f"an earlier release of pyxlsnap wrote the journal, so it is not known whether the "
                f"guest's QEMU writes to {overlays}: run `pyxlsnap snapshot-recover` of that "
                f"release",
                vdev=", ".join(c.disk.vdev for c in unknown),
            )

    def switched_in(self, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
        """The vdevs of the disks whose overlays are in use in QEMU, by its block nodes."""
        names = {node["node-name"] for node in nodes}
        return [chain.disk.vdev for chain in self._chains if chain.node in names]

    @property
    def images(self) -> list[Path]:
        """All names of files that a QEMU with these disks may have open."""
        return [image for chain in self._chains for image in chain.images]

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
            refuse_unchangeable(chain.disk, chain.active, write=False)
            refuse_unchangeable(chain.disk, chain.active.parent)
            with refusing_os_errors():
                chain.rehearse()
            # An overlay that is made already takes no more.
            need = 0 if exists(chain.overlay) else _OVERLAY
            refuse_full(chain.disk, chain.active.parent, need, self._claim, spare=SLACK)

    def prepare_revert(self, check: Callable[[], None]) -> None:
        """Make the overlays."""
        for chain in self._chains:
            check()
            chain.prepare_back()

    def undos_of_prepared(self) -> list[Undo]:
        """The removal of each overlay; to be called by :func:`~pyxlsnap.disks.undo.undo_each`."""

        def undo(chain: Chain) -> list[str]:
            chain.undo_prepared()
            return []

        return [partial(undo, chain) for chain in self._chains]

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
