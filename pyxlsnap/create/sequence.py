"""Taking a snapshot: the sequence, readable from top to bottom in :meth:`Creation.steps`.

The guest is suspended from some moment of ``suspend`` to the end of ``resume``: for what makes the
snapshot consistent, and nothing else. What can be done beside its memory is: :mod:`.beside`.
"""

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from pyxlsnap.cancel import Cancel
from pyxlsnap.create import ended as the_end
from pyxlsnap.create import failures, way_back
from pyxlsnap.create.beside import Beside
from pyxlsnap.create.bring_back import bring_back
from pyxlsnap.create.entry import entry_of
from pyxlsnap.create.files import SnapshotFiles
from pyxlsnap.create.paused import Unpauser
from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.create.report import snapshot_of
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.errors import (
    GuestTimeout,
    Interrupted,
    NeedsAttention,
    OperationFailed,
    PyxlsnapError,
)
from pyxlsnap.guest import checks
from pyxlsnap.guest.resume import patiently
from pyxlsnap.hooks import Moment
from pyxlsnap.journal import Journal
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.monitor.launch import keep_watched
from pyxlsnap.request import Callbacks
from pyxlsnap.results import Progress, Snapshot, Step

log = logging.getLogger(__name__)

_DISKS = "disk snapshots"
#: libxl waits for the QEMU of an HVM guest twice as long at the end of the memory
_QEMU_BUSY_S = 5.0


class Creation:
    """One run of a :class:`~pyxlsnap.create.plan.CreatePlan`.

    :param lock: the domain's lock, for this create alone; see :class:`Window`.
    """

    def __init__(
        self,
        plan: CreatePlan,
        callbacks: Callbacks | None = None,
        cancel: Cancel | None = None,
        lock: DomainLock | None = None,
    ) -> None:
        self._plan = plan
        self._guest = plan.guest
        self._callbacks = callbacks or Callbacks()
        self._cancel = cancel or Cancel()
        self._journal = Journal(plan.guest.uuid)
        self._recover = f"pyxlsnap snapshot-recover {plan.guest.uuid}"
        self._files = SnapshotFiles(plan)
        self._cleanups: list[Callable[[], list[str]]] = []
        self._journal_is_ours = False
        self._suspend_began = False
        self._memory_complete = False
        self._disks_done = False
        self._beside = Beside(plan)
        #: the disk strategies that may have taken disk snapshots after the memory
        self._begun: list[DiskStrategy] = []
        self._resumed = False
        self._suspended_at = 0.0
        self._seconds_suspended = 0.0
        self._noticed = the_end.Noticed()
        self._window = the_end.Window(plan.guest, lock)
        self._unwatched: list[str] | None = None
        #: used for a paused guest
        self._unpauser = Unpauser(plan.guest, live=plan.live, note=self._note_unpause)
        self._seconds: dict[str, float] = {}

    def steps(self) -> list[Step]:
        """The sequence. If a step fails, this step and those before it are undone."""
        return [
            ("journal", self._write_journal),
            ("header", self._write_header),
            ("prepare disks", self._prepare_disks),
            ("before suspend", self._tell_before_suspend),
            ("suspend", self._suspend),
            (_DISKS, self._snapshot_disks),
            ("resume", self._resume),
            ("watch", self._watch),
            ("finish disks", self._finish_disks),
            ("memory file", self._publish_memory),
            ("cfgfile", self._write_cfgfile),
        ]

    def run(self) -> Snapshot:
        """Do all steps; if one fails, resume the guest first, then undo the other steps.

        :raises OperationFailed, Interrupted, NeedsAttention: as
            :func:`pyxlsnap.create.operation.create`.
        """
        step = ""
        try:
            for step, do in self.steps():
                self._cancel.check()
                log.debug("%s: %s", self._guest, step)
                begun = time.monotonic()
                do()
                self._seconds[step] = time.monotonic() - begun
        except BaseException as cause:
            raise self._undo(step, cause) from cause
        self._journal.clear()
        made = snapshot_of(self._plan, [*self._keep_watched(), *self._files.warnings])
        if self._qemu_was_busy():
            failures.stop_recording(self._plan)
        return replace(
            made,
            seconds_suspended=self._seconds_suspended,
            seconds_beside=self._beside.seconds,
            seconds_unpaused=self._unpauser.seconds,
            seconds=self._seconds,
        )

    def _suspending(self, progress: Progress) -> None:
        """Pass progress on; libxl may report that the guest is suspended: it waits for us now."""
        if progress.phase == "domain now suspended":
            self._suspended_at = time.monotonic()
            self._beside.begin()
            self._files.lift_limit()
        self._callbacks.on_progress(progress)

    def _write_journal(self) -> None:
        watched = self._callbacks.start_monitor is not None
        self._entry = entry_of(self._plan, self._files, watched=watched)
        self._journal.write(self._entry)
        self._journal_is_ours = True

    def _write_header(self) -> None:
        self._cleanups.append(self._files.discard)
        self._files.begin()

    def _prepare_disks(self) -> None:
        checks.notice_change(self._guest, paused=self._plan.paused)
        for strategy in self._plan.strategies:
            self._cleanups.append(partial(self._undo_disks, strategy))
            strategy.prepare()

    def _tell_before_suspend(self) -> None:
        guest, state = self._guest, self._plan.metadata.state
        self._callbacks.before_suspend(Moment(guest.name, guest.domid, guest.uuid, state))

    def _suspend(self) -> None:
        self._window.begin(self._cancel.check)
        checks.notice_change(self._guest, paused=self._plan.paused)
        unpauser = self._unpauser if self._plan.paused else nullcontext()
        over, unhurried = self._files.lift_limit, self._beside.unhurried
        end = the_end.noticing_end(self._guest, self._noticed, over=over, unhurried=unhurried)
        receiver = self._files.receiver(self._guest.abort, self._cancel.check)
        try:
            with receiver, unpauser, end, self._cancel.armed(self._guest.abort), self._beside:
                self._suspend_began = True
                fd = receiver.fileno()
                self._guest.suspend(fd, live=self._plan.live, on_progress=self._suspending)
        except Exception:
            self._beside.stop()
            self._beside.raise_failure()  # for which libxl was aborted
            raise
        self._memory_complete = True

    def _note_unpause(self) -> None:
        self._entry = replace(self._entry, unpaused_at=time.time())
        self._journal.rewrite(self._entry)

    def _snapshot_disks(self) -> None:
        self._beside.finish()
        for strategy in self._plan.strategies:
            if self._plan.beside.issuperset(strategy.vdevs):
                continue
            checks.notice_resumed(self._guest)
            self._plan.served.notice_replaced(set(strategy.vdevs) - self._plan.beside)
            self._begun.append(strategy)
            strategy.create()
        self._disks_done = True

    def _resume(self) -> None:
        checks.notice_resumed(self._guest)
        resume = partial(self._guest.resume, paused=self._plan.paused)
        patiently(self._guest, resume, self._plan.waiting)
        if self._suspended_at:
            self._seconds_suspended = time.monotonic() - self._suspended_at
        self._resumed = True
        self._window.end()
        self._callbacks.on_progress(Progress("resumed"))
        self._beside.unhurried.set()

    def _qemu_was_busy(self) -> bool:
        """Whether the guest's QEMU may have given libxl no answer at the end of the memory."""
        return self._beside.seconds_of("qcow2") > _QEMU_BUSY_S

    def _watch(self) -> None:
        self._keep_watched()

    def _finish_disks(self) -> None:
        self._beside.close()
        for strategy in self._plan.strategies:
            strategy.finish_create()

    def _publish_memory(self) -> None:
        self._cleanups.append(self._files.withdraw)
        self._files.publish_memory(self._cancel)

    def _write_cfgfile(self) -> None:
        self._files.publish_cfgfile(self._plan.places.cfgfile_text)

    def _keep_watched(self) -> list[str]:
        """Start a watch, once, if xl's process ended at the suspend; returns warnings."""
        if not (self._plan.loses_monitor and self._suspend_began):
            return []
        if self._unwatched is None:
            start = self._callbacks.start_monitor
            self._unwatched = keep_watched(start, self._guest.name, self._guest.uuid)
        return self._unwatched

    # When something fails

    def _undo(self, step: str, cause: BaseException) -> PyxlsnapError:
        """Undo: the guest first, then disks and files. Returns the error to raise."""
        failures.in_spite_of_ctrl_c(self._beside.stop)
        step = _DISKS if cause is self._beside.error else step
        interrupted = failures.is_interrupt(cause, self._cancel)
        what = failures.describe(step, cause, self._plan, interrupted=interrupted)
        log.info("%s; undoing", what)  # the error says the same
        undone: list[str] = []
        left: list[str] = []
        unwatched: list[str] = []
        ran = ""
        ended: str | None = None
        try:
            ended = failures.in_spite_of_ctrl_c(lambda: self._bring_back(undone))
        except GuestTimeout as e:  # the guest runs, but may yet suspend
            left.append(str(e))
        except BaseException as e:  # even after a bug: do not delete the guest's only copy
            return self._keep_everything(step, f"{what}{self._unpauser.how_long()}", e)
        else:
            unwatched = self._when_back(ended, resumed=bool(undone))
            ran = self._unpauser.how_long() if ended is None else ""
            if self._callbacks.start_monitor:  # the caller had asked for a watch
                left += unwatched
        reason = self._why_ended(step, ended)
        if reason is not None:
            what = the_end.describe_end(self._guest.name, reason, step)
        leftovers = failures.clean_up(reversed(self._cleanups), undone, left)
        aborted = self._suspend_began and not self._memory_complete
        if ended is None and (aborted or self._qemu_was_busy()):
            failures.stop_recording(self._plan)
        finish = self._recover if left else "; ".join(e.finish for e in leftovers)
        if self._journal_is_ours and not left:
            self._journal.clear()
        left += map(str, leftovers)
        if left:
            said = f"{what}{ran}; left: {'; '.join(left)}"
            return NeedsAttention(said, step=step, undone=undone, left=left, finish=finish)
        but = "".join(f", but {line}" for line in unwatched)
        if reason is not None:
            return the_end.guest_ended(self._guest.name, reason, step, undone, but)
        # (An abort may also show as another failure of libxl.)
        cls = Interrupted if interrupted or self._cancel.is_set() else OperationFailed
        rest = ran or "; everything is as before"
        return cls(f"{what}{rest}{but}", step=step, undone=undone)

    def _when_back(self, ended: str | None, *, resumed: bool) -> list[str]:
        """The guest runs, or has ended: tell this, and have it watched; returns warnings.

        :param resumed: the undo had to resume it.
        """
        self._window.end()
        if ended is None:
            self._tell_resumed()
        # xl's process has seen a suspend, and ended; one that has seen the guest's end acts.
        there = ended is None or (ended and resumed)
        return self._keep_watched() if there else []

    def _why_ended(self, step: str, ended: str | None) -> str | None:
        """Why the create has failed, if that is because the guest has ended by itself.

        :param ended: why the guest does not run now; ``None``: it does.
        """
        if self._cancel.is_set():
            return None
        noticed = self._noticed.reason if step == "suspend" else None
        return ended or (ended if noticed is None else noticed)

    def _bring_back(self, undone: list[str]) -> str | None:
        """See :func:`bring_back`."""
        if self._resumed:
            return None
        began, complete = self._suspend_began, self._memory_complete
        return bring_back(self._plan, undone, suspend_began=began, memory_complete=complete)

    def _undo_disks(self, strategy: DiskStrategy) -> list[str]:
        beside = self._beside.begun and not self._plan.beside.isdisjoint(strategy.vdevs)
        if not beside and strategy not in self._begun:
            return strategy.undo_create()
        self._window.begin()  # else a monitor starts the guest again meanwhile, on its disks
        try:
            return the_end.undo_disks(self._plan, strategy, self._entry)
        finally:
            self._window.end()

    def _tell_resumed(self) -> None:
        """Report that the guest runs: a caller need not wait for the rest of the undo."""
        try:
            self._callbacks.on_progress(Progress("resumed"))
        except Exception:
            log.exception("the progress callback failed")

    def _keep_everything(self, step: str, what: str, error: BaseException) -> PyxlsnapError:
        """The guest cannot be resumed: memory file and disks are its only copy."""
        left = f"{self._guest} is suspended and cannot be resumed ({error or type(error).__name__})"
        failed = NeedsAttention(what, step=step, left=[left], finish=self._recover)
        entry = None
        if self._memory_complete:
            way = str(self._plan.cfgfile)
            entry = replace(self._entry, way_back=way, has_disks=self._disks_done)
        return way_back.keep_everything(self._plan, self._files, entry, failed)
