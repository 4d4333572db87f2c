"""One condition, and the names that its commands can use."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Something that somebody does between a create and a revert.

    The commands are for a shell, with names in braces for what is there:

    ``{internal}``
        a qcow2 disk whose snapshot is inside; it stands on ``{internal_base}``, and that on
        ``{internal_bottom}``
    ``{external}``
        a qcow2 disk that stands on its snapshot ``{frozen}``, and that on ``{external_base}``,
        ``{external_bottom}``
    ``{raw}``, ``{raw_copy}``
        a raw file on a filesystem that shares blocks, and its snapshot
    ``{block}``, ``{block_copy}``
        a block device, and its snapshot
    ``{group}``, ``{thin}``, ``{thin_snapshot}``, ``{thick}``, ``{thick_snapshot}``
        volumes, without their group
    ``{memory}``, ``{cfg}``
        the memory file, and the cfgfile
    ``{domain}``, ``{uuid}``, ``{name}``
        the domain's name and uuid, and the snapshot's name
    ``{other}``, ``{pid}``, ``{lock}``
        another domain; the pid of the domain's QEMU; the file of the domain's lock
    ``{state}``, ``{logs}``, ``{scripts}``, ``{script_lock}``
        the directories where libxl keeps the state of domains, where Xen's logs are, and where the
        scripts are that libxl starts; the lock of those for disks
    ``{helper}``, ``{no_console}``
        libxl's program that reads a memory file; the file that stands for a dead xenconsoled
    ``{bridge}``, ``{device_model}``, ``{xl_lock}``
        off Xen only: the directory of the domain's bridge in /sys, the program of the QEMU that
        libxl would start, and the file of xl's lock
    ``{spare}``
        a file that is not there, for whatever must be remembered until the undo

    A command that begins with ``xl`` stands alone: off Xen a stand-in does it.
    """

    name: str
    #: the commands that bring it about
    do: tuple[str, ...] = ()
    #: the exit status of the revert: 0, 3 or 5
    status: int
    #: a piece of what is said on stderr, with the same names
    says: str = ""
    #: the commands that take it back: then the same revert works
    undo: tuple[str, ...] = ()
    #: options of the revert that is run after the undo
    undone: tuple[str, ...] = ()
    #: where they are not enough, or there is no way back: the revert is not run once more
    final: bool = False
    #: the guest cannot write to a disk meanwhile, or the lab cannot read what it says: it is looked
    #: at after the next revert
    harms: bool = False
    #: the domain, as the revert is told it
    domain: str = "{uuid}"
    #: options of the revert
    options: tuple[str, ...] = ()
    #: a command for the shell that becomes the revert, such as ``ulimit``
    before: str = ""
    #: among those that each run of the lab does: a revert takes a minute there, a refusal does not
    lab: bool = False
    #: it takes what only the unit tests' machine has: a filesystem that can be filled, for example
    off_xen_only: bool = False
    #: it takes what only the lab has: real LVM
    xen_only: bool = False

    def __str__(self) -> str:
        return self.name


def filled_in(command: str, names: Mapping[str, str]) -> str:
    """A command of a condition for the shell."""
    return command.format_map({key: shlex.quote(value) for key, value in names.items()})
