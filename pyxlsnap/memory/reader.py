"""Reads a memory file that may be truncated or damaged."""

import os
from typing import BinaryIO

from pyxlsnap.errors import BadMemoryFile


class Reader:
    """Reads a memory file from start to end; knows the file's size and the current offset.

    Every read and every skip is checked against the file's size first. So a wrong length field
    costs no memory, and a seek beyond the end (which the system allows) does not hide that the
    file is truncated.

    :param f: a seekable binary file. It is not closed. After the last read, or after an error, its
        position is where the reading stopped.
    :param path: the file's name, for messages.
    :param start: the offset to start at; by default the file's current position.
    :raises BadMemoryFile: the system cannot read the file. Every method raises it, too, also when
        the file ends too early.
    """

    def __init__(self, f: BinaryIO, path: str, *, start: int | None = None) -> None:
        self._f = f
        self._path = path
        try:
            #: offset of the next byte, in bytes from the beginning of the file
            self.offset = f.tell() if start is None else start
            #: size of the file in bytes, when it was opened
            self.size = f.seek(0, os.SEEK_END)
            f.seek(self.offset)
        except OSError as e:
            raise self.unreadable(e) from e

    @property
    def left(self) -> int:
        """Number of bytes from the current offset to the end of the file."""
        return self.size - self.offset

    def read(self, length: int, what: str) -> bytes:
        """Read exactly ``length`` bytes; ``what`` names these bytes in an error message."""
        self._check(length, what)
        parts: list[bytes] = []
        missing = length
        while missing:
            part = self._read_some(missing)
            if not part:  # the file was longer when it was opened
                raise self.bad(f"truncated: the file ends in the {what}")
            parts.append(part)
            missing -= len(part)
            self.offset += len(part)
        return b"".join(parts)

    def skip(self, length: int, what: str) -> None:
        """Skip ``length`` bytes, which must be in the file."""
        self._check(length, what)
        self.offset += length
        try:
            self._f.seek(self.offset)
        except OSError as e:
            raise self.unreadable(e) from e

    def bad(self, message: str, *, offset: int | None = None) -> BadMemoryFile:
        """Make (not raise) the error for a damaged file.

        :param offset: where the damage is; by default the current offset.
        """
        at = self.offset if offset is None else offset
        return BadMemoryFile(f"{message} (at offset {at})", path=self._path)

    def unreadable(self, error: OSError) -> BadMemoryFile:
        """Make (not raise) the error for a file that the system cannot read."""
        return BadMemoryFile(f"cannot be read: {error.strerror or error}", path=self._path)

    def _check(self, length: int, what: str) -> None:
        if length > self.left:
            raise self.bad(
                f"truncated: the {what} needs {length} bytes, but only {self.left} are left"
            )

    def _read_some(self, length: int) -> bytes:
        try:
            return self._f.read(length)
        except OSError as e:
            raise self.unreadable(e) from e
