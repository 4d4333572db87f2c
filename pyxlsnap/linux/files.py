"""Files that are whole or not there: written under a temporary name, fsynced, then published.

Nothing here ever follows a symbolic link at the final name, or replaces a file that exists.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pyxlsnap.errors import AlreadyExists, DiskError, PyxlsnapError, Refused

#: bytes of a file's name, on every filesystem that a dom0 has
NAME_LIMIT = 255
_HIDDEN_LIMIT = NAME_LIMIT - 15  # something may be added
_NO_ROOM = 1 << 16
_OURS = 0o700
_PRIVATE = 0o600


def hidden_name(path: Path, suffix: str) -> Path:
    """A hidden name beside ``path``: of its own name as much as there is room for."""
    room = _HIDDEN_LIMIT - len(suffix) - 1
    name = os.fsencode(path.name)
    if len(name) > room:  # perhaps in the middle of a character
        return path.with_name(f".{name[:room].decode(errors='ignore')}{suffix}")
    return path.with_name(f".{path.name}{suffix}")


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that nobody else has."""
    return hidden_name(path, f".{secrets.token_hex(6)}.tmp")


@contextmanager
def refusing_os_errors() -> Iterator[None]:
    """While nothing has been tried: what cannot be looked at is a refusal."""
    try:
        yield
    except DiskError as e:
        raise Refused(str(e)) from e
    except PyxlsnapError:
        raise  # GuestTimeout is an OSError, too
    except OSError as e:
        raise Refused(f"{e.filename}: {e.strerror}" if e.filename else str(e)) from e


class NewFile:
    """A file in the making: open under a temporary name in the directory of ``path``.

    Mode 0600. As a context manager it removes the temporary file unless :meth:`publish` was called.

    :param temporary: that name, for a caller that has to know it beforehand.

    :raises Refused: the directory cannot be written to.
    """

    def __init__(self, path: Path, *, temporary: Path | None = None) -> None:
        self.path = path
        self.temporary = temporary or temporary_name(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self.temporary, flags, _PRIVATE)
        except OSError as e:
            raise Refused(
                f"cannot write in {path.parent}: {e.strerror}: see to that, or name another place"
            ) from e
        self.file: BinaryIO = os.fdopen(fd, "wb")

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.discard()

    def fileno(self) -> int:
        """The descriptor, for libxl to write to; what was buffered is flushed first."""
        self.file.flush()
        return self.file.fileno()

    def sync(self) -> None:
        """Put the content on the disk. Slow on a big file."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def publish(self) -> None:
        """Give the file its name, durably.

        :raises AlreadyExists: the name has been taken meanwhile.
        :raises Refused: somebody has put another file in the place of the temporary one.
        :raises OSError: it could not be made durable. Then, too, the temporary file is still there.
        """
        self.sync()
        if not os.path.samestat(os.lstat(self.temporary), os.fstat(self.file.fileno())):
            raise Refused(
                f"{self.temporary} is not the file that was written, somebody has put another in "
                f"its place: choose a directory in which only root can write"
            )
        _rename_new(self.temporary, self.path)
        try:
            sync_directory(self.path.parent)
        except OSError:
            os.rename(self.path, self.temporary)  # a name that may not last is none
            raise
        self.file.close()

    def discard(self) -> None:
        """Remove the temporary file, if it is still there."""
        try:
            self.file.close()
        except OSError:
            pass  # a full disk: what could not be written is not wanted any more
        self.temporary.unlink(missing_ok=True)


def _rename_new(old: Path, new: Path) -> None:
    """Rename without replacing: link, then unlink."""
    try:
        os.link(old, new, follow_symlinks=False)
    except FileExistsError:
        raise AlreadyExists(
            f"{new} exists: it was left as it is; choose another name", where=str(new)
        ) from None
    except OSError as e:
        if e.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        refuse_existing(new)  # a filesystem without hard links: the gap is as small as can be
        os.rename(old, new)
        return
    os.unlink(old)


def refuse_existing(path: Path) -> None:
    """Refuse to make a file of that name.

    :raises AlreadyExists: something has it, be it a dangling link.
    :raises Refused: there can be none: it is too long, its directory cannot be looked into.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as e:  # ValueError: a NUL, or what no path can hold
        why = e.strerror if isinstance(e, OSError) else e
        raise Refused(f"{path}: {why}: choose another name") from e
    raise AlreadyExists(
        f"{path} exists: it was left as it is; choose another name", where=str(path)
    )


def sync_directory(directory: Path) -> None:
    """Make names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def missing_directories(directory: Path) -> list[Path]:
    """What :func:`make_directory` would make, parents first."""
    return [d for d in (*reversed(directory.parents), directory) if not d.exists()]


def make_directory(directory: Path) -> list[Path]:
    """Make a directory of our own (0700) with its parents; return those that are new.

    :raises Refused: it cannot be made, or is not a directory.
    """
    made = []
    try:
        for path in missing_directories(directory):
            try:
                path.mkdir(_OURS)
            except FileExistsError:
                continue  # another operation has just made it: it is not ours to remove
            made.append(path)
    except OSError as e:
        remove_directories(made)
        raise Refused(
            f"cannot make the directory {path}: {e.strerror}: see to that, or name another place"
        ) from e
    if not directory.is_dir():
        raise Refused(f"{directory} is not a directory: move it away, or name another place")
    return made


def remove_directories(made: list[Path]) -> list[str]:
    """Take back :func:`make_directory`, as far as they are still empty; say which."""
    removed = []
    for path in reversed(made):
        try:
            path.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            break
        removed.append(f"removed the directory {path}")
    return removed


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, if it is a regular one: no waiting on a fifo, no device.

    :raises OSError: it cannot be opened, or is not a regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with os.fdopen(fd, "rb") as file:
        yield file


def is_full(directory: Path) -> bool:
    """Whether its filesystem has no room left, or next to none."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return False
    return found.f_bfree * found.f_frsize < _NO_ROOM


def scratch_file() -> BinaryIO:
    """A file without a name, in memory: for what a program says, though every disk be full."""
    return os.fdopen(os.memfd_create("pyxlsnap"), "w+b")
