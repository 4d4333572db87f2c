"""The revert: the sequence, readable from top to bottom in :meth:`Reversion.steps`.

From ``destroy`` on nothing is undone. Every step can be done again, so the same command finishes
a revert that was interrupted.
"""

import logging
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, BinaryIO

from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.disks.kept import drop_kept
from pyxlsnap.disks.registry import revert_all
from pyxlsnap.disks.side_by_side import texts
from pyxlsnap.errors import (
    DomainNotFound,
    Interrupted,
    NeedsAttention,
    OperationFailed,
    PyxlsnapError,
    Refused,
)
from pyxlsnap.guest import checks
from pyxlsnap.guest.destroy import destroy
from pyxlsnap.guest.dom0_memory import Room
from pyxlsnap.guest.held_memory import set_target_back
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.guest.resume import patiently
from pyxlsnap.guest.untouched import BeforeDestroy
from pyxlsnap.journal import Journal, RevertEntry, boot_id
from pyxlsnap.model import KEPT_SUFFIX, RunState
from pyxlsnap.request import Callbacks, revert_command
from pyxlsnap.results import Progress, Reverted, Step
from pyxlsnap.revert.last_look import look_again, open_memory
from pyxlsnap.revert.other_watch import ending_xl
from pyxlsnap.revert.plan import RevertPlan
from pyxlsnap.revert.ready import Ready, not_taken_back

log = logging.getLogger(__name__)


class Reversion:
    """One run of a :class:`~pyxlsnap.revert.plan.RevertPlan`."""

    def __init__(
        self,
        host: Host,
        plan: RevertPlan,
        callbacks: Callbacks | None = None,
        cancel: Cancel | None = None,
        *,
        present_cfgfile: str = "",
    ) -> None:
        self._host = host
        self._plan = plan
        self._callbacks = callbacks or Callbacks()
        self._cancel = cancel or Cancel()
        self._room = Room(host, plan.restored)
        self._journal = Journal(plan.config.uuid)
        #: an earlier run of this revert, which was killed
        cfgfile = plan.request.cfgfile
        self._killed = self._journal.unfinished_revert(cfgfile)
        #: a create that left the guest suspended: its journal stays until the destroy
        self._suspended = self._journal.left_suspended(cfgfile)
        #: the earlier run had begun to destroy the domain
        self._finishing = self._killed is not None and self._killed.destroy_begun
        kept = self._killed.present_cfgfile if self._killed else ""
        self._present_cfgfile = present_cfgfile or kept
        #: the domain runs, and a recovery will find in the journal what is made beforehand
        self._prepares = bool(plan.guest and not self._finishing and not self._suspended)
        self._entry = self._killed or self._first_entry()
        self._ready = Ready(plan, self._callbacks)
        self._destroying = False
        self._off_since: float | None = None
        self._seconds_off = 0.0
        self._before: BeforeDestroy | None = None
        self._restoring = False
        self._open = ExitStack()
        self._memory: BinaryIO | None = None
        self._new: Guest | None = None
        self._warnings = self._about_another_snapshot()
        self._seconds: dict[str, float] = {}

    def steps(self) -> list[Step]:
        """The sequence."""
        return [
            ("journal", self._write_journal),
            ("prepare", self._prepare),
            ("memory", self._make_room),
            ("check again", self._check_again),
            ("destroy", self._destroy),
            ("disks", self._revert_disks),
            ("restore", self._restore),
            ("unpause", self._unpause),
            ("monitor", self._keep_watched),
            ("clean up", self._finish_disks),
        ]

    def run(self) -> Reverted:
        """Do all steps.

        :raises Refused, OperationFailed, Interrupted, NeedsAttention: as
            :func:`pyxlsnap.revert.operation.revert`.
        """
        step = ""
        try:
            for step, do in self.steps():
                if not self._destroying:
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
            self._ready.close()
            if self._before:
                self._before.close()
            self._open.close()
        self._journal.clear()
        return self._result()

    def _write_journal(self) -> None:
        self._entry = self._first_entry()
        if self._suspended:
            return
        (self._journal.rewrite if self._killed else self._journal.write)(self._entry)

    def _check_again(self) -> None:
        look_again(self._plan)
        self._memory = self._open.enter_context(open_memory(self._plan))

    def _first_entry(self) -> RevertEntry:
        plan = self._plan
        return RevertEntry(
            # A later run reads the cfgfile again: the user may have corrected it.
            request=replace(plan.request, domain=self._known_as(), config=None),
            uuid=plan.config.uuid,
            domid=plan.guest.domid if plan.guest else None,
            domain=plan.config.name,
            name=plan.name,
            memory_path=str(plan.memory_path),
            cfgfile=str(plan.cfgfile),
            disks=plan.requests,
            devices=plan.devices,
            kinds={v: s.kind for s in plan.strategies for v in s.vdevs},
            paused=plan.state is RunState.PAUSED,
            monitor=self._callbacks.start_monitor is not None,
            started=time.time(),
            boot=boot_id(),
            prepares=self._prepares,
            destroy_begun=self._finishing,
            replaced_uuid=self._replaced_uuid(),
            present_cfgfile=self._present_cfgfile,
            disk_state=self._disk_state(),
        )

    def _disk_state(self) -> dict[str, str]:
        return {k: v for s in self._plan.strategies for k, v in s.state().items()}

    def _about_another_snapshot(self) -> list[str]:
        """A warning, if the killed revert was one to another snapshot: this one drops its own."""
        killed = self._killed
        if killed is None or not killed.destroy_begun or killed.name == self._plan.name:
            return []
        return [
            f"the interrupted revert to {killed.name} may have kept disks, under names that end in "
            f".{killed.name}{KEPT_SUFFIX}: remove them when nobody needs them"
        ]

    def _replaced_uuid(self) -> str:
        guest = self._plan.guest
        return guest.uuid if guest and guest.uuid != self._plan.config.uuid else ""

    def _known_as(self) -> str:
        """The uuid, or the name if a domain with another uuid is replaced.

        Both find the domain before its destroy and after its restore.
        """
        return self._plan.config.name if self._replaced_uuid() else self._plan.config.uuid

    def _prepare(self) -> None:
        if self._prepares:
            self._ready.make(self._cancel.check)

    def _make_room(self) -> None:
        self._room.prepare(self._plan.guest, self._cancel.check)

    def _destroy(self) -> None:
        with ending_xl(self._plan.config.name, self._plan.guest) as warnings:
            if guest := self._plan.guest:
                self._destroy_guest(guest)
        self._warnings += warnings
        # If another program has started the domain meanwhile, its disks are in use.
        checks.refuse_name_or_uuid_in_use(self._host, self._plan.config, None)

    def _destroy_guest(self, guest: Guest) -> None:
        # If the domain ended meanwhile, another program may be starting it again.
        self._before = BeforeDestroy(guest, dying=self._finishing)
        checks.notice_rename(guest)  # it would be restored under its old name
        self._begin()
        self._destroying = True
        self._off_since = time.monotonic()
        destroy(guest)

    def _say(self, **more: Any) -> None:
        """Note in the journal what helps a recovery; a failure to write is only logged."""
        try:
            self._note(**more)
        except OSError as e:
            log.warning("%s: %s", self._journal.path, e.strerror)

    def _begin(self) -> None:
        """Note in the journal that the revert begins to change things; a recovery must know."""
        self._note(destroy_begun=True, disk_state=self._disk_state())

    def _note(self, **more: Any) -> None:
        self._entry = replace(self._entry, **more)
        self._journal.rewrite(self._entry)

    def _revert_disks(self) -> None:
        if not self._entry.destroy_begun:  # the domain was off
            self._begin()
        self._destroying = True
        with self._room.lent():
            revert_all(self._plan.strategies)

    def _restore(self) -> None:
        plan = self._plan
        checks.refuse_name_or_uuid_in_use(self._host, plan.config, None)
        self._warnings += self._room.confirm()
        self._restoring = True
        assert self._memory
        self._new = self._host.restore(plan.restored, self._memory.fileno())
        self._room.release()
        # Before the journal has the domain: a recovery would only unpause it then.
        self._warnings += set_target_back(self._new, plan.config, plan.restored)
        self._say(restored_domid=self._new.domid)

    def _unpause(self) -> None:
        assert self._new
        self._ready.watch.begin()
        if self._plan.state is RunState.RUNNING:
            patiently(self._new, self._new.unpause, self._plan.waiting)
        if self._off_since is not None:
            self._seconds_off = time.monotonic() - self._off_since

    def _keep_watched(self) -> None:
        assert self._new
        self._warnings += self._ready.watch.keep_watched(self._new.name, self._new.uuid)

    def _finish_disks(self) -> None:
        assert self._new
        self._warnings += drop_kept(self._plan.strategies, self._new.domid)

    # When something fails

    def _failed(self, step: str, cause: BaseException) -> PyxlsnapError:
        plan = self._plan
        interrupted = isinstance(cause, Cancelled | KeyboardInterrupt)
        what = f"reverting {plan.config.name} to {plan.name} " + (
            f"was interrupted ({step})"
            if interrupted
            else f"failed ({step}): {'; '.join(texts(cause))}"
        )
        if self._present_cfgfile:
            what += f" (the snapshot of the present state stays: {self._present_cfgfile})"
        if not self._finishing and (not self._destroying or self._is_untouched()):
            self._room.give_back()
            if self._prepares and self._entry.destroy_begun:
                # Else a recovery would do the revert if the domain is off by then.
                self._say(destroy_begun=False)
            if left := self._ready.undo() if self._prepares else []:
                return not_taken_back(what, plan.config.name, plan.config.uuid, step, left)
            self._clear_journal()
            if type(cause) is Refused and not self._present_cfgfile:
                return Refused(f"{what}; nothing was changed")
            cls = Interrupted if interrupted else OperationFailed
            return cls(f"{what}; nothing was changed", step=step)
        left = self._left()
        if self._new is None:
            name = plan.config.name
            disks = f"the disks of {name}" if left else f"{name} is off, and its disks"
            left.append(f"{disks} may be reverted already")
        self._say(user_informed=True)
        return NeedsAttention(
            f"{what}; {'; '.join(left)}; the snapshot is intact: run the command again to finish",
            step=step,
            left=left,
            finish=revert_command(self._entry.request),
        )

    def _clear_journal(self) -> None:
        """Remove the journal of this revert, which has changed nothing."""
        if not self._suspended:
            self._journal.clear()
            return
        try:
            if self._journal.read() != self._suspended:
                self._journal.rewrite(self._suspended)
        except (Refused, OSError) as e:
            log.warning("the journal %s is that of this revert: %s", self._journal.path, e)

    def _is_untouched(self) -> bool:
        """Whether the destroy has not yet changed the domain."""
        return self._before is not None and self._before.is_unchanged()

    def _left(self) -> list[str]:
        """The domain that is there after a failed restore, or after a later failure.

        The host has removed what a failed restore left. So a domain with its uuid was started by a
        user or program just before the restore.
        """
        if not self._restoring:
            return []
        try:
            found = self._host.find(self._plan.config.uuid)
        except DomainNotFound:
            return []
        except PyxlsnapError as e:
            return [str(e)]
        if self._new is not None:
            return [f"{found} is restored, but a later step failed"]
        return [f"{found} was started meanwhile, and was left alone"]

    def _result(self) -> Reverted:
        assert self._new
        plan = self._plan
        return Reverted(
            name=plan.name,
            domain=plan.config.name,
            domid=self._new.domid,
            uuid=self._new.uuid,
            state=plan.state,
            disks=tuple(v for s in plan.strategies for v in s.vdevs),
            kept=self._present_cfgfile,
            warnings=(*plan.warnings, *self._warnings),
            seconds=self._seconds,
            seconds_off=self._seconds_off,
        )
