"""The lock of a domain, and the note of what is in flight on it.

The lock (``/run/pyxlsnap/<uuid>.lock``) is an OFD lock: it belongs to the open file, not to the
process, so that caller and worker hold it together and it falls when both are gone. The journal
(``/var/lib/pyxlsnap/<uuid>.journal``) is written before anything is touched and removed at the end;
one that is still there says what an operation that was killed had begun.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.errors import Refused
from pyxlsnap.linux.files import NewFile, make_directory, sync_directory, temporary_name
from pyxlsnap.model import Disk, DiskRequest

log = logging.getLogger(__name__)


def boot_id() -> str:
    """What tells this boot of the host from others."""
    return (paths.PROC / "sys/kernel/random/boot_id").read_text().strip()


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
    #: what the disk strategies have to know (:meth:`pyxlsnap.disks.protocol.DiskStrategy.state`)
    disk_state: dict[str, str] = field(default_factory=dict)
    #: the kind of strategy that stands for each disk, by vdev
    kinds: dict[str, str] = field(default_factory=dict)
    #: seconds since the epoch
    started: float = 0.0
    #: its owner had paused the domain; of a revert: it is to be paused afterwards
    paused: bool = False
    #: somebody is to watch the domain afterwards (:data:`pyxlsnap.guest.protocols.StartMonitor`)
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
    return sorted(p.stem for p in (directory or paths.JOURNALS).glob("*.journal"))


class Journal:
    """The journal of one domain."""

    def __init__(self, uuid: str, *, directory: Path | None = None) -> None:
        self.path = (directory or paths.JOURNALS) / f"{uuid}.journal"

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
