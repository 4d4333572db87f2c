"""The journal of a domain: what an operation that is under way has begun.

The journal (``/var/lib/pyxlsnap/<uuid>.journal``) is written before anything is touched and removed
at the end. A journal that is still there says what an operation that was killed had begun.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass
from typing import ClassVar

from pyxlsnap import paths
from pyxlsnap.errors import Refused
from pyxlsnap.linux.files import NewFile, make_directory, sync_directory, temporary_name
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.request import CreateRequest, RevertRequest
from pyxlsnap.serialize import Message, rebuild

log = logging.getLogger(__name__)

#: of the entries that this release writes; a release reads those of its own version only
VERSION = 1


def boot_id() -> str:
    """What tells this boot of the host from others."""
    return (paths.PROC / "sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """What a create and a revert have in common."""

    uuid: str
    #: the domain's name
    domain: str
    #: the snapshot's name
    name: str
    memory_path: str
    cfgfile: str
    disks: tuple[DiskRequest, ...]
    #: the same disks as the guest has them
    devices: tuple[Disk, ...]
    #: by vdev, the kind of the disk's strategy
    kinds: dict[str, str]
    #: the domain is to be paused in the end
    paused: bool
    #: a monitor of ours is to watch the domain in the end
    monitor: bool
    #: when the operation began, seconds since the epoch
    started: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateEntry(_Entry):
    """A snapshot that is being taken: enough for another process to undo it."""

    operation: ClassVar[str] = "create"

    request: CreateRequest
    domid: int
    #: files that are ours until the operation is done
    temporary: tuple[str, ...]
    #: directories that are ours, if they are there, parents first
    directories: tuple[str, ...]
    #: what the disk strategies have to know (:meth:`pyxlsnap.DiskStrategy.state`)
    disk_state: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RevertEntry(_Entry):
    """A revert that is under way: enough for another process to finish it."""

    operation: ClassVar[str] = "revert"

    request: RevertRequest
    #: of the domain that is to be destroyed; ``None``: the domain was off
    domid: int | None
    #: the boot of the host that ``domid`` belongs to
    boot: str
    #: the destroy of the domain may have begun
    destroy_begun: bool = False
    #: the domain that was restored, and may have run since
    restored_domid: int | None = None
    #: the uuid of the domain that is replaced, if it is not ``uuid``; else ""
    replaced_uuid: str = ""
    #: the revert failed, and the user knows how to finish it
    user_informed: bool = False
    #: the cfgfile of the snapshot of the present, if one was taken; else ""
    present_cfgfile: str = ""


Entry = CreateEntry | RevertEntry

_CLASSES: dict[str, type[Entry]] = {cls.operation: cls for cls in (CreateEntry, RevertEntry)}


def unfinished() -> list[str]:
    """The uuids of the domains that have a journal."""
    return sorted(p.stem for p in paths.JOURNALS.glob("*.journal"))


class Journal:
    """The journal of one domain."""

    def __init__(self, uuid: str) -> None:
        self.path = paths.JOURNALS / f"{uuid}.journal"

    def write(self, entry: Entry) -> None:
        """Say what is about to be done, durably.

        :raises AlreadyExists: an operation was killed here, and nobody has recovered yet.
        :raises Refused: the journal cannot be written.
        """
        make_directory(self.path.parent)
        try:
            with NewFile(self.path) as new:
                new.file.write(_text(entry))
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
                file.write(_text(entry))
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, self.path)
            sync_directory(self.path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def read(self) -> Entry | None:
        """What was in flight; ``None`` if nothing was.

        :raises Refused: there is a journal and this release cannot read it. The file stays.
        """
        try:
            return _entry(self._values())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            raise Refused(
                f"the journal {self.path} cannot be read: {e}: see whether the domain runs and "
                f"what is left, then remove the journal"
            ) from e

    def _values(self) -> Message:
        values: Message = json.loads(self.path.read_bytes())
        if (version := values.pop("version", 0)) != VERSION:
            other = "a newer" if version > VERSION else "an older"
            raise Refused(
                f"the journal {self.path} was written by {other} release of pyxlsnap (version "
                f"{version}; this release reads version {VERSION}), and was left as it is: run "
                f"`pyxlsnap snapshot-recover {self.path.stem}` of that release"
            )
        return values

    def refuse_unfinished(self) -> None:
        """Refuse to work on a domain on which an operation was killed.

        :raises Refused: there is such an operation, and recovering comes first.
        """
        if entry := self.read():
            raise _unfinished(entry)

    def unfinished_revert(self) -> RevertEntry | None:
        """The revert that was killed, if there is one: another revert finishes it.

        :raises Refused: a create was killed, and recovering comes first.
        """
        entry = self.read()
        if isinstance(entry, CreateEntry):
            raise _unfinished(entry)
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


def _text(entry: Entry) -> bytes:
    values = {"version": VERSION, "operation": entry.operation, **asdict(entry)}
    return json.dumps(values, indent=1).encode()


def _entry(values: Message) -> Entry:
    """:raises KeyError, TypeError, ValueError: the values are no entry."""
    entry: Entry = rebuild(_CLASSES[values.pop("operation")], values)
    if len(entry.devices) != len(entry.disks):
        raise ValueError("disks and devices do not belong together")
    return entry


def _unfinished(entry: Entry) -> Refused:
    return Refused(
        f"a {entry.operation} of {entry.domain} (snapshot {entry.name}) was killed: run "
        f"`pyxlsnap snapshot-recover {entry.uuid}` first"
    )
