"""Whole-domain snapshots (memory and disks at one instant) for the Xen hypervisor.

The high level runs each call in a worker process: :func:`create_snapshot`,
:func:`revert_snapshot`, :func:`delete_snapshot`, :func:`clone_snapshot`, :func:`delete_clone`,
:func:`read_snapshot`, :func:`plan_create`, :func:`plan_revert`, :func:`plan_clone`,
:func:`can_snapshot`, :func:`recover`, :func:`monitor_domain`. :class:`Reverter` is for many
reverts to one snapshot, :class:`Cloner` for a clone that is made anew again and again. The same
calls are coroutine functions in :mod:`pyxlsnap.aio`. The low level uses libxl in this process:
:class:`Toolstack`, :class:`Domain`.

Only the names in ``pyxlsnap.__all__``, :mod:`pyxlsnap.aio` and :mod:`pyxlsnap.errors` are public.
"""

# General layout, from the top to the bottom (an import may only point down):
#
#   cli/, aio/        the two front doors: the command line, and the calls as coroutine functions
#   api/              the calls of the high level
#   worker/           one worker process for each operation, and its connection to the caller
#   recovery/         finishes or undoes an operation that was killed
#   revert/, clone/, create/, delete/    the operations: operation.py runs plan.py, then the steps
#                     of sequence.py; contents.py only looks
#   monitor/          acts on the reboot, power-off and crash of a guest
#   guest/            checks of a guest and its host, before and during an operation
#   disks/            the disk strategies, one folder or file for each kind of storage
#   memory/, cfgfile.py, journal.py, clone_file.py    the file formats
#   xen/              the binding to libxl; only this folder loads libxl
#   linux/            files, processes, locks and waiting
#   other modules     plain values and functions that all folders use: requests, results, model, …

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyxlsnap.version import VERSION

if TYPE_CHECKING:
    from pyxlsnap.api import (
        can_snapshot,
        create_snapshot,
        delete_snapshot,
        monitor_domain,
        plan_create,
        plan_revert,
        read_snapshot,
        recover,
        revert_snapshot,
        start_monitor,
    )
    from pyxlsnap.api.cloner import Cloner
    from pyxlsnap.api.clones import clone_snapshot, delete_clone, plan_clone
    from pyxlsnap.api.reverter import Reverter
    from pyxlsnap.cancel import Cancel
    from pyxlsnap.disks.abilities import (
        AdvisingStrategy,
        BesideStrategy,
        CloningStrategy,
        DeletingStrategy,
        PreparingStrategy,
    )
    from pyxlsnap.disks.protocol import DiskKind, DiskStrategy
    from pyxlsnap.disks.task import DiskTask
    from pyxlsnap.errors import (
        Aborted,
        AlreadyExists,
        BadMemoryFile,
        Busy,
        ClosedError,
        ConfigError,
        DiskError,
        DomainNotFound,
        ForkedError,
        GuestEnded,
        GuestTimeout,
        Interrupted,
        NeedsAttention,
        OperationFailed,
        PyxlsnapError,
        QmpError,
        Refused,
        Risky,
        UsageError,
        WorkerDied,
        XenError,
        XenUnavailable,
    )
    from pyxlsnap.hooks import Hooks, Moment
    from pyxlsnap.model import (
        Disk,
        DiskRequest,
        DomainConfig,
        DomainInfo,
        GuestKind,
        RunState,
        SnapshotConfig,
    )
    from pyxlsnap.results import (
        Artefact,
        Cloned,
        CloneDisk,
        Deleted,
        DomainEvent,
        Feasibility,
        Plan,
        PlannedDisk,
        Progress,
        Recovered,
        Reverted,
        Snapshot,
    )
    from pyxlsnap.snapshot_info import CloneInfo, SnapshotDisk, SnapshotInfo
    from pyxlsnap.xen.domain import Domain
    from pyxlsnap.xen.toolstack import Toolstack

# Most to least important, then the errors.
__all__ = [  # noqa: RUF022
    "create_snapshot",
    "revert_snapshot",
    "delete_snapshot",
    "clone_snapshot",
    "delete_clone",
    "read_snapshot",
    "Reverter",
    "Cloner",
    "plan_create",
    "plan_revert",
    "plan_clone",
    "can_snapshot",
    "recover",
    "start_monitor",
    "monitor_domain",
    "Snapshot",
    "Reverted",
    "Deleted",
    "Cloned",
    "CloneDisk",
    "SnapshotInfo",
    "SnapshotDisk",
    "CloneInfo",
    "Recovered",
    "Plan",
    "PlannedDisk",
    "Feasibility",
    "SnapshotConfig",
    "DiskRequest",
    "Artefact",
    "Progress",
    "DomainEvent",
    "Cancel",
    "Hooks",
    "Moment",
    "RunState",
    "Toolstack",
    "Domain",
    "DomainInfo",
    "DomainConfig",
    "Disk",
    "GuestKind",
    "DiskKind",
    "DiskStrategy",
    "AdvisingStrategy",
    "BesideStrategy",
    "DeletingStrategy",
    "CloningStrategy",
    "PreparingStrategy",
    "DiskTask",
    "__version__",
    "PyxlsnapError",
    "UsageError",
    "ConfigError",
    "Refused",
    "XenUnavailable",
    "DomainNotFound",
    "AlreadyExists",
    "Busy",
    "BadMemoryFile",
    "Risky",
    "XenError",
    "GuestTimeout",
    "Aborted",
    "QmpError",
    "DiskError",
    "ClosedError",
    "ForkedError",
    "WorkerDied",
    "OperationFailed",
    "Interrupted",
    "GuestEnded",
    "NeedsAttention",
]

__version__ = VERSION

logging.getLogger("pyxlsnap").addHandler(logging.NullHandler())


# A module is loaded when one of its names is asked for: a program that uses one part does not load
# the others. The low level comes last, because it loads libxl.
_HOMES = (
    *("errors", "cancel", "hooks", "model", "results", "snapshot_info", "disks.protocol"),
    *("disks.task", "disks.abilities", "api", "api.clones", "api.reverter", "api.cloner"),
    *("xen.toolstack", "xen.domain"),
)


def __getattr__(name: str) -> Any:
    """Load a public name, or the module of the errors."""
    if name == "errors":
        return import_module("pyxlsnap.errors")
    if name in __all__:
        for home in _HOMES:
            if (found := getattr(import_module(f"pyxlsnap.{home}"), name, None)) is not None:
                globals()[name] = found
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names of the module, including those that are loaded on demand."""
    return sorted({*globals(), *__all__})
