"""Planning a snapshot: from a request and a live domain to a plan that can be printed and run.

All checks that are possible beforehand are here: the guest runs, and nothing has been changed.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from pyxlsnap import cfgfile
from pyxlsnap.cancel import Cancel
from pyxlsnap.create.last_time import recalled
from pyxlsnap.create.places import Places, choose_places, generated_name
from pyxlsnap.disks.advice import quicker, slow_disks
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.disks.registry import close_all, default_request, strategies
from pyxlsnap.disks.served import ServedDisks
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import Refused, UsageError
from pyxlsnap.guest import checks
from pyxlsnap.guest.boot import boots
from pyxlsnap.guest.device_model import examine_device_model
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
from pyxlsnap.monitor.launch import loses_monitor, notice_foreground
from pyxlsnap.monitor.steady import may_start
from pyxlsnap.request import CreateRequest
from pyxlsnap.results import Plan, PlannedDisk

# Cautious estimates for the expected downtime on real hardware: the last pass of a live save and
# the work after it, the rate at which a suspended domain's memory is written, and the resume.
_LAST_PASS_S = 0.3
_SAVED_KB_PER_S = 256 * 1024
_RESUME_S = 0.1


@dataclass(frozen=True, slots=True)
class Examined:
    """A domain that can be snapshotted."""

    config: DomainConfig
    state: RunState
    #: the host paths of all disks of the domain
    targets: tuple[str, ...]
    #: its paravirtual devices
    devices: frozenset[str]
    #: the domain's memory, KiB
    memory_kb: int
    #: for how long the memory is expected to suspend the domain, seconds
    memory_s: float
    #: that time is one of its last snapshots, and not the default
    measured: bool
    #: versions of the programs that save the domain, by name
    versions: dict[str, str]
    #: the disks that its QEMU emulates
    emulated: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatePlan:
    """A snapshot that can be taken."""

    request: CreateRequest = field(repr=False)
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
    def seconds_suspended(self) -> float:
        """An estimate of how long the domain will be suspended."""
        return self.examined.memory_s + sum(s.expected_seconds() for s in self.strategies)

    def refuse_slow(self, max_downtime: float) -> None:
        """:raises Refused: the domain is expected to be suspended for longer."""
        if self.seconds_suspended <= max_downtime:
            return
        disks = max(self.strategies, key=lambda s: s.expected_seconds(), default=None)
        slowest = disks.expected_seconds() if disks else 0.0
        if not self.live and self.seconds_suspended - slowest > max_downtime:
            way_out = "take a live snapshot (--live)"
        elif disks and slowest > _LAST_PASS_S:
            way_out = f"most of this time is for {', '.join(disks.vdevs)} ({disks.kind})"
            way_out += f"; {way}" if (way := quicker(disks)) else ""
        else:
            way_out = "no shorter time is possible: allow more"
        raise Refused(
            f"{self.guest.name} is expected to be suspended for about "
            f"{self.seconds_suspended:.1f} s{self._measured()}, and max_downtime allows "
            f"{max_downtime:g} s: {way_out}"
        )

    def _measured(self) -> str:
        """Where the estimate comes from, if it may change by itself: a part of a sentence."""
        if not self.examined.measured:
            return ""
        return (
            f" (its last snapshots within a day needed {self.examined.memory_s:.1f} s for memory)"
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
            seconds_suspended=self.seconds_suspended,
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
    examined = _examine(host, guest, live=request.live)
    chosen, left_out, warnings = _choose_disks(examined.config, wanted.disks, name)
    devices, requests = tuple(disk for disk, _ in chosen), tuple(asked for _, asked in chosen)
    checks.refuse_shared(host, guest, devices)
    places = choose_places(guest, wanted, name, requests)
    warnings += changeable_place(places.memory.parent)
    task = _task(name, guest, request, examined)
    task = replace(task, check=cancel.check, waiting=waiting, warn=warnings.append)
    need_kb = checks.memory_file_kb(examined.memory_kb, examined.config)
    checks.refuse_full(places.memory.parent, need_kb, task.claim)
    found = strategies(chosen, task)
    plan = CreatePlan(
        request=request,
        guest=guest,
        examined=examined,
        metadata=_metadata(name, created, wanted, examined, requests, found),
        places=places,
        devices=devices,
        strategies=found,
        served=ServedDisks.of(devices, guest.domid, guest.device_model_pid()),
        left_out=left_out,
        loses_monitor=loses_monitor(host, guest),
        waiting=waiting,
    )
    frontends = _connect(plan, cancel)  # (the checks of disks may add to ``warnings``)
    told = (*warnings, *notice_foreground(host, guest), *slow_disks(found))
    return replace(plan, frontends=frontends, warnings=told)


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
        asked=request.config.disks is not None,
        may_start=partial(may_start, guest),
        gone=partial(is_gone, guest),
    )


def _examine(host: Host, guest: Guest, *, live: bool) -> Examined:
    """:raises Refused: the domain cannot be snapshotted in its present state."""
    state = checks.run_state(guest)
    devices = frozenset(guest.frontend_states())  # before the configuration that is saved
    config, targets = guest.config(), guest.disk_targets()
    checks.refuse_config(config, guest)
    checks.refuse_silent(config.disks)
    qemu = examine_device_model(guest, config)
    if live:
        checks.refuse_live(host, config, guest)
    versions = checks.versions(host) | ({"qemu": qemu.version} if qemu.version else {})
    memory_kb = guest.info().memory_kb
    memory_s = recalled(guest.uuid, live, memory_kb)
    measured = memory_s is not None
    if memory_s is None:
        memory_s = _RESUME_S + (_LAST_PASS_S if live else memory_kb / _SAVED_KB_PER_S)
    return Examined(
        config=config,
        state=state,
        targets=targets,
        devices=devices,
        memory_kb=memory_kb,
        memory_s=memory_s,
        measured=measured,
        versions=versions,
        emulated=qemu.emulated,
    )


def _connect(plan: CreatePlan, cancel: Cancel) -> dict[str, int]:
    """Let the disk strategies connect, to QEMU for example; on failure close all connections.

    :returns: the xenbus state of each device.
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
    except BaseException:
        plan.close()
        raise
    return found


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
