"""The clone: the sequence, readable from top to bottom in :meth:`Cloning.steps`.

All or nothing: whatever step fails, what was made is removed again. Only a clone that is replaced
cannot come back. The snapshot is only read.
"""

import logging
import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any, BinaryIO

from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.clone.line_files import LineFiles
from pyxlsnap.clone.names import refuse_renamed
from pyxlsnap.clone.plan import ClonePlan
from pyxlsnap.clone.removal import (
    destroyed,
    info_if_there,
    remove_old_disks,
    started_by_others,
    take_back,
)
from pyxlsnap.clone.report import cloned
from pyxlsnap.clone_file import CloneFile, mounts
from pyxlsnap.errors import (
    Aborted,
    Interrupted,
    NeedsAttention,
    OperationFailed,
    PyxlsnapError,
    Refused,
)
from pyxlsnap.guest.dom0_memory import Room
from pyxlsnap.guest.held_memory import set_target_back
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.guest.resume import patiently
from pyxlsnap.guest.saved import open_stream, read_memory_ahead
from pyxlsnap.journal import CloneEntry, Journal, boot_id
from pyxlsnap.model import RunState
from pyxlsnap.monitor.launch import PreparedWatch
from pyxlsnap.request import Callbacks, clone_command
from pyxlsnap.results import Cloned, Progress, Step

log = logging.getLogger(__name__)


class Cloning:
    """One run of a :class:`~pyxlsnap.clone.plan.ClonePlan`."""

    def __init__(
        self,
        host: Host,
        plan: ClonePlan,
        callbacks: Callbacks | None = None,
        cancel: Cancel | None = None,
    ) -> None:
        self._host = host
        self._plan = plan
        self._callbacks = callbacks or Callbacks()
        self._cancel = cancel or Cancel()
        self._room = Room(host, plan.restored)
        self._watch = PreparedWatch(self._callbacks)
        self._lines = LineFiles(plan.config, plan.old)
        self._journal = Journal(plan.uuid)
        self._entry = self._first_entry()
        self._written = False
        self._open = ExitStack()
        self._memory: BinaryIO | None = None
        self._new: Guest | None = None
        self._warnings: list[str] = []
        self._seconds: dict[str, float] = {}

    def steps(self) -> list[Step]:
        """The sequence. What can be made while the clone that is replaced runs is made then."""
        replaced = self._plan.old is not None
        return [
            ("prepare", self._prepare),
            ("memory", self._make_room),
            ("check again", self._check_again),
            ("journal", self._write_journal),
            ("disks", self._make_disks),
            *([("destroy", self._destroy_old)] if replaced else []),
            ("restore", self._restore),
            ("unpause", self._unpause),
            ("monitor", self._keep_watched),
            *([("old disks", self._remove_old_disks)] if replaced else []),
            ("clone file", self._publish),
        ]

    def run(self) -> Cloned:
        """Do all steps.

        :raises Refused, OperationFailed, Interrupted, NeedsAttention: as
            :func:`pyxlsnap.clone.operation.clone`.
        """
        step = ""
        try:
            for step, do in self.steps():
                if self._new is None and not self._entry.replace_begun:
                    self._cancel.check()
                log.debug("%s: %s", self._plan.config.name, step)
                self._callbacks.on_progress(Progress(step))
                begun = time.monotonic()
                do()
                self._seconds[step] = time.monotonic() - begun
        except BaseException as cause:
            raise self._failed(step, cause) from cause
        finally:
            self._room.release()
            self._watch.close()
            self._open.close()
        warnings = (*self._plan.warnings, *self._warnings)
        return cloned(self._entry, self._running(), self._plan.state, warnings, self._seconds)

    def _first_entry(self) -> CloneEntry:
        plan = self._plan
        return CloneEntry(
            request=replace(plan.request, config=None, uuid=plan.uuid),
            uuid=plan.uuid,
            domain=plan.config.name,
            name=plan.name,
            memory_path=str(plan.saved.path),
            cfgfile=plan.request.cfgfile,
            disks=tuple(request for _, request in plan.chosen),
            devices=tuple(disk for disk, _ in plan.chosen),
            kinds={v: s.kind for s in plan.strategies for v in s.vdevs},
            paused=plan.state is RunState.PAUSED,
            monitor=self._callbacks.start_monitor is not None,
            started=time.time(),
            origin=plan.origin,
            created=plan.saved.created,
            mounts=mounts(plan.children),
            boot=boot_id(),
            children=plan.children,
            disk_state=self._disk_state(),
            replaces=plan.old is not None,
            domid=plan.guest.domid if plan.guest else None,
            changes=plan.changes,
            line_files=self._lines.marks,  # the same object: what is made of them is known at once
        )

    def _disk_state(self) -> dict[str, str]:
        return {k: v for s in self._plan.strategies for k, v in s.state().items()}

    def _prepare(self) -> None:
        self._watch.prepare(self._plan.config.name, self._plan.uuid)
        # Before xl's lock is taken: this may take long, and others wait for that lock.
        read_memory_ahead(self._plan.saved.path, self._cancel.check)

    def _make_room(self) -> None:
        self._room.prepare(self._plan.guest, self._cancel.check)

    def _check_again(self) -> None:
        plan, look = self._plan, self._plan.look
        self._look_again()
        for strategy in plan.strategies:
            strategy.check_clone(look.label, look.asked)
        saved = plan.saved
        self._memory = self._open.enter_context(
            open_stream(saved.path, saved.version, saved.header.stream_offset)
        )

    def _look_again(self) -> None:
        """:raises Refused, OperationFailed: what the clone needs of the host has changed."""
        risks = self._plan.look.again(self._lines.marks).risks
        if new := [risk for risk in risks if risk not in self._plan.warnings]:
            raise OperationFailed("; ".join(new), step="check again")

    def _write_journal(self) -> None:
        self._journal.write(self._entry)
        self._written = True

    def _note(self, **more: Any) -> None:
        self._entry = replace(self._entry, **more)
        self._journal.rewrite(self._entry)

    def _make_disks(self) -> None:
        with self._room.lent():
            for strategy in self._plan.strategies:
                strategy.clone()
        self._lines.make()
        self._note(disk_state=self._disk_state())

    def _destroy_old(self) -> None:
        # Nothing comes back from here on, and the disks may have taken long.
        self._look_again()
        self._make_room()
        self._cancel.check()
        if guest := self._plan.guest:
            guest.check_same()  # it may have rebooted meanwhile, under another domid
            refuse_renamed(guest, self._plan.config.name)
        self._note(replace_begun=True)
        if guest:
            destroyed(guest)

    def _restore(self) -> None:
        self._warnings += self._room.confirm()
        assert self._memory
        # The clone that was replaced is lost: an abort would only lose this one, too.
        lost = self._entry.replace_begun
        with nullcontext() if lost else self._cancel.armed(self._host.abort):
            self._new = self._host.restore(self._plan.restored, self._memory.fileno())
        self._room.release()
        # Before the journal has the domain: a recovery would only unpause it then.
        self._warnings += set_target_back(self._new, self._plan.config, self._plan.restored)
        self._note(restored_domid=self._new.domid)

    def _running(self) -> Guest:
        assert self._new
        return self._new

    def _unpause(self) -> None:
        self._watch.begin()
        if self._plan.state is RunState.RUNNING:
            patiently(self._running(), self._running().unpause, self._plan.waiting)

    def _keep_watched(self) -> None:
        new = self._running()
        self._warnings += self._watch.keep_watched(new.name, new.uuid)

    def _remove_old_disks(self) -> None:
        self._warnings += remove_old_disks(self._plan.old, self._plan.waiting)

    def _publish(self) -> None:
        CloneFile(self._plan.uuid).publish()

    # When something fails

    def _failed(self, step: str, cause: BaseException) -> PyxlsnapError:
        name = self._plan.config.name
        # An abort that was asked for is an interruption, whatever libxl says of it.
        interrupted = isinstance(cause, Cancelled | KeyboardInterrupt | Aborted)
        said = f"was interrupted ({step})" if interrupted else f"failed ({step}): {cause}"
        what = f"making the clone {name} of {self._plan.name} {said}"
        try:
            undone, left = self._undo()
        except Exception as e:
            return NeedsAttention(
                f"{what}; and undoing it failed: {e}",
                step=step,
                left=[str(e)],
                finish=f"pyxlsnap snapshot-recover {self._plan.uuid}",
            )
        if self._entry.replace_begun:
            lost = f"the clone {name} that was to be replaced is destroyed"
            finish = clone_command(self._plan.request)
            return NeedsAttention(
                f"{what}; {lost}", step=step, undone=undone, left=[lost, *left], finish=finish
            )
        if isinstance(cause, Refused) and not self._written:
            return cause
        cls = Interrupted if interrupted else OperationFailed
        return cls(f"{what}; everything is as before", step=step, undone=undone, left=left)

    def _undo(self) -> tuple[list[str], list[str]]:
        """Remove what was made: the domain first, then its disks, then the journal.

        :returns: what was undone, and what is left, a line each (see :func:`take_back`).
        """
        self._room.give_back()
        if not self._written:
            return [], []
        if self._new:
            self._note_undo()
        guest = self._new or self._remains()
        undone = destroyed(guest) if guest else []
        self._entry = replace(self._entry, disk_state=self._disk_state())
        removed, left = take_back(self._entry, self._plan.old, self._plan.waiting)
        self._journal.clear()
        return undone + removed, left

    def _note_undo(self) -> None:
        """Else a recovery would keep the disks of the clone, because it may have run.

        :raises OSError: that was not noted. The clone stays, and a recovery completes it.
        """
        self._note(undo_begun=True)

    def _remains(self) -> Guest | None:
        """A domain that libxl could not remove: a restore has left it, or a destroy.

        :raises NeedsAttention: somebody has started a domain with the clone's uuid.
        """
        if self._plan.old and not self._entry.replace_begun:
            return None  # that is the clone which was not replaced
        guest = self._host.find_if_there(self._plan.uuid)
        now = info_if_there(guest)
        if guest is None or now is None:
            return None
        is_old = self._plan.old is not None and now.domid == self._entry.domid
        if now.has_run and not now.dying and not is_old:
            raise started_by_others(guest, self._entry)
        return guest
