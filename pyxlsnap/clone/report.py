"""The result of a clone: what the clone consists of, and how a person deletes each part."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pyxlsnap.clone.line_files import made_files
from pyxlsnap.clone_file import CloneFile
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.journal import CloneEntry
from pyxlsnap.model import RunState
from pyxlsnap.results import Artefact, Cloned
from pyxlsnap.text import command


def cloned(
    entry: CloneEntry,
    guest: Guest,
    state: RunState,
    warnings: Sequence[str],
    seconds: Mapping[str, float] = MappingProxyType({}),
) -> Cloned:
    """The result of a clone.

    :param guest: its domain.
    """
    return Cloned(
        name=entry.name,
        domain=guest.name,
        domid=guest.domid,
        uuid=entry.uuid,
        state=state,
        disks=entry.children,
        artefacts=tuple(_artefacts(entry, guest)),
        changes=entry.changes,
        warnings=tuple(warnings),
        replaced=entry.replace_begun,
        seconds=dict(seconds),
    )


def _artefacts(entry: CloneEntry, guest: Guest) -> list[Artefact]:
    """In the order in which they are to be deleted."""
    file = str(CloneFile(entry.uuid).path)
    disks = [
        Artefact("disk", f"{c.target} ({c.vdev}; {c.how})", c.delete, c.vdev)
        for c in entry.children
    ]
    lines = [Artefact("serial line", path, command(["rm", path])) for path in made_files(entry)]
    return [
        Artefact(
            "domain", f"{guest.name}, uuid {entry.uuid}", command(["xl", "destroy", guest.name])
        ),
        *disks,
        *lines,
        Artefact("clone file", file, command(["rm", file])),
    ]
