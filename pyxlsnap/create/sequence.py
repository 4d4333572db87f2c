"""Taking a snapshot: the sequence, readable from top to bottom in :meth:`Creation.steps`.

The guest is suspended from the end of ``suspend`` to ``resume``. Between them are only the steps
that make the snapshot consistent.
"""

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import TypeVar

from pyxlsnap import cfgfile
from pyxlsnap.cancel import Cancel
from pyxlsnap.create.failures import describe, is_interrupt
from pyxlsnap.create.files import SnapshotFiles
from pyxlsnap.create.paused import Unpauser
from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.errors import (
    DomainNotFound,
    GuestTimeout,
    Interrupted,
    NeedsAttention,
    OperationFailed,
    PyxlsnapError,
)
from pyxlsnap.guest import checks
from pyxlsnap.guest.frontends import notice_devices
from pyxlsnap.hooks import Moment
from pyxlsnap.journal import CreateEntry, Journal, boot_id
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.monitor.launch import keep_watched
from pyxlsnap.request import Callbacks
from pyxlsnap.results import Artefact, Progress, Snapshot, Step
from pyxlsnap.serialize import checked
from pyxlsnap.text import command

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Creation:
    """One run of a :class:`~pyxlsnap.create.plan.CreatePlan`."""

    def __init__(
        self, plan: CreatePlan, callbacks: Callbacks | None = None, cancel: Cancel | None = None
    ) -> None:
        self._plan = plan
        self._guest = plan.guest
        self._callbacks = callbacks or Callbacks()
        self._cancel = cancel or Cancel()
        self._journal = Journal(plan.guest.uuid)
        self._files = SnapshotFiles(plan)
        self._cleanups: list[Callable[[], list[str]]] = []
        self._journal_is_ours = False
        self._suspend_began = False
        self._memory_complete = False
        self._disks_done = False
        self._resumed = False
        self._suspended_at = 0.0
        self._seconds_suspended = 0.0
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
            ("disk snapshots", self._snapshot_disks),
            ("resume", self._resume),
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
        warnings = self._keep_watched()
        self._journal.clear()
        return self._result(warnings)

    def _suspending(self, progress: Progress) -> None:
        """Pass progress on, and note the time when libxl reports that the guest is suspended."""
        if progress.phase == "domain now suspended":
            self._suspended_at = time.monotonic()
        self._callbacks.on_progress(progress)

    def _write_journal(self) -> None:
        plan = self._plan
        self._entry = CreateEntry(
            request=plan.request,
            uuid=self._guest.uuid,
            domid=self._guest.domid,
            boot=boot_id(),
            domain=self._guest.name,
            paused=plan.paused,
            monitor=plan.loses_monitor and self._callbacks.start_monitor is not None,
            name=plan.metadata.name,
            temporary=(str(self._files.temporary), str(self._files.temporary_cfgfile)),
            directories=tuple(map(str, self._files.directories)),
            memory_path=str(plan.memory_path),
            cfgfile=str(plan.cfgfile),
            disks=plan.metadata.disks,
            devices=plan.devices,
            disk_state={k: v for s in plan.strategies for k, v in s.state().items()},
            kinds=dict(plan.metadata.kinds),
            started=time.time(),
        )
        self._journal.write(self._entry)
        self._journal_is_ours = True

    def _write_header(self) -> None:
        self._cleanups.append(self._files.discard)
        self._files.begin()

    def _prepare_disks(self) -> None:
        checks.notice_change(self._guest, paused=self._plan.paused)
        for strategy in self._plan.strategies:
            self._cleanups.append(strategy.undo_create)
            strategy.prepare()

    def _tell_before_suspend(self) -> None:
        guest, state = self._guest, self._plan.metadata.state
        self._callbacks.before_suspend(Moment(guest.name, guest.domid, guest.uuid, state))

    def _suspend(self) -> None:
        checks.notice_change(self._guest, paused=self._plan.paused)
        unpauser = self._unpauser if self._plan.paused else nullcontext()
        receiver = self._files.receiver(self._guest.abort)
        with receiver, unpauser, self._cancel.armed(self._guest.abort):
            self._suspend_began = True
            fd = receiver.fileno()
            self._guest.suspend(fd, live=self._plan.live, on_progress=self._suspending)
        self._memory_complete = True

    def _note_unpause(self) -> None:
        self._entry = replace(self._entry, unpaused_at=time.time())
        self._journal.rewrite(self._entry)

    def _snapshot_disks(self) -> None:
        checks.notice_disks(self._guest, self._plan.examined.targets)
        notice_devices(self._guest, self._plan.frontends)
        for strategy in self._plan.strategies:
            self._check_suspended()
            self._plan.served.notice_replaced(strategy.vdevs)
            strategy.create()
        self._disks_done = True

    def _resume(self) -> None:
        self._check_suspended()
        self._guest.resume(paused=self._plan.paused)
        if self._suspended_at:
            self._seconds_suspended = time.monotonic() - self._suspended_at
        self._resumed = True
        self._callbacks.on_progress(Progress("resumed"))

    def _check_suspended(self) -> None:
        """:raises OperationFailed: the guest was resumed, and may have written to its disks."""
        if not self._guest.check_same().suspended:
            what = f"another program has resumed {self._guest.name}: memory and disks do not match"
            raise OperationFailed(what, step="suspended")

    def _finish_disks(self) -> None:
        for strategy in self._plan.strategies:
            strategy.finish_create()

    def _publish_memory(self) -> None:
        self._cleanups.append(self._files.withdraw)
        self._files.publish_memory(self._cancel)

    def _write_cfgfile(self) -> None:
        self._files.publish_cfgfile(self._plan.places.cfgfile_text)

    def _keep_watched(self) -> list[str]:
        """Start a watch if xl's process ended at the suspend; returns warnings."""
        if not (self._plan.loses_monitor and self._suspend_began):
            return []
        return keep_watched(self._callbacks.start_monitor, self._guest.name, self._guest.uuid)

    # When something fails

    def _undo(self, step: str, cause: BaseException) -> PyxlsnapError:
        """Undo: the guest first, then disks and files. Returns the error to raise."""
        what = describe(step, cause, self._guest.name, self._plan.memory_path)
        log.info("%s; undoing", what)  # the error says the same
        undone: list[str] = []
        left: list[str] = []
        unwatched: list[str] = []
        ran = ""
        try:
            _in_spite_of_ctrl_c(lambda: self._bring_guest_back(undone))
        except DomainNotFound as e:
            left.append(f"{e}: another program has destroyed the domain")
        except GuestTimeout as e:  # the guest runs, but may yet suspend
            left.append(str(e))
        except BaseException as e:  # even after a bug: do not delete the guest's only copy
            return self._keep_everything(step, f"{what}{self._unpauser.how_long()}", e)
        else:
            ran = self._unpauser.how_long()
            self._tell_resumed()
            unwatched = self._keep_watched()
            if self._callbacks.start_monitor:  # the caller had asked for a watch
                left += unwatched
        for cleanup in reversed(self._cleanups):
            try:
                undone += _in_spite_of_ctrl_c(cleanup)
            except BaseException as e:  # the next cleanup must still be done
                left.append(str(e) or type(e).__name__)
        if left:
            return NeedsAttention(
                f"{what}{ran}; left: {'; '.join(left)}",
                step=step,
                undone=undone,
                left=left,
                finish=f"pyxlsnap snapshot-recover {self._guest.uuid}",
            )
        if self._journal_is_ours:
            self._journal.clear()
        # (An abort may also show as another failure of libxl.)
        interrupted = is_interrupt(cause) or self._cancel.is_set()
        cls = Interrupted if interrupted else OperationFailed
        but = "".join(f", but {line}" for line in unwatched)
        rest = ran or "; everything is as before"
        return cls(f"{what}{rest}{but}", step=step, undone=undone)

    def _bring_guest_back(self, undone: list[str]) -> None:
        if not self._suspend_began or self._resumed:
            return
        self._guest.check_same()  # a domain that is gone needs no settling
        for strategy in self._plan.strategies:
            strategy.settle()
        if self._memory_complete:  # the guest is suspended, or was resumed already
            resumed = self._guest.ensure_running(
                settle_s=0.0, request_s=0.0, paused=self._plan.paused
            )
        else:  # the guest may yet suspend
            resumed = self._guest.ensure_running(paused=self._plan.paused)
        if resumed:
            undone.append(f"resumed {self._guest.name}")

    def _tell_resumed(self) -> None:
        """Report that the guest runs: a caller need not wait for the rest of the undo."""
        try:
            self._callbacks.on_progress(Progress("resumed"))
        except Exception:
            log.exception("the progress callback failed")

    def _keep_everything(self, step: str, what: str, error: BaseException) -> PyxlsnapError:
        """The guest cannot be resumed: memory file and disks are its only copy.

        If the disk snapshots were not taken, the disks still match the memory while the guest stays
        suspended. The cfgfile then names no disks, and the revert does not change them.
        """
        left = [
            f"{self._guest} is suspended and cannot be resumed ({error or type(error).__name__})"
        ]
        finish = f"pyxlsnap snapshot-recover {self._guest.uuid}"
        if self._memory_complete:
            try:
                self._files.publish_memory()
                finish = self._write_way_back()
                self._journal.clear()
            except (PyxlsnapError, OSError) as e:
                left.append(f"its memory is in {self._files.memory} ({e})")
        self._files.close()
        return NeedsAttention(
            f"{what}; {'; '.join(left)}; nothing was deleted", step=step, left=left, finish=finish
        )

    def _write_way_back(self) -> str:
        """Write the cfgfile; returns the command that restores the domain from the two files."""
        plan, meta = self._plan, self._plan.metadata
        words = ["pyxlsnap", "snapshot-revert", self._guest.uuid, str(plan.cfgfile)]
        if self._disks_done:
            self._files.publish_cfgfile(plan.places.cfgfile_text)
            return command(words)
        without = SnapshotConfig(meta.name, meta.description, str(plan.memory_path), disks=())
        self._files.publish_cfgfile(cfgfile.render(without))
        return command([*words, "--force"])

    def _result(self, warnings: list[str]) -> Snapshot:
        plan, meta = self._plan, self._plan.metadata
        files = [
            Artefact(kind, str(path), command(["rm", str(path)]))
            for kind, path in (("memory file", plan.memory_path), ("cfgfile", plan.cfgfile))
        ]
        disks, unsaid = self._disk_artefacts()
        return Snapshot(
            name=meta.name,
            domain=self._guest.name,
            domid=self._guest.domid,
            uuid=self._guest.uuid,
            live=plan.live,
            memory_path=str(plan.memory_path),
            cfgfile=str(plan.cfgfile),
            artefacts=(*files, *disks),
            left_out=plan.left_out,
            warnings=(*plan.warnings, *warnings, *unsaid, *self._files.warnings),
            state=meta.state,
            seconds_suspended=self._seconds_suspended,
            seconds_unpaused=self._unpauser.seconds,
            seconds=self._seconds,
        )

    def _disk_artefacts(self) -> tuple[list[Artefact], list[str]]:
        """The disk snapshots made, and warnings of strategies that cannot name theirs."""
        found: list[Artefact] = []
        unsaid: list[str] = []
        for strategy in self._plan.strategies:
            try:
                found += [checked(Artefact, a) for a in strategy.artefacts(self._guest.name)]
            except Exception as e:
                vdevs = ", ".join(strategy.vdevs)
                unsaid.append(f"{vdevs}: {strategy.kind} cannot name its disk snapshots: {e}")
        return found, unsaid


def _in_spite_of_ctrl_c(do: Callable[[], _T]) -> _T:
    """Run a part of the undo; if Ctrl-C interrupts it, run it again."""
    try:
        return do()
    except KeyboardInterrupt:
        return do()
