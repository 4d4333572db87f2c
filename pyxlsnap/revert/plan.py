"""Planning a revert: from a cfgfile and its memory file to a plan that can be printed and run.

All checks that are possible beforehand are here: nothing has been changed yet.
"""

from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path

from pyxlsnap.cancel import Cancel
from pyxlsnap.create.waiting import heard
from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.disks.registry import close_all, strategies
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import DomainNotFound, Refused, Risky
from pyxlsnap.guest import checks, snapshot
from pyxlsnap.guest.findings import Findings
from pyxlsnap.guest.held_memory import with_room
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.guest.read_once import read_saved
from pyxlsnap.guest.risks import find_risks
from pyxlsnap.journal import Journal, RevertEntry
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.limits import refuse_limits
from pyxlsnap.model import Disk, DiskRequest, DomainConfig, RunState
from pyxlsnap.monitor.xl import about_foreground, xl_process
from pyxlsnap.request import RevertRequest
from pyxlsnap.results import Plan, PlannedDisk
from pyxlsnap.revert.examination import Examination
from pyxlsnap.revert.saved import config_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RevertPlan:
    """A revert that can be done."""

    request: RevertRequest = field(repr=False)
    #: the domain to be destroyed; ``None`` if the domain is off
    guest: Guest | None = field(repr=False)
    config: DomainConfig = field(repr=False)
    #: the same, with room for all memory that the domain held: see :mod:`..guest.held_memory`
    restored: DomainConfig = field(repr=False)
    #: for the last look
    examination: Examination = field(repr=False)
    name: str
    memory_path: Path
    #: the memory file as it was when it was read
    memory_version: tuple[int, ...]
    stream_offset: int
    state: RunState
    strategies: tuple[DiskStrategy, ...]
    warnings: tuple[str, ...]
    #: :attr:`pyxlsnap.disks.task.DiskTask.waiting`
    waiting: Callable[[str], None] = field(repr=False)

    @property
    def cfgfile(self) -> Path:
        """The file that names the snapshot."""
        return Path(self.request.cfgfile)

    @property
    def requests(self) -> tuple[DiskRequest, ...]:
        """The disk snapshots."""
        return tuple(request for _, request in self.examination.chosen)

    @property
    def devices(self) -> tuple[Disk, ...]:
        """The same disks, as in the saved configuration."""
        return tuple(disk for disk, _ in self.examination.chosen)

    def summary(self) -> Plan:
        """The plan as a plain value."""
        disks = {d.vdev: d for d in self.config.disks}
        paths = {r.vdev: r.path for r in self.requests}
        return Plan(
            operation="revert",
            name=self.name,
            domain=self.config.name,
            uuid=self.config.uuid,
            memory_path=str(self.memory_path),
            cfgfile=str(self.cfgfile),
            live=False,
            state=self.state,
            disks=tuple(
                PlannedDisk(vdev, disks[vdev].target, s.kind, paths[vdev])
                for s in self.strategies
                for vdev in s.vdevs
            ),
            left_out={
                vdev: disk.left_out or "not in the snapshot"
                for vdev, disk in disks.items()
                if vdev not in paths
            },
            warnings=self.warnings,
            seconds_suspended=None,
        )

    def close(self) -> None:
        """Close the connections of the disk strategies."""
        close_all(self.strategies)


@refusing_os_errors()
def make_plan(
    host: Host,
    request: RevertRequest,
    cancel: Cancel,
    *,
    half_way: RevertEntry | None = None,
    waiting: Callable[[str], None] = lambda _: None,
) -> RevertPlan:
    """Plan a revert. Changes nothing.

    :param half_way: the same revert, killed after the destroy: the risks were decided about then,
        and the entry has the domain's last name.
    :param waiting: :attr:`pyxlsnap.disks.task.DiskTask.waiting`.
    :raises ConfigError, BadMemoryFile: the cfgfile names no memory file, or a damaged one.
    :raises Refused, Cancelled: the revert cannot be done, or ``cancel`` was set.
    :raises Risky: the revert cannot be shown to be safe, and ``force`` is not set.
    """
    refuse_limits()
    wanted = config_of(request)
    saved = read_saved(wanted, request.cfgfile, cancel.check)
    meta = saved.metadata
    guest, config = _domain(host, request, saved.config, half_way)
    name = snapshot.snapshot_name(wanted, request.cfgfile, meta)
    chosen = snapshot.choose_disks(wanted, request.cfgfile, meta, config)
    tell = heard(cancel, waiting)
    examination = Examination(host, config, guest, chosen, saved.qemu, tell)
    found = _look(examination, saved)
    task = _task(config, name, request.cfgfile, waiting)
    plan = RevertPlan(
        request=request,
        guest=guest,
        config=config,
        restored=with_room(config, saved.memory_kb),
        examination=examination,
        name=name,
        memory_path=saved.path,
        memory_version=saved.version,
        stream_offset=saved.header.stream_offset,
        state=snapshot.state_after(request.running, request.paused, meta),
        strategies=strategies(chosen, task, meta.kinds if meta else {}),
        warnings=(*found.risks, *found.warnings),
        waiting=waiting,
    )
    _check(host, plan, () if request.force or half_way else found.risks, cancel)
    return plan


def _domain(
    host: Host, request: RevertRequest, saved: DomainConfig, half_way: RevertEntry | None
) -> tuple[Guest | None, DomainConfig]:
    """The domain, if there is one, and the saved configuration under its present name."""
    config = saved.with_name(half_way.domain) if half_way else saved
    if guest := _current(host, request.domain, config):
        config = _as_named_now(guest, config)
    return guest, config


def _look(examination: Examination, saved: snapshot.Saved) -> Findings:
    config, guest = examination.config, examination.guest
    found = examination.look()
    vdevs = {disk.vdev for disk, _ in examination.chosen}
    risks = find_risks(examination.host, config, guest, vdevs, memory=saved.path, xen=saved.xen)
    xl = xl_process(config.name, guest.domid if guest else None)
    foreground = about_foreground(xl, config.name, when="when the domain is destroyed")
    return Findings((*risks, *found.risks), (*found.warnings, *foreground))


def _check(host: Host, plan: RevertPlan, risks: Sequence[str], cancel: Cancel) -> None:
    """Look at the memory of the host and at the disks; on failure close all connections."""
    try:
        checks.refuse_memory(host, plan.restored, plan.guest)
        for strategy in plan.strategies:
            cancel.check()
            strategy.check_revert()
        # After all that --force cannot help with.
        if risks:
            raise _risky(plan.config.name, risks)
    except BaseException:
        plan.close()
        raise


def _as_named_now(guest: Guest, config: DomainConfig) -> DomainConfig:
    checks.refuse_special(guest)
    return config.with_name(guest.name or config.name)  # (a dying domain has no name)


def _task(
    config: DomainConfig, name: str, cfgfile: str, waiting: Callable[[str], None]
) -> DiskTask:
    """A task that knows what an interrupted revert to this snapshot noted of the disks.

    If there was none, whatever has the names of kept or prepared disks is somebody else's.
    """
    killed = Journal(config.uuid).unfinished_revert(cfgfile)
    if killed is None or killed.name != name:
        return DiskTask(name, waiting=waiting)
    if killed.destroy_begun:
        return DiskTask(name, finishes=killed.disk_state, waiting=waiting)
    prepared = killed.disk_state if killed.prepares else None
    return DiskTask(name, prepared=prepared, waiting=waiting)


def _risky(domain: str, risks: Sequence[str]) -> Risky:
    what = f"reverting {domain} is risky: {'; '.join(risks)}; to revert anyway, add --force"
    return Risky(what, reasons=risks)


def _current(host: Host, domain: str, config: DomainConfig) -> Guest | None:
    """The domain to be reverted; ``None`` if it is off."""
    if guest := host.find_if_there(domain):
        return guest
    if domain not in (config.name, config.uuid):
        raise DomainNotFound(
            f"there is no domain {domain!r}, and the snapshot is of {config.name!r}: use this name",
            domain=domain,
            nearest=(config.name,),
        )
    if renamed := host.find_if_there(config.uuid):
        raise Refused(f"{domain!r} is called {renamed.name!r} now: use this name")
    return None
