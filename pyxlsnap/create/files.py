"""Writing the two files of a snapshot: the memory file and the cfgfile.

Each file is written under a temporary name in its directory, and renamed when it is complete.
"""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pyxlsnap.cancel import Cancel
from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.errors import OperationFailed
from pyxlsnap.linux.files import (
    NewFile,
    make_directory,
    missing_directories,
    open_regular,
    remove_directories,
    temporary_name,
)
from pyxlsnap.linux.stalled import answer_within
from pyxlsnap.linux.there import may_exist
from pyxlsnap.memory import read_header, walk, write_header
from pyxlsnap.memory.receiver import Receiver
from pyxlsnap.memory.writer import StreamWriter

_MIB = 1 << 20
#: MiB a second that no disk reaches
_NO_LIMIT = 1 << 30
#: seconds for the storage of the memory file, in the undo (to remove a big file takes some time)
_ANSWER_S = 60.0


class SnapshotFiles:
    """The files of one :class:`~pyxlsnap.create.plan.CreatePlan`."""

    def __init__(self, plan: CreatePlan) -> None:
        self._plan = plan
        self._memory: NewFile | None = None
        self._writer: StreamWriter | None = None
        self._receiver: Receiver | None = None
        #: the temporary names; no other program uses them
        self.temporary = temporary_name(plan.memory_path)
        self.temporary_cfgfile = temporary_name(plan.cfgfile)
        #: the directories that :meth:`begin` makes
        self.directories = missing_directories(plan.memory_path.parent)
        self._made: list[Path] = []
        self._published: list[Path] = []

    def begin(self) -> None:
        """Make the memory file. Its header is written when the stream comes to its first page.

        :raises UsageError: no header can hold the configuration or the metadata.
        """
        self._made = make_directory(self._plan.memory_path.parent)
        self._memory = NewFile(self._plan.memory_path, temporary=self.temporary)
        self._write_header(BytesIO())  # refuses what no header can hold
        fd, path = self._memory.fileno(), str(self._plan.memory_path)
        max_rate = int(min(self._plan.request.max_rate or 0, _NO_LIMIT) * _MIB)
        self._writer = StreamWriter(fd, self._begin_stream, path, max_rate=max_rate)

    def receiver(
        self, abort: Callable[[], bool], check: Callable[[], None] = lambda: None
    ) -> Receiver:
        """Writes the stream that comes through its pipe: see :class:`Receiver`."""
        assert self._writer
        self._receiver = Receiver(self._writer, abort, check)
        return self._receiver

    def lift_limit(self) -> None:
        """Write as fast as possible from now on (``max_rate``). Any thread may call this."""
        if self._writer:
            self._writer.lift_limit()

    @property
    def warnings(self) -> list[str]:
        """What is to be said of the memory file, whose stream is complete."""
        warning = self._writer.written.warning if self._writer else None
        return [warning] if warning else []

    def publish_memory(self, cancel: Cancel | None = None) -> None:
        """Check the memory file, whose stream is complete, and give the file its name.

        :raises BadMemoryFile: the file cannot be read back; it keeps its temporary name.
        :raises Cancelled: ``cancel`` was set while the file was read back.
        """
        assert self._memory
        assert self._writer
        self._writer.punch()
        self._memory.sync()
        self._read_back(cancel or Cancel())
        self._memory.publish()
        self._published.append(self._plan.memory_path)

    def publish_cfgfile(self, text: str) -> None:
        """Write the cfgfile under its name."""
        with NewFile(self._plan.cfgfile, temporary=self.temporary_cfgfile) as new:
            new.file.write(text.encode())
            new.publish()
        self._published.append(self._plan.cfgfile)

    @property
    def memory(self) -> Path:
        """The present path of the memory file: temporary or final."""
        here = self.temporary
        return here if may_exist(here) else self._plan.memory_path

    def withdraw(self) -> list[str]:
        """Remove the published files, the cfgfile first: a cfgfile means that a snapshot exists."""
        undone = []
        while self._published:
            self._published[-1].unlink(missing_ok=True)
            undone.append(f"removed {self._published.pop()}")
        return undone

    def discard(self) -> list[str]:
        """Remove the unpublished memory file, and the directories that :meth:`begin` made.

        :raises OperationFailed: their storage does not answer, and they may be left.
        """
        undone = answer_within(self._discard, within_s=_ANSWER_S)
        if undone is None:
            raise OperationFailed(
                f"the storage of {self.temporary} does not answer: this unfinished memory file may "
                f"be left",
                step="undo",
            )
        return undone

    def _discard(self) -> list[str]:
        if self._receiver:
            self._receiver.ended()  # the number of a file that is written must not be closed
        undone = []
        if self._memory:
            if may_exist(self.temporary):
                undone.append("removed the unfinished memory file")
            self._memory.discard()
        return undone + remove_directories(self._made)

    def close(self) -> None:
        """Close the memory file, unless it is still written; leave all files in their places."""
        written = self._receiver and not self._receiver.ended(within_s=0.0)
        if self._memory and not written:
            self._memory.file.close()

    def _begin_stream(self, before: int) -> int:
        assert self._memory
        size = self._write_header(self._memory.file, before)
        self._memory.file.flush()
        return size

    def _write_header(self, out: BinaryIO, before: int = 0) -> int:
        plan = self._plan
        config_json = plan.examined.config.json
        return write_header(out, config_json=config_json, metadata=plan.metadata, before=before)

    def _read_back(self, cancel: Cancel) -> None:
        """Read the memory file as a revert does: a damaged file must not be published."""
        assert self._memory  # (through its descriptor: another file may have its name by now)
        with open_regular(Path(f"/proc/self/fd/{self._memory.fileno()}")) as file:
            header = read_header(file, str(self.temporary))
            file.seek(header.stream_offset)
            walk(file, str(self.temporary), on_bytes=lambda _: cancel.check())
