"""Planning a snapshot: from a request and a live domain to a plan that can be printed and run.

All checks that are possible beforehand are here: the guest runs, and nothing has been changed.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from functools import partial
from pathlib import Path

from pyxlsnap import cfgfile
from pyxlsnap.cancel import Cancel, Halt
from pyxlsnap.create.downtime import Downtime
from pyxlsnap.create.examination import Examined, examine
from pyxlsnap.create.places import Places, choose_places, generated_name
from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.abilities import BesideStrategy
from pyxlsnap.disks.advice import slow_disks
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.disks.registry import close_all, default_request, lanes, strategies
from pyxlsnap.disks.served import ServedDisks
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import Refused, UsageError
from pyxlsnap.guest import checks
from pyxlsnap.guest.boot import boots
from pyxlsnap.guest.frontends import wait_until_steady
from pyxlsnap.guest.gone import is_gone
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.guest.saved import changeable_place
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.model import (
    Disk,
    DiskRequest,
    DomainConfig,
    GuestKind,
    Metadata,
    RunState,
    SnapshotConfig,
    check_name,
)
from pyxlsnap.monitor.launch import ending_monitor
from pyxlsnap.monitor.steady import may_start
from pyxlsnap.monitor.xl import Xl, about_foreground
from pyxlsnap.request import CreateRequest
from pyxlsnap.results import Plan, PlannedDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatePlan:
    """A snapshot that can be taken."""

    request: CreateRequest = field(repr=False)
    host: Host = field(repr=False)
    guest: Guest = field(repr=False)
    examined: Examined = field(repr=False)
    metadata: Metadata
    places: Places
    #: the disks in the snapshot, in the order of ``metadata.disks``
    devices: tuple[Disk, ...]
    strategies: tuple[DiskStrategy, ...]
    served: ServedDisks
    #: disks that will not be in the snapshot, each with the reason
    left_out: dict[str, str]
    warnings: tuple[str, ...] = ()
    #: the xenbus state of each paravirtual device
    frontends: dict[str, int] = field(default_factory=dict, repr=False)
    #: the strategies that take disk snapshots beside the memory: see :func:`lanes`
    lanes: tuple[tuple[BesideStrategy, ...], ...] = field(default=(), repr=False)
    #: the vdevs of the disks whose snapshots they take so
    beside: frozenset[str] = frozenset()
    #: set if the memory has failed: ends slow work on the disks
    halt: Halt = field(default_factory=Halt, repr=False)
    #: set when libxl has read all of the memory: see :attr:`.DiskTask.memory_read`
    memory_read: threading.Event = field(default_factory=threading.Event, repr=False)
    #: xl's process, which acts on the guest's shutdowns, will end when the guest is suspended
    loses_monitor: bool = False
    #: :attr:`pyxlsnap.disks.task.DiskTask.waiting`
    waiting: Callable[[str], None] = field(default=lambda _: None, repr=False)

    @property
    def live(self) -> bool:
        """Whether the domain runs while its memory is written."""
        return self.request.live

    @property
    def memory_path(self) -> Path:
        """The memory file."""
        return self.places.memory

    @property
    def cfgfile(self) -> Path:
        """The cfgfile."""
        return self.places.cfgfile

    @property
    def paused(self) -> bool:
        """Whether the domain is paused now, and is paused again afterwards."""
        return self.metadata.state is RunState.PAUSED

    @property
    def downtime(self) -> Downtime:
        """An estimate of how long the domain will be suspended."""
        examined = self.examined
        return Downtime(
            domain=self.guest.name,
            live=self.live,
            memory_s=examined.memory_s,
            measured=examined.measured,
            strategies=self.strategies,
            lanes=self.lanes,
            beside=self.beside,
        )

    def summary(self) -> Plan:
        """The plan as a plain value."""
        return Plan(
            operation="create",
            name=self.metadata.name,
            domain=self.guest.name,
            uuid=self.guest.uuid,
            memory_path=str(self.memory_path),
            cfgfile=str(self.cfgfile),
            live=self.live,
            state=self.metadata.state,
            disks=tuple(
                PlannedDisk(disk.vdev, disk.target, self.metadata.kinds[disk.vdev], request.path)
                for disk, request in zip(self.devices, self.metadata.disks, strict=True)
            ),
            left_out=self.left_out,
            warnings=self.warnings,
            seconds_suspended=self.downtime.seconds,
        )

    def close(self) -> None:
        """Close the connections of the disk strategies."""
        close_all(self.strategies)


@refusing_os_errors()
def make_plan(
    host: Host,
    guest: Guest,
    request: CreateRequest,
    cancel: Cancel,
    waiting: Callable[[str], None] = lambda _: None,
) -> CreatePlan:
    """Plan a snapshot of a running guest. Changes nothing.

    :param request: defaults replace the values that its config leaves out.
    :param cancel: checked often by all slow work, also when the plan is run.
    :param waiting: :attr:`pyxlsnap.disks.task.DiskTask.waiting`.
    :raises UsageError, Cancelled: the name or a path cannot be used, or ``cancel`` was set.
    :raises Refused: the guest, a disk or the host does not allow the snapshot.
    """
    wanted = _checked(request)
    created = int(time.time())
    name = check_name(wanted.name or generated_name(created))
    examined = examine(host, guest, live=request.live)
    chosen, left_out, warnings = _choose_disks(examined.config, wanted.disks, name)
    devices, requests = tuple(disk for disk, _ in chosen), tuple(asked for _, asked in chosen)
    checks.refuse_shared(host, guest, devices)
    places = choose_places(guest, wanted, name, requests)
    warnings += [*examined.warnings, *changeable_place(places.memory.parent)]
    halt, memory_read = Halt(), threading.Event()
    task = _task(name, guest, request, examined)
    check = partial(_check_both, cancel, halt)
    task = replace(
        task, check=check, waiting=waiting, warn=warnings.append, memory_read=memory_read.is_set
    )
    need_kb = checks.memory_file_kb(examined.memory_kb, examined.config)
    checks.refuse_full(places.memory.parent, need_kb, task.claim)
    found, ending = strategies(chosen, task), ending_monitor(host, guest)
    plan = CreatePlan(
        request=request,
        host=host,
        guest=guest,
        examined=examined,
        metadata=_metadata(name, created, wanted, examined, requests, found),
        places=places,
        devices=devices,
        strategies=found,
        served=ServedDisks.of(devices, guest.domid, guest.device_model_pid()),
        left_out=left_out,
        loses_monitor=ending is not None,
        waiting=waiting,
        halt=halt,
        memory_read=memory_read,
    )
    return _with_warnings(_connected(plan, cancel), ending, warnings)


def _with_warnings(plan: CreatePlan, ending: Xl | None, warnings: Sequence[str]) -> CreatePlan:
    """The plan with all that the user is told.

    :param warnings: those that the checks found, also those of the disks.
    """
    foreground = about_foreground(ending, plan.guest.name, when="when the guest is suspended")
    slow = slow_disks(plan.strategies, dict.fromkeys(plan.beside, plan.examined.memory_s))
    return replace(plan, warnings=(*warnings, *foreground, *slow))


def _check_both(cancel: Cancel, halt: Halt) -> None:
    cancel.check()
    halt.check()


def _checked(request: CreateRequest) -> SnapshotConfig:
    """What the user wants of the snapshot.

    :raises UsageError: no cfgfile can hold it, or the memory cannot be written at this rate.
    """
    rate = request.max_rate
    if rate is not None and not 1 <= rate < math.inf:
        raise UsageError(f"max_rate must be at least 1 MiB a second, not {rate:g}")
    if rate is not None and not request.live:
        raise UsageError(
            "max_rate is for live snapshots only, because a suspended guest would wait for the "
            "writing: use --live too, or leave out max_rate"
        )
    cfgfile.render(request.config)
    return request.config


def _metadata(
    name: str,
    created: int,
    wanted: SnapshotConfig,
    examined: Examined,
    requests: tuple[DiskRequest, ...],
    found: Sequence[DiskStrategy],
) -> Metadata:
    return Metadata(
        name=name,
        description=wanted.description or "",
        created=created,
        state=examined.state,
        disks=requests,
        versions=examined.versions,
        kinds={vdev: strategy.kind for strategy in found for vdev in strategy.vdevs},
    )


def _task(name: str, guest: Guest, request: CreateRequest, examined: Examined) -> DiskTask:
    return DiskTask(
        name,
        inactive=request.live and examined.config.kind is GuestKind.HVM,
        device_model=examined.config.kind is GuestKind.HVM,
        asked=request.config.disks is not None,
        may_start=partial(may_start, guest),
        gone=partial(is_gone, guest),
    )


def _connected(plan: CreatePlan, cancel: Cancel) -> CreatePlan:
    """Let the disk strategies connect, to QEMU for example; on failure close all connections.

    :returns: the plan with what is known now: the devices, and what can be done beside the memory.
    :raises Refused: a disk, or a device of the guest, is not ready.
    """
    examined = plan.examined
    try:
        plan.served.refuse_replaced()
        for strategy in plan.strategies:
            strategy.check_create(plan.guest.domid)
        # QEMU's qcow2 disks were found by now, and none of them is emulated.
        found_pv = (s.vdevs for s in plan.strategies if s.kind == "qcow2")
        emulated = examined.emulated.difference(*found_pv)
        found = wait_until_steady(
            plan.guest,
            vcpus=examined.config.vcpus,
            boots=partial(boots, plan.guest, examined.config, emulated),
            check=cancel.check,
        )
        if changed := examined.devices ^ found.keys():
            raise Refused(
                f"devices of {plan.guest.name} were attached or detached meanwhile "
                f"({', '.join(sorted(changed))}): try again"
            )
        able = lanes(plan.strategies)
        beside = frozenset(vdev for lane in able for s in lane for vdev in s.beside())
    except BaseException:
        plan.close()
        raise
    return replace(plan, frontends=found, lanes=able, beside=beside)


def _choose_disks(
    config: DomainConfig, wanted: Sequence[DiskRequest] | None, name: str
) -> tuple[list[tuple[Disk, DiskRequest]], dict[str, str], list[str]]:
    """The disks to snapshot, the disks left out (with the reason), and warnings."""
    writable = [d for d in config.disks if not d.left_out]
    left_out = {d.vdev: d.left_out for d in config.disks if d.left_out}
    if wanted is None:
        return [(d, default_request(d, name)) for d in writable], left_out, []
    by_vdev = {d.vdev: d for d in config.disks}
    unknown = [r.vdev for r in wanted if r.vdev not in by_vdev]
    if unknown:
        has = ", ".join(by_vdev) or "none"
        raise UsageError(f"{config.name} has no disk {', '.join(unknown)} (its disks: {has})")
    named = {r.vdev for r in wanted}
    forgotten = [d.vdev for d in writable if d.vdev not in named]
    left_out |= dict.fromkeys(forgotten, "not named in the cfgfile")
    warnings = [
        f"{v} is not in the snapshot: a revert to the snapshot will be risky" for v in forgotten
    ]
    return [(by_vdev[r.vdev], r) for r in wanted], left_out, warnings
