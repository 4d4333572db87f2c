"""qcow2 disks, with internal or external snapshots, taken in QMP transactions.

QEMU does all of a transaction, or nothing. Internal snapshots can be deleted again, so mostly they
are taken in a transaction of their own, beside the memory. External ones cannot be undone: their
transaction comes last, and is the commit point of the whole snapshot.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum, auto
from functools import partial
from pathlib import Path

from pyxlsnap.disks.failures import refuse_missing
from pyxlsnap.disks.in_use import has_holder
from pyxlsnap.disks.qcow2.clones import Qcow2Clones
from pyxlsnap.disks.qcow2.deletion import Deletion
from pyxlsnap.disks.qcow2.external import External
from pyxlsnap.disks.qcow2.internal import Internal
from pyxlsnap.disks.qcow2.qemu import GuestQemu
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.disks.undo import Undo, undo_each
from pyxlsnap.errors import DiskError, DomainNotFound, QmpError, Refused
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.results import Artefact, CloneDisk

_SET_ACTIVE, _SET_ACTIVE_SINCE = "blockdev-set-active", (10, 0)
# libxl gives up after ten seconds, and QEMU would go on recording the guest's changes of memory.
_LIBXL_WAITS_S = 5.0
_TRANSACTION_S = 0.2  # as measured; besides the work inside the images
_BOOTS_S, _BOOTS_POLL_S = 300.0, 1.0

log = logging.getLogger(__name__)


class _Outcome(Enum):
    """What QEMU did with the transaction of a create."""

    #: nothing: it was not told yet, or refused
    NOTHING = auto()
    #: it was told, and has not answered
    UNKNOWN = auto()
    DONE = auto()
    #: it was told, and has ended without an answer
    ENDED = auto()


class Qcow2:
    """All qcow2 disks of an operation. See :class:`pyxlsnap.disks.protocol.DiskStrategy`."""

    kind = "qcow2"

    def __init__(self, disks: Sequence[tuple[Disk, DiskRequest]], task: DiskTask) -> None:
        self._disks = tuple(disk for disk, _ in disks)
        self._internal = Internal([disk for disk, request in disks if request.internal], task)
        self._external = External([(d, r) for d, r in disks if not r.internal], task)
        self._inactive, self._device_model = task.inactive, task.device_model
        self._started_anew = task.started_anew
        self._attached = task.attached
        self._memory_read = task.memory_read
        self._tell = task.waiting
        self._waiting = partial(task.waiting, "QEMU to answer")
        self._gone = task.gone
        self._outcome = _Outcome.NOTHING
        self.vdevs = tuple(d.vdev for d in self._disks)
        self._qemu = GuestQemu()
        self._deletion = Deletion(disks, task, self._qemu)
        self._clones = Qcow2Clones(disks, task)
        self._activate: tuple[tuple[str, dict[str, object]], ...] = ()
        self._adopted = self._internal_done = False
        #: QEMU may have been told of the overlays
        self._told = False

    # create

    def check_create(self, domid: int) -> None:
        try:
            self._qemu.connect(domid, self._disks)
            self._activate = self._how_to_activate()
            self._internal.check(self._qemu)
            self._external.check(self._qemu)
        except QmpError as e:
            raise Refused(
                f"{', '.join(self.vdevs)}: cannot talk to the guest's QEMU ({e}): is another "
                f"program (xentop?) connected to its QMP socket?"
            ) from e

    def _how_to_activate(self) -> tuple[tuple[str, dict[str, object]], ...]:
        """The commands that let QEMU write into images after a live suspend of an HVM guest.

        QEMU refuses to, else (xen-lab.md, E2). External snapshots do not need it.
        """
        if not (self._inactive and self._internal.disks):
            return ()
        if self._qemu.version() >= _SET_ACTIVE_SINCE:
            return ((_SET_ACTIVE, {"active": True}),)
        # The guest cannot run in between: for Xen it is shut down.
        return (("cont", {}), ("stop", {}))

    def beside(self) -> Collection[str]:
        """See :class:`pyxlsnap.disks.abilities.BesideStrategy`.

        The devices of an HVM guest, whose state is saved by then, must not run while the memory is
        read (``cont``), and QEMU must answer libxl at its end.
        """
        if self._device_model:
            quiet = all(command == _SET_ACTIVE for command, _ in self._activate)
            if not quiet or self.expected_seconds() > _LIBXL_WAITS_S:
                return ()
        return [disk.vdev for disk in self._internal.disks]

    def expected_seconds(self) -> float:
        return _TRANSACTION_S + self._internal.expected_seconds()

    def quicker(self) -> str:
        """See :class:`pyxlsnap.disks.abilities.AdvisingStrategy`."""
        vdevs = [disk.vdev for disk in self._internal.disks]
        return f"an external snapshot is quicker ('/path,qcow2,{vdevs[0]}')" if vdevs else ""

    def state(self) -> dict[str, str]:
        return self._external.state() | self._internal.state() | self._clones.state()

    def prepare(self) -> None:
        self._external.prepare(self._qemu)

    def create_beside(self) -> None:
        # The guest may have told QEMU of requests just before it was suspended. QEMU has seen that
        # when it answers, and a transaction waits for all requests that QEMU has taken.
        if not self._memory_read():
            self._qemu.execute("query-status")
        self._take(internal=True, external=False)
        self._internal_done = True
        if self._external.disks:
            self._outcome = _Outcome.NOTHING  # of the other transaction

    def create(self) -> None:
        if self._internal_done and not self._external.disks:
            return
        self._take(internal=not self._internal_done, external=True)
        self._external.switched()

    def _take(self, *, internal: bool, external: bool) -> None:
        """Take snapshots in one transaction.

        :raises QmpError: QEMU refused it, or did not answer in time (then the outcome is unknown).
        """
        self._outcome = _Outcome.UNKNOWN
        self._told = self._told or external
        try:
            for command, arguments in self._activate if internal else ():
                self._qemu.execute(command, arguments)
            actions = self._internal.actions(self._qemu) if internal else []
            actions += self._external.actions(self._qemu) if external else []
            expected_s = self._internal.expected_seconds() if internal else 0.0
            self._qemu.execute("transaction", {"actions": actions}, expected_s=expected_s)
        except QmpError as e:
            if e.refused:
                self._outcome = _Outcome.NOTHING
                if internal:
                    self._internal.refused()
            raise
        self._outcome = _Outcome.DONE

    def finish_create(self) -> None:
        self._external.protect()

    def settle(self) -> None:
        if self._started_anew:
            return  # the guest has its disks already
        if self._settle() is None:
            vdevs = ", ".join(self.vdevs)
            if self._gone():
                raise DomainNotFound(f"the domain with the disks {vdevs} is gone", domain="")
            # No overlay gets a disk's name: the suspended guest has seen the end of no write since,
            # so the files with which the QEMU began match its memory.
            raise DiskError(
                "the guest's QEMU has ended, and without it the guest has no disks",
                vdev=vdevs,
            )

    def _settle(self) -> list[str] | None:
        """Find out what QEMU did, and finish that; returns the overlays that were removed.

        :returns: ``None`` if the QEMU ended before it told, or the domain is gone; nothing was
            finished then, and another QEMU may have the disks.
        :raises DiskError: it cannot be found out, or not be finished.
        """
        if self._outcome is not _Outcome.NOTHING and self._gone():
            self._outcome = _Outcome.ENDED
        if self._outcome is _Outcome.ENDED:
            return None
        switched: Sequence[str] = self.vdevs if self._outcome is _Outcome.DONE else ()
        if self._outcome is _Outcome.UNKNOWN:
            if self._told:
                self._external.refuse_unknown()
                self._external.withdraw()
            nodes = self._qemu.ask_nodes(
                self._disks, waiting=self._waiting, unheld=self._unheld, gone=self._gone
            )
            if nodes is None or self._gone():
                self._outcome = _Outcome.ENDED
                return None
            switched = self._external.switched_in(nodes)
        removed = self._external.settle(switched)
        self._outcome = _Outcome.DONE if switched else _Outcome.NOTHING
        return removed

    def _unheld(self) -> bool:
        """Whether no process has an image of the disks open."""
        images = [*self._external.images, *(Path(d.target) for d in self._internal.disks)]
        return not any(map(has_holder, images))

    def undo_create(self) -> list[str]:
        external = zip(self._external.disks, self._external.undos(), strict=True)
        return undo_each(
            [
                self._undo_unsettled,
                *self._internal.undos(self._qemu),
                *(partial(self._undo_external, disk, undo) for disk, undo in external),
            ]
        )

    def _undo_unsettled(self) -> list[str]:
        """Settle what is not settled yet: a recovery whose domain is gone resumes nothing."""
        for disk in self._external.disks:
            self._check_storage(disk)
        removed = self._settle()
        # Without that QEMU the disks are those that it began with.
        return self._external.settle(()) if removed is None else removed

    def _undo_external(self, disk: Disk, undo: Undo) -> Sequence[str]:
        self._check_storage(disk)
        return undo()

    def _check_storage(self, disk: Disk) -> None:
        """:raises DiskError: after a crash the storage of the disk is not there."""
        if self._adopted:
            refuse_missing(disk, Path(disk.target), "files of the disk snapshot")

    def adopt_create(self, domid: int | None, *, began: float, state: Mapping[str, str]) -> None:
        self._adopted = self._told = True
        ended = domid is None or self._started_anew
        self._outcome = _Outcome.ENDED if ended else _Outcome.UNKNOWN
        self._external.adopt(state)
        self._internal.adopt(began, gone=domid is None)
        disks = self._disks
        if self._started_anew:  # of a disk that was detached since, the file is looked at
            disks = tuple(disk for disk in disks if disk.vdev in self._attached)
        if domid is not None and disks:
            self._connect(domid, disks)

    def _connect(self, domid: int, disks: Sequence[Disk]) -> None:
        """Connect to the guest's QEMU; if the guest was started anew, let it boot first.

        The QEMU of an HVM guest has each disk twice until the PV drivers unplug the emulated one.
        """
        end = time.monotonic() + (_BOOTS_S if self._started_anew else 0.0)
        while True:
            try:
                return self._qemu.connect(domid, disks)
            except Refused as e:
                if time.monotonic() > end or self._gone():
                    raise
                log.info("waiting until the guest has booted: %s", e)
            self._qemu.close()
            self._tell("the guest to load its PV drivers")
            time.sleep(_BOOTS_POLL_S)

    def artefacts(self, domain: str) -> list[Artefact]:
        return self._internal.artefacts(self._qemu, domain) + self._external.artefacts()

    def close(self) -> None:
        self._qemu.close()
        self._clones.close()

    # revert

    def check_revert(self) -> None:
        self._internal.check_revert()
        self._external.check_revert()

    def prepare_revert(self, check: Callable[[], None]) -> None:
        self._external.prepare_revert(check)

    def undo_prepared(self) -> None:
        undo_each(self._external.undos_of_prepared())

    def revert(self) -> None:
        self._internal.revert()
        self._external.revert()

    def finish_revert(self, domid: int) -> list[str]:
        left = self._external.finish_revert()
        if not self._internal.disks:
            return left
        try:
            self._qemu.connect(domid, self._internal.disks)
        except (QmpError, Refused) as e:
            vdevs = ", ".join(d.vdev for d in self._internal.disks)
            next_one = "; the next revert of these disks deletes them"
            what = f"the kept disk snapshots in {vdevs} (the disks before the revert): {e}"
            return [*left, what + next_one * self._internal.leave_kept()]
        return left + self._internal.finish_revert(self._qemu)

    # delete

    def check_delete(self, domid: int | None) -> None:
        self._deletion.check(domid)

    def prepare_delete(self) -> list[str]:
        return self._deletion.free()

    def delete(self) -> list[str]:
        return self._deletion.delete()

    # clones

    def check_clone(self, name: str, wanted: Mapping[str, DiskRequest]) -> list[CloneDisk]:
        return self._clones.check(name, wanted)

    def clone(self) -> None:
        self._clones.make()

    def delete_clone(self, disks: Sequence[CloneDisk], state: Mapping[str, str]) -> list[str]:
        return self._clones.delete(disks, state)
