"""Files whose storage fails: they are there, and no program can look at them."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from pyxlsnap.memory.reader import Reader


def unreadable(patch: pytest.MonkeyPatch, path: str | Path, number: int = errno.EIO) -> None:
    """From now on no look at a path succeeds. A process that has the file open can go on.

    :param number: the ``errno`` of the error.
    """
    for name in ("stat", "lstat", "open", "unlink"):
        patch.setattr(os, name, failing(getattr(os, name), str(path), number))


def failing(call: Any, path: str, number: int) -> Any:
    """A system call that fails for this path."""

    def maybe(asked: Any, *arguments: Any, **options: Any) -> Any:
        if not isinstance(asked, int) and os.fsdecode(asked) == path:
            raise OSError(number, os.strerror(number), path)
        return call(asked, *arguments, **options)

    return maybe


def reads_fail(patch: pytest.MonkeyPatch, path: Path) -> None:
    """From now on a memory file can be opened, and not be read."""
    real = Reader._read_some

    def fails(self: Reader, length: int) -> bytes:
        if not os.path.samestat(os.fstat(self._f.fileno()), path.stat()):
            return real(self, length)
        error = OSError(errno.EIO, os.strerror(errno.EIO))
        raise self.unreadable(error) from error

    patch.setattr(Reader, "_read_some", fails)
