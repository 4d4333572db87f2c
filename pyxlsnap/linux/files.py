"""New files, written under a temporary name, fsynced and then renamed: never visible half-written.

No function here follows a symbolic link at the final name, or replaces an existing file.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pyxlsnap.errors import AlreadyExists, DiskError, PyxlsnapError, Refused
from pyxlsnap.linux.stalled import answer_within
from pyxlsnap.linux.there import exists, is_dir, lexists
from pyxlsnap.text import readable

#: longest file name in bytes, on the usual filesystems of a dom0
NAME_LIMIT = 255
_HIDDEN_LIMIT = NAME_LIMIT - 15  # a caller may append a suffix
#: what link(2) says where the filesystem has no hard links, or no more for this file
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
#: a filesystem with less free space than this, in bytes, counts as full
_NO_ROOM = 1 << 16
_AT_ONCE_S = 0.5
_SETTLED_S = 2.0
#: mode of a directory that only pyxlsnap uses
_PRIVATE_DIRECTORY = 0o700
_ATTEMPTS = 100
#: mode of a file
_PRIVATE_FILE = 0o600


def hidden_name(path: Path, suffix: str) -> Path:
    """A hidden name in the directory of ``path``: the name of ``path``, shortened if necessary."""
    room = _HIDDEN_LIMIT - len(suffix) - 1
    name = os.fsencode(path.name)
    if len(name) > room:  # this may cut a character in two
        return path.with_name(f".{name[:room].decode(errors='ignore')}{suffix}")
    return path.with_name(f".{path.name}{suffix}")


def temporary_name(path: Path) -> Path:
    """A random hidden name beside ``path``, which no other file has."""
    return hidden_name(path, f".{os.urandom(6).hex()}.tmp")


@contextmanager
def refusing_os_errors() -> Iterator[None]:
    """Turn DiskError and OSError into Refused; for the checks, before anything is changed."""
    try:
        yield
    except DiskError as e:
        raise Refused(str(e)) from e
    except PyxlsnapError:
        raise  # GuestTimeout is an OSError, too
    except OSError as e:
        raise Refused(f"{e.filename}: {e.strerror}" if e.filename else str(e)) from e


class NewFile:
    """A new file, open under a temporary name in the directory of ``path``, with mode 0600.

    The end of a ``with`` block removes the temporary file, unless :meth:`publish` was called.

    :param temporary: the temporary name, for a caller that must know the name beforehand.
    :raises Refused: the directory is not writable.
    """

    def __init__(self, path: Path, *, temporary: Path | None = None) -> None:
        self.path = path
        self.temporary = temporary or temporary_name(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self.temporary, flags, _PRIVATE_FILE)
        except OSError as e:
            raise Refused(
                f"cannot write in {path.parent}: {e.strerror}: make the directory writable, or "
                f"choose another path"
            ) from e
        self.file: BinaryIO = os.fdopen(fd, "wb")

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.discard()

    def fileno(self) -> int:
        """The descriptor, for libxl to write to. Buffered data is flushed first."""
        self.file.flush()
        return self.file.fileno()

    def sync(self) -> None:
        """Flush the content to the disk (fsync). This is slow for a big file."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def publish(self) -> None:
        """Rename the file to ``path`` and make the content and the name durable.

        After an error the temporary file still exists, and ``path`` was not created.

        :raises AlreadyExists: a file of this name was created meanwhile.
        :raises Refused: another process replaced the temporary file.
        :raises OSError: the file or the name could not be made durable.
        """
        self.sync()
        if not os.path.samestat(os.lstat(self.temporary), os.fstat(self.file.fileno())):
            raise Refused(
                f"another process replaced the file {self.temporary} while it was written: choose "
                f"a directory in which only root can write"
            )
        _rename_new(self.temporary, self.path)
        try:
            sync_directory(self.path.parent)
        except OSError:
            os.rename(self.path, self.temporary)  # the name might be lost in a crash
            raise
        self.file.close()

    def discard(self) -> None:
        """Close the file, and remove the temporary file if it still exists."""
        try:
            self.file.close()
        except OSError:
            pass  # for example a full disk: the content is not needed any more
        self.temporary.unlink(missing_ok=True)


def _rename_new(old: Path, new: Path) -> None:
    """Rename a file, but never over an existing file: link, then unlink."""
    try:
        os.link(old, new, follow_symlinks=False)
    except FileExistsError:
        raise AlreadyExists(
            f"{new} exists: it was left as it is; choose another name", where=str(new)
        ) from None
    except OSError as e:
        if e.errno not in NO_LINKS:
            raise
        refuse_existing(new)  # no hard links here: check just before the rename
        os.rename(old, new)
        return
    os.unlink(old)


def refuse_existing(path: Path) -> None:
    """Check that a new file can have this path.

    :raises AlreadyExists: a file or a link (also a dangling link) has this path.
    :raises Refused: no file can have this path: the name is too long, or its directory is not
        accessible.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as e:  # ValueError: a NUL, or a character that no path can have
        why = e.strerror if isinstance(e, OSError) else e
        raise Refused(f"{path}: {why}: choose another name") from e
    raise AlreadyExists(
        f"{path} exists: it was left as it is; choose another name", where=str(path)
    )


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable (fsync)."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def missing_directories(directory: Path) -> list[Path]:
    """The directories that :func:`make_directory` would create, parents first."""
    return [d for d in (*reversed(directory.parents), directory) if not exists(d)]


def make_directory(directory: Path) -> list[Path]:
    """Create a directory (mode 0700) and its parents, as far as they do not exist; durably.

    :returns: the directories that were created, parents first.
    :raises Refused: a directory cannot be created (those already created are removed again), or the
        path is not a directory.
    """
    made: list[Path] = []
    try:
        for attempt in range(_ATTEMPTS):
            _make_directories(missing_directories(directory), made, last=attempt == _ATTEMPTS - 1)
            if exists(directory):
                break
    except OSError as e:
        remove_directories(made)
        raise Refused(
            f"cannot create the directory {e.filename or directory}: {e.strerror}: make its parent "
            f"writable, or choose another path"
        ) from e
    if not is_dir(directory):
        raise Refused(
            f"{directory} is not a directory: move that file away, or choose another path"
        )
    return made


def _make_directories(missing: Sequence[Path], made: list[Path], *, last: bool) -> None:
    """Create directories, parents first, until another operation removes one of them.

    Operations on two domains may begin at once where no directory is there yet. What the other one
    has just made is not ours to remove. What it removes again, as it failed, the caller makes anew.

    :param last: this is the last attempt: a directory whose parent is missing is an error.
    """
    for path in missing:
        try:
            path.mkdir(_PRIVATE_DIRECTORY)
        except FileExistsError:
            if lexists(path) and not is_dir(path):
                raise
            continue
        except FileNotFoundError:
            if last:
                raise
            return
        made.append(path)
        sync_directory(path.parent)


def remove_directories(made: list[Path]) -> list[str]:
    """Undo :func:`make_directory`: remove the empty directories; return a line for each."""
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
def open_regular(path: Path, *, follow: bool = True) -> Iterator[BinaryIO]:
    """Open a regular file for reading. A fifo or a device is refused and cannot block the call.

    :param follow: follow a symbolic link.
    :raises OSError: the file cannot be opened, or is not a regular file.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    fd = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with os.fdopen(fd, "rb") as file:
        yield file


def file_version(file: Path | int) -> tuple[int, ...]:
    """A value that differs if a file was changed, or if another one is in its place.

    :param file: its path, or a descriptor.
    :raises OSError: it is not there.
    """
    found = os.stat(file)  # noqa: PTH116 - a descriptor, too
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def is_settled(changed_ns: int) -> bool:
    """Whether a file was changed so long ago that a change after now will show in its times.

    The kernel notes the time of a change in steps of some milliseconds.

    :param changed_ns: its ``st_ctime_ns``.
    """
    return abs(time.time() - changed_ns / 1e9) > _SETTLED_S


def mount_point(directory: Path) -> str:
    """Where the filesystem of a directory is mounted; of its nearest parent if it is not there."""
    path = Path(os.path.realpath(directory))
    while not os.path.ismount(path) and path != path.parent:
        path = path.parent
    return str(path)


def is_full(directory: Path) -> bool:
    """Whether the filesystem of a directory is full, or almost full.

    False if its server does not answer at once: a guest may be suspended meanwhile.
    """
    try:
        found = answer_within(lambda: os.statvfs(directory), within_s=_AT_ONCE_S)
    except OSError:
        return False
    return found is not None and found.f_bfree * found.f_frsize < _NO_ROOM


def scratch_file() -> BinaryIO:
    """An unnamed file in memory: it can take a program's output when all disks are full."""
    return os.fdopen(os.memfd_create("pyxlsnap"), "w+b")


def scratch_text(file: BinaryIO) -> str:
    """What a program wrote into a :func:`scratch_file`."""
    file.seek(0)
    return readable(file.read())
