"""The name of a clone: which names are allowed, and the lock that only one operation can hold."""

import re
from hashlib import sha256

from pyxlsnap.clone_file import unfinished_clones
from pyxlsnap.errors import Refused, UsageError
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.linux.locks import DomainLock

# libxl ends the path of a volume at a colon, and LVM allows neither a colon nor an @.
_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_+.-]*")
#: the end of the names of the disks of every second clone of a name
SECOND = ".r"
_LIMIT = 64  # characters: it is a part of the names of files, volumes and sockets


def check_clone_name(name: str) -> str:
    """Return ``name`` if a clone can have it.

    :raises UsageError: it cannot; the message says why.
    """
    if not _NAME.fullmatch(name) or len(name) > _LIMIT:
        raise UsageError(
            f"the name {name!r} cannot be that of a clone: it has up to {_LIMIT} letters, digits "
            f"and _ + . -, and does not begin with . or -"
        )
    if name.endswith(SECOND):
        raise UsageError(
            f"the name {name!r} ends in {SECOND}, as the disks of every second clone of a name do: "
            f"choose another name"
        )
    if name.isdigit():
        raise UsageError(f"the name {name!r} would be taken for a domid: add a letter")
    return name


def lock_name(name: str) -> DomainLock:
    """Take the lock of a clone's name, which it has before it has a uuid.

    :raises Busy: another operation makes, replaces or deletes a clone of this name.
    """
    return DomainLock(sha256(name.encode()).hexdigest()[:32], domain=name, kind="name.lock")


def refuse_unfinished(name: str) -> None:
    """:raises Refused: an operation on a clone of this name was killed."""
    for entry in unfinished_clones():
        if entry.domain == name:
            raise Refused(
                f"an operation on the clone {name} was killed or failed: run `pyxlsnap "
                f"snapshot-recover {entry.uuid}` first"
            )


def refuse_renamed(guest: Guest | None, name: str) -> None:
    """Refuse to destroy the domain of a clone that was renamed: somebody means to keep it.

    :param guest: the domain; ``None``: the clone is off.
    :param name: the clone's.
    :raises Refused: the domain has another name now.
    """
    if guest and (now := guest.present_name()) and now != name:
        raise Refused(
            f"the clone {name} is called {now} now, and is kept: choose another name for a new "
            f"one; or give this one its name again (`xl rename {now} {name}`) to replace or delete "
            f"it"
        )
