"""The lock of a domain, and the note of what is in flight on it.

The lock (``/run/pyxlsnap/<uuid>.lock``) is an OFD lock: it belongs to the open file, not to the
process, so that caller and worker hold it together and it falls when both are gone. The journal
(``/var/lib/pyxlsnap/<uuid>.journal``) is written before anything is touched and removed at the end;
one that is still there says what an operation that was killed had begun.
"""

import fcntl
import json
import logging
import os
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pyxlsnap.errors import Busy, Refused
from pyxlsnap.files import NewFile, make_directory, sync_directory, temporary_name
from pyxlsnap.model import Disk, DiskRequest

log = logging.getLogger(__name__)

LOCK_DIR = Path("/run/pyxlsnap")
JOURNAL_DIR = Path("/var/lib/pyxlsnap")
#: is given the uuid and the descriptor of a lock that is held
ShareLock = Callable[[str, int], None]

#: A lock that goes from one process of ours to another falls in between, where somebody may take
#: it for a look. So long is waited for that.
RIVAL_S = 10.0
_POLL_S = 0.01
_FLOCK = struct.Struct("hhqqi4x")  # struct flock, 64-bit


def boot_id() -> str:
    """What tells this boot of the host from others."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def write_lock() -> bytes:
    """The struct flock for a write lock on a whole file."""
    return _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


class DomainLock:
    """The right to work on a domain, held while :attr:`fd` (or a copy of it) is open.

    :param wait_s: for so long, wait for somebody else who has it.
    :param kind: another right than that, such as to watch it.
    :raises Busy: somebody else has it.
    """

    def __init__(
        self,
        uuid: str,
        *,
        domain: str,
        wait_s: float = 0.0,
        directory: Path | None = None,
        kind: str = "lock",
    ) -> None:
        directory = directory or LOCK_DIR
        make_directory(directory)
        path = directory / f"{uuid}.{kind}"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self.fd = os.open(path, flags, 0o600)
        except OSError as e:
            raise Refused(
                f"cannot open the lock {path}: {e.strerror}: see what is there, and move it away"
            ) from e
        end = time.monotonic() + wait_s
        while not self._take():
            if time.monotonic() >= end:
                os.close(self.fd)
                raise Busy(
                    f"another snapshot operation on {domain} is under way (lock {path}): wait for "
                    f"it",
                    domain=domain,
                )
            time.sleep(_POLL_S)

    def _take(self) -> bool:
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, write_lock())
        except (BlockingIOError, PermissionError):  # fcntl(2): either, for a lock that is held
            return False
        return True

    def release(self) -> None:
        """The operation is over: give the lock back. Idempotent."""
        if self.fd >= 0:
            unlock(self.fd)
            os.close(self.fd)
            self.fd = -1


def unlock(fd: int) -> None:
    """Let a lock fall, whoever else has a copy of the descriptor (a child forked meanwhile)."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))


@dataclass(frozen=True, slots=True)
class Entry:
    """What an operation is about to do, enough for another process to undo or finish it."""

    operation: str
    uuid: str
    domid: int
    domain: str
    name: str
    #: files that are ours until the operation is done
    temporary: tuple[str, ...] = ()
    memory_path: str = ""
    cfgfile: str = ""
    disks: tuple[DiskRequest, ...] = ()
    #: the same disks as the guest has them
    devices: tuple[Disk, ...] = ()
    #: what the disk strategies have to know (:meth:`pyxlsnap.ports.DiskStrategy.state`)
    disk_state: dict[str, str] = field(default_factory=dict)
    #: the kind of strategy that stands for each disk, by vdev
    kinds: dict[str, str] = field(default_factory=dict)
    #: seconds since the epoch
    started: float = 0.0
    #: its owner had paused the domain; of a revert: it is to be paused afterwards
    paused: bool = False
    #: somebody is to watch the domain afterwards (:data:`pyxlsnap.ports.StartMonitor`)
    monitor: bool = False
    #: of a revert: the destroy of the domain may have begun
    begun: bool = False
    #: the boot of the host that ``domid`` belongs to
    boot: str = ""
    #: of a revert: the domain that was restored, and may have run since
    restored: int = -1
    #: of a revert: the uuid of the domain in whose place it puts another, if that has another
    replaced: str = ""
    #: of a revert: it has failed, and the user knows how to finish it
    told: bool = False
    #: of a revert: the cfgfile of the snapshot of the present, if one was taken
    kept: str = ""
    #: of a revert: the command that finishes it
    words: tuple[str, ...] = ()
    #: directories that are ours, if they are there, parents first
    directories: tuple[str, ...] = ()


def unfinished(directory: Path | None = None) -> list[str]:
    """The uuids of the domains that have a journal."""
    return sorted(p.stem for p in (directory or JOURNAL_DIR).glob("*.journal"))


class Journal:
    """The journal of one domain."""

    def __init__(self, uuid: str, *, directory: Path | None = None) -> None:
        self.path = (directory or JOURNAL_DIR) / f"{uuid}.journal"

    def write(self, entry: Entry) -> None:
        """Say what is about to be done, durably.

        :raises AlreadyExists: an operation was killed here, and nobody has recovered yet.
        :raises Refused: it cannot be written.
        """
        make_directory(self.path.parent)
        try:
            with NewFile(self.path) as new:
                new.file.write(json.dumps(asdict(entry), indent=1).encode())
                new.publish()
        except OSError as e:
            raise Refused(
                f"the journal {self.path} cannot be written: {e.strerror}: make room there"
            ) from e

    def rewrite(self, entry: Entry) -> None:
        """Say more of what :meth:`write` has said, durably.

        :raises OSError: it could not be written; what was said before stands.
        """
        temporary = temporary_name(self.path)
        try:
            with temporary.open("xb") as file:
                file.write(json.dumps(asdict(entry), indent=1).encode())
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, self.path)
            sync_directory(self.path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def read(self) -> Entry | None:
        """What was in flight; ``None`` if nothing was.

        :raises Refused: there is a journal and it cannot be read.
        """
        try:
            values = json.loads(self.path.read_bytes())
            values["disks"] = tuple(DiskRequest(**d) for d in values["disks"])
            values["devices"] = tuple(Disk(**d) for d in values["devices"])
            values |= {key: dict(values.get(key, {})) for key in ("disk_state", "kinds")}
            if len(values["devices"]) != len(values["disks"]):
                raise ValueError("disks and devices do not belong together")
            for key in ("temporary", "directories", "words"):
                values[key] = tuple(values[key])
            return Entry(**values)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            raise Refused(
                f"the journal {self.path} cannot be read: {e}: see whether the domain runs and "
                f"what is left, then remove it"
            ) from e

    def refuse_unfinished(self, *, but: str = "") -> Entry | None:
        """Refuse to work on a domain on which an operation was killed, ``but`` for one kind.

        Returns that one, if there is one.

        :raises Refused: there is one, and recovering comes first.
        """
        entry = self.read()
        if entry and entry.operation != but:
            raise Refused(
                f"a {entry.operation} of {entry.domain} ({entry.name}) was killed in the middle: "
                f"run `pyxlsnap snapshot-recover {entry.uuid}` first"
            )
        return entry

    def clear(self) -> None:
        """The operation is over, one way or the other."""
        try:
            self.path.unlink()
            sync_directory(self.path.parent)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as e:  # the operation is over all the same; recovering finds nothing to do
            log.warning("the journal %s could not be removed: %s", self.path, e.strerror)
