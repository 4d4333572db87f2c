"""Writing the two files of a snapshot: the memory file and the cfgfile.

Each file is written under a temporary name in its directory, and renamed when it is complete.
"""

from pathlib import Path

from pyxlsnap.cancel import Cancel
from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.linux.files import (
    NewFile,
    make_directory,
    missing_directories,
    open_regular,
    remove_directories,
    temporary_name,
)
from pyxlsnap.memory import read_header, walk, write_header


class SnapshotFiles:
    """The files of one :class:`~pyxlsnap.create.plan.CreatePlan`."""

    def __init__(self, plan: CreatePlan) -> None:
        self._plan = plan
        self._memory: NewFile | None = None
        #: the temporary names; no other program uses them
        self.temporary = temporary_name(plan.memory_path)
        self.temporary_cfgfile = temporary_name(plan.cfgfile)
        #: the directories that :meth:`begin` makes
        self.directories = missing_directories(plan.memory_path.parent)
        self._made: list[Path] = []
        self._published: list[Path] = []

    def begin(self) -> None:
        """Make the memory file, and write its header."""
        self._made = make_directory(self._plan.memory_path.parent)
        self._memory = NewFile(self._plan.memory_path, temporary=self.temporary)
        write_header(
            self._memory.file,
            config_json=self._plan.examined.config.json,
            metadata=self._plan.metadata,
        )

    def fileno(self) -> int:
        """The descriptor to write the stream to."""
        assert self._memory
        return self._memory.fileno()

    def publish_memory(self, cancel: Cancel | None = None) -> None:
        """Check the memory file, whose stream is complete, and give the file its name.

        :raises BadMemoryFile: the file cannot be read back; it keeps its temporary name.
        :raises Cancelled: ``cancel`` was set while the file was read back.
        """
        assert self._memory
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
        return here if here.exists() else self._plan.memory_path

    def withdraw(self) -> list[str]:
        """Remove the published files, the cfgfile first: a cfgfile means that a snapshot exists."""
        undone = []
        while self._published:
            self._published[-1].unlink(missing_ok=True)
            undone.append(f"removed {self._published.pop()}")
        return undone

    def discard(self) -> list[str]:
        """Remove the unpublished memory file, and the directories that :meth:`begin` made."""
        undone = []
        if self._memory:
            if self.temporary.exists():
                undone.append("removed the unfinished memory file")
            self._memory.discard()
        return undone + remove_directories(self._made)

    def close(self) -> None:
        """Close the memory file; leave all files in their places."""
        if self._memory:
            self._memory.file.close()

    def _read_back(self, cancel: Cancel) -> None:
        """Read the memory file as a revert does: a damaged file must not be published."""
        assert self._memory  # (through its descriptor: another file may have its name by now)
        with open_regular(Path(f"/proc/self/fd/{self._memory.fileno()}")) as file:
            header = read_header(file, str(self.temporary))
            file.seek(header.stream_offset)
            walk(file, str(self.temporary), on_bytes=lambda _: cancel.check())
