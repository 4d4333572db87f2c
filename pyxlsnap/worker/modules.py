"""The modules of an operation and of its undo: all are loaded before a domain is locked.

A supervisor may undo an operation after the package was replaced on the disk, so it loads nothing
then. And an operation loads nothing else, because that takes longer than the operation's own work.

So a function that imports a module of pyxlsnap, in the place of the top of its own module, is for
a module that is named here.
"""

import logging
from importlib import import_module

from pyxlsnap.journal import unfinished
from pyxlsnap.request import (
    CloneConfigurationRequest,
    CloneRequest,
    CreateRequest,
    DeleteCloneRequest,
    DeleteRequest,
    FeasibilityRequest,
    MonitorRequest,
    ReadRequest,
    RecoverRequest,
    Request,
    RevertRequest,
)

log = logging.getLogger(__name__)

#: the connection to a guest's QEMU, which loads asyncio
QMP = "pyxlsnap.disks.qcow2.qmp"
_CREATE = "pyxlsnap.create.operation"
_REVERT = "pyxlsnap.revert.operation"
_KEEP_CURRENT = "pyxlsnap.revert.keep_current"
_DELETE = "pyxlsnap.delete.operation"
_CLONE = "pyxlsnap.clone.operation"
_DELETE_CLONE = "pyxlsnap.clone.delete"
_RECOVERY = "pyxlsnap.recovery.operation"
_UNDO_CREATE = "pyxlsnap.recovery.undo_create"
_FINISH_REVERT = "pyxlsnap.recovery.finish_revert"
_FINISH_CLONE = "pyxlsnap.recovery.finish_clone"
#: for an entry of any kind in a journal
ANY_RECOVERY = (_RECOVERY, _UNDO_CREATE, _FINISH_REVERT, _FINISH_CLONE, _DELETE, QMP)


def needed(request: Request) -> tuple[str, ...]:
    """The modules for a request and for its undo, but for :data:`QMP`."""
    match request:
        case CreateRequest(dry_run=True):
            return (_CREATE,)
        case CreateRequest():
            return (_CREATE, _RECOVERY, _UNDO_CREATE)
        case RevertRequest(dry_run=True):
            return (_REVERT, _KEEP_CURRENT) if request.keep_current else (_REVERT,)
        case RevertRequest(keep_current=True):
            return (_REVERT, _KEEP_CURRENT, _RECOVERY, _FINISH_REVERT, _UNDO_CREATE)
        case RevertRequest():
            return (_REVERT, _RECOVERY, _FINISH_REVERT)
        case CloneConfigurationRequest() | CloneRequest(dry_run=True):
            return (_CLONE,)
        case CloneRequest():
            return (_CLONE, _RECOVERY, _FINISH_CLONE)
        case DeleteCloneRequest():
            return (_DELETE_CLONE, _RECOVERY, _FINISH_CLONE)
        case ReadRequest():
            return ("pyxlsnap.contents",)
        case DeleteRequest():
            return (_DELETE, _RECOVERY)
        case RecoverRequest():
            return (_RECOVERY,)
        case MonitorRequest():
            return ("pyxlsnap.monitor.actions",)
        case FeasibilityRequest():
            return ("pyxlsnap.create.feasibility",)


def load(request: Request) -> None:
    """Load the modules for a request and for its undo.

    A recovery may meet the journal of another operation, that was killed or is under way. So if
    there is any journal, load the modules for any recovery, too.
    """
    for name in needed(request):
        import_module(name)
    if unfinished():
        load_any_recovery()


def load_any_recovery() -> None:
    """Load what the recovery of any operation needs."""
    for name in ANY_RECOVERY:
        import_module(name)


def load_qmp() -> None:
    """Load what it takes to talk to the QEMU of a guest."""
    import_module(QMP)
