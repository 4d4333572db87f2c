"""The journal of a domain: a file that describes the operation under way.

The journal (``/var/lib/pyxlsnap/<uuid>.journal``) is written before anything is changed, and
removed at the end of the operation. If the operation is killed, the journal stays for a recovery.
"""

import json
import logging
import os
from dataclasses import asdict, field
from typing import ClassVar

from pyxlsnap import paths
from pyxlsnap.dataclass import dataclass
from pyxlsnap.errors import Refused
from pyxlsnap.linux.files import NewFile, make_directory, sync_directory, temporary_name
from pyxlsnap.model import Disk, DiskRequest
from pyxlsnap.request import (
    CloneRequest,
    CreateRequest,
    DeleteRequest,
    RevertRequest,
    revert_command,
)
from pyxlsnap.results import CloneDisk
from pyxlsnap.serialize import Message, rebuild

log = logging.getLogger(__name__)

#: version of the format
VERSION = 2
#: the versions that this release reads: a version 1 lacks the fields that have a default since 2
READABLE = (1, VERSION)


def boot_id() -> str:
    """The id of this boot of the host, from the kernel."""
    return (paths.PROC / "sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """The fields that all entries have."""

    uuid: str
    #: the domain's name
    domain: str
    #: the snapshot's name
    name: str
    memory_path: str
    cfgfile: str
    disks: tuple[DiskRequest, ...]
    #: the same disks in the domain's configuration, in the same order
    devices: tuple[Disk, ...]
    #: the kind of each disk's strategy, by vdev
    kinds: dict[str, str]
    #: leave the domain paused at the end
    paused: bool
    #: start a monitor at the end
    monitor: bool
    #: when the operation began, seconds since the epoch
    started: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateEntry(_Entry):
    """A create under way: all that another process needs to undo the create."""

    operation: ClassVar[str] = "create"

    request: CreateRequest
    domid: int
    #: the boot of the host that ``domid`` belongs to; "" in an entry of version 1
    boot: str = ""
    #: when a paused domain was unpaused to answer the suspend request, seconds since the epoch
    unpaused_at: float | None = None
    #: temporary files of the operation
    temporary: tuple[str, ...]
    #: directories that the operation makes, parents first
    directories: tuple[str, ...]
    #: the state of the disk strategies (:meth:`pyxlsnap.DiskStrategy.state`)
    disk_state: dict[str, str]
    #: the guest's QEMU may go on recording what it changes, if the create is killed
    hvm: bool = False
    #: the guest could not be resumed, and its memory was kept: the cfgfile for a revert; else ""
    way_back: str = ""
    #: the disk snapshots belong to that memory; if false, the disks are as they were
    has_disks: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RevertEntry(_Entry):
    """A revert under way: all that another process needs to finish the revert."""

    operation: ClassVar[str] = "revert"

    request: RevertRequest
    #: domid of the domain to destroy; ``None``: the domain was off
    domid: int | None
    #: the boot of the host that ``domid`` belongs to
    boot: str
    #: files and volumes may be there that were made beforehand, while the domain still ran
    prepares: bool = False
    #: the destroy of the domain may have begun
    destroy_begun: bool = False
    #: domid of the restored domain, which may have run since
    restored_domid: int | None = None
    #: uuid of the domain that is replaced, if it differs from ``uuid``; else ""
    replaced_uuid: str = ""
    #: the revert failed, and its error told the user how to finish the revert
    user_informed: bool = False
    #: cfgfile of the snapshot that ``keep_current`` took first; else ""
    present_cfgfile: str = ""
    #: the state of the disk strategies: what tells the disks that this revert keeps from others
    disk_state: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteEntry(_Entry):
    """A delete under way: all that another process needs to finish the delete.

    The cfgfile is the first part that is deleted, and the memory file the second. So the request
    holds what the cfgfile said.
    """

    operation: ClassVar[str] = "delete"

    request: DeleteRequest
    #: a part of the snapshot may be deleted
    begun: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneEntry(_Entry):
    """A clone under way, or its delete: all that another process needs to finish or undo it.

    ``uuid`` and ``domain`` are those of the clone, ``devices`` those of the snapshot's domain. The
    entry of a clone that is whole is kept: see :mod:`pyxlsnap.clone_file`.
    """

    operation: ClassVar[str] = "clone"

    request: CloneRequest
    #: the uuid of the snapshot's domain
    origin: str
    #: when the snapshot was taken, seconds since the epoch; ``None``: that is not known
    created: int | None = None
    #: where the filesystem of a disk is mounted, by vdev: :func:`pyxlsnap.clone_file.mounts`
    mounts: dict[str, str] = field(default_factory=dict)
    #: the boot of the host that the domids belong to
    boot: str
    #: the disks that the clone has of its own
    children: tuple[CloneDisk, ...]
    #: the state of the disk strategies: what tells the clone's disks from others
    disk_state: dict[str, str]
    #: there is a clone of the same uuid that this one replaces
    replaces: bool = False
    #: domid of the clone that is replaced; ``None``: none is, or it is off
    domid: int | None = None
    #: what the clone has in the place of what it could not share, one line each
    changes: tuple[str, ...] = ()
    #: files of its serial lines, each with what tells it from others: see :mod:`.clone.line_files`
    line_files: dict[str, str] = field(default_factory=dict)
    #: the clone that is replaced may be destroyed
    replace_begun: bool = False
    #: domid of the restored domain, which may have run since
    restored_domid: int | None = None
    #: the operation failed after the restore, and the restored domain may be destroyed
    undo_begun: bool = False
    #: the clone is being deleted
    deleting: bool = False
    #: earlier clones that this one has replaced, with those disks that could not be deleted yet
    leftovers: tuple["CloneEntry", ...] = ()


Entry = CreateEntry | RevertEntry | DeleteEntry | CloneEntry

_CLASSES: dict[str, type[Entry]] = {
    cls.operation: cls for cls in (CreateEntry, RevertEntry, DeleteEntry, CloneEntry)
}


def way_back_command(entry: CreateEntry) -> str:
    """The command that restores a guest from its :attr:`~CreateEntry.way_back`."""
    force = not entry.has_disks
    return revert_command(RevertRequest(domain=entry.uuid, cfgfile=entry.way_back, force=force))


def unfinished() -> list[str]:
    """The uuids of the domains that have a journal."""
    return sorted(p.stem for p in paths.JOURNALS.glob("*.journal"))


class Journal:
    """The journal of one domain."""

    _WAY_OUT = "run `pyxlsnap snapshot-recover {uuid}` of that release"
    _LOOK = "check whether the domain runs and what the operation left, then remove the journal"

    def __init__(self, uuid: str) -> None:
        self.path = paths.JOURNALS / f"{uuid}.journal"

    def write(self, entry: Entry) -> None:
        """Write the journal to disk, before anything is changed.

        :raises AlreadyExists: there is a journal: an operation was killed and not recovered yet.
        :raises Refused: the journal cannot be written, or could not be read again.
        """
        data = _encoded(entry)
        _check_readable(data, entry)
        make_directory(self.path.parent)
        try:
            with NewFile(self.path) as new:
                new.file.write(data)
                new.publish()
        except OSError as e:
            raise Refused(
                f"the journal {self.path} cannot be written: {e.strerror}: free space in that "
                f"filesystem, or make it writable"
            ) from e

    def rewrite(self, entry: Entry) -> None:
        """Replace the entry on disk by a newer one of the same operation.

        :raises OSError: the new entry could not be written; the old entry stays.
        """
        temporary = temporary_name(self.path)
        try:
            with temporary.open("xb") as file:
                file.write(_encoded(entry))
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, self.path)
            sync_directory(self.path.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def read(self) -> Entry | None:
        """The entry of the operation under way or killed; ``None`` if there is no journal.

        :raises Refused: this release cannot read the journal. The file stays as it is.
        """
        try:
            return _entry(self._values())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            raise Refused(f"the journal {self.path} cannot be read: {e}: {self._LOOK}") from e

    def _values(self) -> Message:
        values: Message = json.loads(self.path.read_bytes())
        if (version := values.pop("version", 0)) not in READABLE:
            other = "a newer" if version > VERSION else "an older"
            raise Refused(
                f"the journal {self.path} was written by {other} release of pyxlsnap (version "
                f"{version}; this release reads versions {READABLE[0]} to {VERSION}), and was left "
                f"as it is: {self._WAY_OUT.format(uuid=self.path.stem)}"
            )
        return values

    def refuse_unfinished(self) -> None:
        """Refuse the domain if an operation on it was killed.

        :raises Refused: an operation was killed; the domain needs a recovery first.
        """
        if entry := self.read():
            raise _unfinished(entry)

    def unfinished_revert(self, cfgfile: str = "") -> RevertEntry | None:
        """The revert that was killed, if any: another revert may finish it.

        :param cfgfile: that of the other revert.
        :raises Refused: another operation was killed; the domain needs a recovery first.
        """
        entry = self.read()
        if self.left_suspended(cfgfile):
            return None
        if isinstance(entry, CreateEntry | DeleteEntry | CloneEntry):
            raise _unfinished(entry)
        return entry

    def left_suspended(self, cfgfile: str) -> CreateEntry | None:
        """The create that left its guest suspended, if a revert to this cfgfile is the way back."""
        entry = self.read()
        if isinstance(entry, CreateEntry) and entry.way_back and _is_same(entry.way_back, cfgfile):
            return entry
        return None

    def unfinished_delete(self, cfgfile: str) -> DeleteEntry | None:
        """The delete of the same snapshot that was killed or failed: another may finish it.

        :raises Refused: another operation was killed; the domain needs a recovery first.
        """
        entry = self.read()
        if entry is None or (isinstance(entry, DeleteEntry) and entry.cfgfile == cfgfile):
            return entry
        raise _unfinished(entry)

    def clear(self) -> None:
        """Remove the journal at the end of the operation."""
        try:
            self.path.unlink()
            sync_directory(self.path.parent)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as e:  # not an error: a recovery finds nothing to do
            log.warning("the journal %s could not be removed: %s", self.path, e.strerror)


def _is_same(a: str, b: str) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)


def _encoded(entry: Entry) -> bytes:
    values = {"version": VERSION, "operation": entry.operation, **asdict(entry)}
    return json.dumps(values, indent=1).encode()


def _entry(values: Message) -> Entry:
    """Make an entry from plain values.

    :raises KeyError, TypeError, ValueError: the values are no entry.
    """
    entry: Entry = rebuild(_CLASSES[values.pop("operation")], values)
    if len(entry.devices) != len(entry.disks):
        raise ValueError("the numbers of disks and devices differ")
    return entry


def _check_readable(data: bytes, entry: Entry) -> None:
    """A recovery must be able to read the journal. Other packages' disk strategies fill it, too.

    :raises Refused: the journal would be refused, or read as something else.
    """
    values: Message = json.loads(data)
    del values["version"]
    try:
        read = _entry(values)
    except (TypeError, ValueError, KeyError) as e:
        raise Refused(f"the journal of {entry.domain} could not be read by a recovery: {e}") from e
    if read != entry:
        raise Refused(f"a recovery would read the journal of {entry.domain} differently")


def _unfinished(entry: Entry) -> Refused:
    return Refused(
        f"a {entry.operation} of {entry.domain} (snapshot {entry.name}) was killed or failed: run "
        f"`pyxlsnap snapshot-recover {entry.uuid}` first"
    )
