"""The delete: the sequence, readable from top to bottom in :meth:`Deletion.steps`.

Slow work comes first: whatever stands on a disk snapshot is made independent of it. Until then
nothing is lost, and the delete can be cancelled. Then the cfgfile is deleted, as the first part of
the snapshot: a cfgfile means that there is a whole snapshot, so it must not outlive any other part,
wherever the delete is cut off. The journal has what the cfgfile said, so that the delete can be
finished without it.
"""

import logging
import os
import time
from dataclasses import replace
from pathlib import Path

from pyxlsnap import cfgfile
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.delete.plan import DeletePlan, refuse_unread
from pyxlsnap.errors import (
    BadMemoryFile,
    ConfigError,
    Interrupted,
    NeedsAttention,
    OperationFailed,
    PyxlsnapError,
)
from pyxlsnap.guest.saved import reading, saved_config
from pyxlsnap.journal import DeleteEntry, Journal
from pyxlsnap.linux.files import sync_directory
from pyxlsnap.memory import read_header
from pyxlsnap.request import Callbacks
from pyxlsnap.results import Deleted, Progress, Step

log = logging.getLogger(__name__)


class Deletion:
    """One run of a :class:`~pyxlsnap.delete.plan.DeletePlan`.

    :param entry: an earlier run of this delete, which was killed or failed.
    """

    def __init__(
        self,
        plan: DeletePlan,
        callbacks: Callbacks | None = None,
        cancel: Cancel | None = None,
        *,
        entry: DeleteEntry | None = None,
    ) -> None:
        self._plan = plan
        self._parts = plan.parts
        self._callbacks = callbacks or Callbacks()
        self._cancel = cancel or Cancel()
        self._journal = Journal(plan.parts.uuid)
        self._killed = entry
        self._entry = entry if entry and entry.begun else self._first_entry()
        self._lines: list[str] = []

    def steps(self) -> list[Step]:
        """The sequence."""
        return [
            ("journal", self._write_journal),
            ("free disk snapshots", self._free_disks),
            ("cfgfile", self._delete_cfgfile),
            ("memory file", self._delete_memory),
            ("disk snapshots", self._delete_disks),
        ]

    def run(self) -> Deleted:
        """Do all steps.

        :raises OperationFailed, Interrupted, NeedsAttention: as
            :func:`pyxlsnap.delete.operation.delete`.
        """
        step = ""
        try:
            for step, do in self.steps():
                if not self._entry.begun:
                    self._cancel.check()
                log.debug("%s: %s", self._parts.name, step)
                self._callbacks.on_progress(Progress(step))
                do()
        except BaseException as cause:
            raise self._failed(step, cause) from cause
        self._journal.clear()
        return self._result()

    def _first_entry(self) -> DeleteEntry:
        parts = self._parts
        return DeleteEntry(
            request=self._plan.request,
            uuid=parts.uuid,
            domain=parts.domain,
            name=parts.name,
            memory_path=str(parts.memory_path),
            cfgfile=self._plan.request.cfgfile,
            disks=parts.requests,
            devices=parts.devices,
            kinds=dict(parts.kinds),
            paused=False,
            monitor=False,
            started=time.time(),
        )

    def _write_journal(self) -> None:
        (self._journal.rewrite if self._killed else self._journal.write)(self._entry)

    def _free_disks(self) -> None:
        for strategy in self._plan.strategies:
            self._lines += strategy.prepare_delete()

    def _delete_cfgfile(self) -> None:
        begun = replace(self._entry, begun=True)
        self._journal.rewrite(begun)
        self._entry = begun
        self._delete_file(self._plan.cfgfile, is_ours=self._is_cfgfile)

    def _delete_memory(self) -> None:
        self._delete_file(self._parts.memory_path, is_ours=self._is_memory)

    def _delete_file(self, path: Path, *, is_ours: bool) -> None:
        if is_ours:
            os.unlink(path)
            sync_directory(path.parent)
            self._lines.append(f"removed {path}")

    def _delete_disks(self) -> None:
        left = []
        for strategy in self._plan.strategies:
            try:
                self._lines += strategy.delete()
            except Exception as e:  # the other disk snapshots must still be deleted
                left.append(str(e) or type(e).__name__)
        if left:
            raise PyxlsnapError("; ".join(left))

    @property
    def _is_cfgfile(self) -> bool:
        """Whether the cfgfile is there, with the content that was read before."""
        try:
            return cfgfile.read(self._plan.cfgfile) == self._plan.request.config
        except ConfigError as e:
            refuse_unread(e)
            return False  # deleted already, or another file has its name by now

    @property
    def _is_memory(self) -> bool:
        """Whether the memory file is there, and belongs to this snapshot."""
        path = self._parts.memory_path
        try:
            with reading(path) as file:
                header = read_header(file, str(path))
                uuid = saved_config(header).uuid
        except BadMemoryFile as e:
            refuse_unread(e)
            return False  # the same
        name = header.metadata and header.metadata.name
        return (name, uuid) == (self._parts.name, self._parts.uuid)

    # When something fails

    def _failed(self, step: str, cause: BaseException) -> PyxlsnapError:
        parts = self._parts
        interrupted = isinstance(cause, Cancelled | KeyboardInterrupt)
        said = f"was interrupted ({step})" if interrupted else f"failed ({step}): {_text(cause)}"
        what = f"deleting the snapshot {parts.name} of {parts.domain} {said}"
        if not self._entry.begun:
            self._journal.clear()
            cls = Interrupted if interrupted else OperationFailed
            what += "; nothing was deleted, and the snapshot is whole"
            return cls(what, step=step, undone=self._lines)
        left = f"parts of the snapshot {parts.name} of {parts.domain}"
        return NeedsAttention(
            f"{what}; {left} are left: correct the cause, then run the command that finishes it",
            step=step,
            undone=self._lines,
            left=[left],
            finish=f"pyxlsnap snapshot-recover {parts.uuid}",
        )

    def _result(self) -> Deleted:
        return Deleted(
            name=self._parts.name,
            domain=self._parts.domain,
            uuid=self._parts.uuid,
            cfgfile=self._plan.request.cfgfile,
            lines=tuple(self._lines),
        )


def _text(cause: BaseException) -> str:
    if isinstance(cause, OSError) and not isinstance(cause, PyxlsnapError):
        return f"{cause.filename or ''}: {cause.strerror or cause}".removeprefix(": ")
    return str(cause) or type(cause).__name__
