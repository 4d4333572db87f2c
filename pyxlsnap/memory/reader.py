"""Reading a file that may be truncated or damaged, without believing it."""

import os
from typing import BinaryIO

from pyxlsnap.errors import BadMemoryFile


class Source:
    """A memory file, its size and the place reached in it.

    Every read and every skip is checked against the file's size first: a length field that lies
    costs nothing, and a seek beyond the end (which the system allows) cannot hide a truncation.

    :param f: a seekable binary file. Left where the reading stopped, also after an error; not
        closed.
    :param path: its name, for messages.
    :param start: the offset to begin at; the file's current position when it is not given.
    :raises BadMemoryFile: also from every method, when the file ends too early or when the system
        cannot read it.
    """

    def __init__(self, f: BinaryIO, path: str, *, start: int | None = None) -> None:
        self._f = f
        self._path = path
        try:
            #: the offset of the next byte, counted from the file's beginning
            self.offset = f.tell() if start is None else start
            #: the file's size in bytes when it was opened
            self.size = f.seek(0, os.SEEK_END)
            f.seek(self.offset)
        except OSError as e:
            raise self.unreadable(e) from e

    @property
    def left(self) -> int:
        """Bytes between here and the end of the file."""
        return self.size - self.offset

    def read(self, length: int, what: str) -> bytes:
        """Read exactly ``length`` bytes; ``what`` they are is for the message."""
        self._check(length, what)
        parts: list[bytes] = []
        missing = length
        while missing:
            part = self._read_some(missing)
            if not part:  # it was longer when it was opened
                raise self.bad(f"truncated in the {what}")
            parts.append(part)
            missing -= len(part)
            self.offset += len(part)
        return b"".join(parts)

    def skip(self, length: int, what: str) -> None:
        """Step over ``length`` bytes that are there."""
        self._check(length, what)
        self.offset += length
        try:
            self._f.seek(self.offset)
        except OSError as e:
            raise self.unreadable(e) from e

    def bad(self, message: str, *, offset: int | None = None) -> BadMemoryFile:
        """Make (not raise) the error that names an offset, by default where reading stopped."""
        at = self.offset if offset is None else offset
        return BadMemoryFile(f"{message} (at offset {at})", path=self._path)

    def unreadable(self, error: OSError) -> BadMemoryFile:
        """Make the error for a file that the system cannot read."""
        return BadMemoryFile(f"cannot be read: {error.strerror or error}", path=self._path)

    def _check(self, length: int, what: str) -> None:
        if length > self.left:
            raise self.bad(f"truncated: the {what} needs {length} bytes, {self.left} are left")

    def _read_some(self, length: int) -> bytes:
        try:
            return self._f.read(length)
        except OSError as e:
            raise self.unreadable(e) from e
