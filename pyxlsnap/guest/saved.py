"""What a cfgfile and its memory file say of a domain, for the operations that need a snapshot."""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pyxlsnap.errors import BadMemoryFile, ConfigError, OperationFailed
from pyxlsnap.linux.files import file_version, open_regular
from pyxlsnap.linux.owners import who_can_change
from pyxlsnap.linux.read_ahead import read_ahead
from pyxlsnap.linux.stalled import refuse_silent_file
from pyxlsnap.linux.there import exists
from pyxlsnap.memory import Header
from pyxlsnap.model import DomainConfig, SnapshotConfig, check_uuid

log = logging.getLogger(__name__)

#: errors that tell nothing of the memory file: there is no memory to read it ahead, or its
#: filesystem does not tell where it has holes
_NOT_THE_FILE = (errno.ENOMEM, errno.EAGAIN, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def memory_path(config: SnapshotConfig, cfgfile: str) -> Path:
    """The memory file that a cfgfile names.

    :raises ConfigError: the cfgfile names none.
    """
    if not config.memory_path:
        raise ConfigError(
            "names no memory file: use the cfgfile that snapshot-create wrote (its output names "
            "it), or add memory_path",
            file=cfgfile,
            item="memory_path",
        )
    return Path(cfgfile).parent / config.memory_path  # an absolute path stays as it is


def changeable(path: Path) -> list[str]:
    """A reason not to trust a memory file, if others than root can change it.

    :raises OSError: the file is not there.
    """
    found = who_can_change(path)
    return (
        [
            f"others than root can change the memory file {path} ({found}), and its configuration "
            f"names programs and scripts that run as root"
        ]
        if found
        else []
    )


def changeable_place(directory: Path) -> list[str]:
    """A warning, if others than root could change a memory file in a directory (or a new one)."""
    while not exists(directory):
        directory = directory.parent
    found = who_can_change(directory)
    what = "others than root could change the memory file: a revert to it will be risky"
    return [f"{what} ({found})"] if found else []


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open a memory file for reading.

    :raises Refused: its server does not answer.
    :raises BadMemoryFile: the file cannot be opened; or what the body raises of it as a
        :class:`BadMemoryFile`, an :class:`OSError` or a :class:`ValueError`.
    """
    refuse_silent_file(path)
    try:
        with open_regular(path) as file:
            yield file
    except BadMemoryFile as e:
        what = e.message.removeprefix(f"{path}: ")
        raise BadMemoryFile(
            f"{what}; use another copy of the file, or another snapshot", path=str(path)
        ) from e
    except OSError as e:
        raise BadMemoryFile(f"cannot be read: {e.strerror}", path=str(path)) from e
    except ValueError as e:
        raise BadMemoryFile(f"its domain configuration cannot be read: {e}", path=str(path)) from e


def saved_config(header: Header) -> DomainConfig:
    """The configuration of the saved domain.

    :raises ValueError: the configuration, its kind of guest, or its uuid (a part of file names), is
        not valid.
    """
    config = DomainConfig.parse(header.config_json)
    # (The property kind raises its own error.)
    if config.kind and config.uuid == check_uuid(config.uuid):
        return config
    raise ValueError(f"its uuid is {config.uuid!r}")


def read_memory_ahead(path: Path, check: Callable[[], None]) -> None:
    """Read a memory file ahead: its restore then takes less time.

    The restore reads the same: what cannot be read must be found before a domain is destroyed.

    :param check: called often; an exception from it ends the reading.
    :raises BadMemoryFile: the file, or a part of it, cannot be read.
    """
    with reading(path) as file:
        try:
            count = read_ahead(file.fileno(), check)
        except OSError as e:
            if e.errno not in _NOT_THE_FILE:
                raise
            log.info("%s was not read ahead: %s", path, e.strerror)
        else:
            log.info("read %d MiB of %s ahead", count >> 20, path)


def open_stream(path: Path, version: tuple[int, ...], offset: int) -> BinaryIO:
    """Open a memory file at its stream: it is there for the restore whatever becomes of its name.

    :param version: what :func:`~pyxlsnap.linux.files.file_version` said when the file was checked.
    :param offset: where the stream begins, bytes.
    :raises OSError: it cannot be opened.
    :raises OperationFailed: it is not the file that was checked, or has changed since.
    """
    with open_regular(path) as file:
        if file_version(file.fileno()) != version:
            raise OperationFailed(
                f"{path} was changed while the operation was prepared: run the command again",
                step="check again",
            )
        copy = os.fdopen(os.dup(file.fileno()), "rb")
    copy.seek(offset)
    return copy
