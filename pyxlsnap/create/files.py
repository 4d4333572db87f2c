"""The two files of a snapshot, as they come to be: the memory file and the cfgfile.

Both are written under temporary names beside their own, and take those when they are whole.
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
        #: the names that are ours from now on
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
        """Where the stream goes."""
        assert self._memory
        return self._memory.fileno()

    def publish_memory(self, cancel: Cancel | None = None) -> None:
        """The stream is complete: the file takes its name.

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
        """Where the memory file is now."""
        here = self.temporary
        return here if here.exists() else self._plan.memory_path

    def withdraw(self) -> list[str]:
        """Remove what was published, the cfgfile first: it says that there is a snapshot."""
        undone = []
        while self._published:
            self._published[-1].unlink(missing_ok=True)
            undone.append(f"removed {self._published.pop()}")
        return undone

    def discard(self) -> list[str]:
        """Remove what was not published, and the directories that were made for it."""
        undone = []
        if self._memory:
            if self.temporary.exists():
                undone.append("removed the unfinished memory file")
            self._memory.discard()
        return undone + remove_directories(self._made)

    def close(self) -> None:
        """Leave everything as it is."""
        if self._memory:
            self._memory.file.close()

    def _read_back(self, cancel: Cancel) -> None:
        """What cannot be reverted is no snapshot: read it as revert will."""
        assert self._memory  # by its descriptor: that is what will be published
        with open_regular(Path(f"/proc/self/fd/{self._memory.fileno()}")) as file:
            header = read_header(file, str(self.temporary))
            file.seek(header.stream_offset)
            walk(file, str(self.temporary), on_bytes=lambda _: cancel.check())
