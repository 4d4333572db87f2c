"""Planning a clone: from a cfgfile to a plan that can be printed and run.

All checks that are possible beforehand are here: nothing has been changed yet.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import field
from pathlib import Path

from pyxlsnap.cancel import Cancel
from pyxlsnap.clone.identity import Wanted, own
from pyxlsnap.clone.look import Look
from pyxlsnap.clone.macs import lock_macs, other_nics
from pyxlsnap.clone.names import SECOND
from pyxlsnap.clone.shared import check_edited, refuse_unbridged
from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.abilities import CloningStrategy
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.disks.registry import close_all, strategies
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import ConfigError, Refused, Risky, UsageError
from pyxlsnap.guest import checks, snapshot
from pyxlsnap.guest.held_memory import with_room
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.guest.read_once import read_saved
from pyxlsnap.guest.risks import find_risks
from pyxlsnap.guest.snapshot import Saved
from pyxlsnap.journal import CloneEntry
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.limits import refuse_limits
from pyxlsnap.model import Disk, DiskRequest, DomainConfig, RunState
from pyxlsnap.request import CloneRequest
from pyxlsnap.results import CloneDisk, Plan, PlannedDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class ClonePlan:
    """A clone that can be made."""

    request: CloneRequest = field(repr=False)
    #: the clone's uuid
    uuid: str
    saved: Saved = field(repr=False)
    #: the snapshot's name
    name: str
    #: the clone's configuration
    config: DomainConfig = field(repr=False)
    #: the same, with room for all memory that the domain held: see :mod:`..guest.held_memory`
    restored: DomainConfig = field(repr=False)
    #: the disks of the snapshot, each with its disk snapshot
    chosen: Sequence[tuple[Disk, DiskRequest]]
    #: the disks of the clone
    children: tuple[CloneDisk, ...]
    strategies: tuple[CloningStrategy, ...]
    #: the clone that is destroyed before; ``None``: none
    old: CloneEntry | None
    #: its domain; ``None``: none, or it is off
    guest: Guest | None = field(repr=False)
    #: for the last look
    look: Look = field(repr=False)
    state: RunState
    changes: tuple[str, ...]
    warnings: tuple[str, ...]
    #: :attr:`pyxlsnap.disks.task.DiskTask.waiting`
    waiting: Callable[[str], None] = field(repr=False)
    #: the locks of :mod:`.macs`
    locks: ExitStack = field(repr=False)

    @property
    def origin(self) -> str:
        """The uuid of the snapshot's domain."""
        return self.saved.config.uuid

    def summary(self) -> Plan:
        """The plan as a plain value."""
        requests = {request.vdev: request.path for _, request in self.chosen}
        disks = {disk.vdev: disk for disk in self.saved.config.disks}
        return Plan(
            operation="clone",
            name=self.name,
            domain=self.config.name,
            uuid=self.uuid,
            memory_path=str(self.saved.path),
            cfgfile=self.request.cfgfile,
            live=False,
            state=self.state,
            disks=tuple(
                PlannedDisk(c.vdev, c.target, c.how, requests[c.vdev]) for c in self.children
            ),
            left_out={v: d.left_out for v, d in disks.items() if v not in requests},
            warnings=(*self.warnings, *self.changes),
            seconds_suspended=None,
        )

    def close(self) -> None:
        """Close the connections of the disk strategies, and release the locks."""
        close_all(self.strategies)
        self.locks.close()


@refusing_os_errors()
def make_plan(
    host: Host,
    request: CloneRequest,
    uuid: str,
    old: CloneEntry | None,
    cancel: Cancel,
    waiting: Callable[[str], None] = lambda _: None,
) -> ClonePlan:
    """Plan a clone. Changes nothing.

    :param uuid: the clone's.
    :param old: the clone that is replaced; ``None``: none.
    :param waiting: :attr:`pyxlsnap.disks.task.DiskTask.waiting`.
    :raises ConfigError, BadMemoryFile: the cfgfile names no memory file, or a damaged one.
    :raises UsageError: the configuration was edited where it is fixed.
    :raises Refused, Cancelled: the clone cannot be made, or ``cancel`` was set.
    :raises Risky: the clone cannot be shown to be safe, and ``force`` is not set.
    """
    refuse_limits()
    source = _read(request, cancel, waiting)
    try:
        plan = _plan(host, source, request, uuid, old, waiting)
        checks.refuse_memory(host, plan.restored, plan.guest)
        # After all that --force cannot help with.
        if source.risks and not request.force:
            raise _risky(request.domain, source.name, source.risks)
    except BaseException:
        close_all(source.strategies)
        source.locks.close()
        raise
    return plan


def own_configuration(
    host: Host, request: CloneRequest, uuid: str, old: CloneEntry | None, cancel: Cancel
) -> DomainConfig:
    """The configuration that a clone would have, for the caller to change.

    What the caller may yet change is not refused.

    :raises UsageError, Refused, Cancelled: as :func:`make_plan`.
    """
    source = _read(request, cancel, lambda _: None)
    try:
        asked, label = _asked(request, source.chosen, old), _label(request, old)
        children = [c for s in source.strategies for c in s.check_clone(label, asked)]
        return _configuration(host, source.saved, request, uuid, children)[0]
    finally:
        close_all(source.strategies)


@dataclass(slots=True)
class _Source:
    """The snapshot that a clone is made from."""

    saved: Saved
    name: str
    chosen: Sequence[tuple[Disk, DiskRequest]]
    strategies: tuple[CloningStrategy, ...]
    #: why the clone cannot be shown to be safe, one line each
    risks: list[str] = field(default_factory=list)
    locks: ExitStack = field(default_factory=ExitStack)


def _read(request: CloneRequest, cancel: Cancel, waiting: Callable[[str], None]) -> _Source:
    assert request.config
    saved = read_saved(request.config, request.cfgfile, cancel.check)
    meta = saved.metadata
    name = snapshot.snapshot_name(request.config, request.cfgfile, meta)
    chosen = snapshot.choose_disks(request.config, request.cfgfile, meta, saved.config)
    checks.refuse_silent(saved.config.disks, [r for _, r in chosen])
    task = DiskTask(name, check=cancel.check, waiting=waiting)
    found = strategies(chosen, task, meta.kinds if meta else {})
    try:
        return _Source(saved, name, chosen, tuple(map(_cloning, found)))
    except Refused:
        close_all(found)
        raise


def _plan(
    host: Host,
    source: _Source,
    request: CloneRequest,
    uuid: str,
    old: CloneEntry | None,
    waiting: Callable[[str], None],
) -> ClonePlan:
    asked, label = _asked(request, source.chosen, old), _label(request, old)
    children = tuple(c for s in source.strategies for c in s.check_clone(label, asked))
    config, changes = _configuration(host, source.saved, request, uuid, children)
    refuse_unbridged(request.bridge, config)
    guest = host.find_if_there(uuid) if old else None
    source.risks += lock_macs(source.saved.config, config, source.locks)
    look = Look(host, source.saved, config, guest, label, asked, children)
    found = look.again(old.line_files if old else {})
    source.risks += [*_risks(look, source.chosen), *found.risks]
    return ClonePlan(
        request=request,
        uuid=uuid,
        saved=source.saved,
        name=source.name,
        config=config,
        restored=with_room(config, source.saved.memory_kb),
        chosen=source.chosen,
        children=children,
        strategies=source.strategies,
        old=old,
        guest=guest,
        look=look,
        state=snapshot.state_after(request.running, request.paused, source.saved.metadata),
        changes=tuple(changes),
        warnings=(*source.risks, *found.warnings),
        waiting=waiting,
        locks=source.locks,
    )


def _configuration(
    host: Host,
    saved: Saved,
    request: CloneRequest,
    uuid: str,
    children: Sequence[CloneDisk],
) -> tuple[DomainConfig, list[str]]:
    """The clone's configuration, and what is its own in it.

    :raises UsageError: the caller has changed it where it is fixed.
    """
    macs = {mac for _, mac, _ in other_nics(host, uuid)}
    wanted = Wanted(
        name=request.domain, uuid=uuid, disks=children, bridge=request.bridge, macs=macs
    )
    made, changes = own(saved.config, wanted)
    return _edited(request, made, {child.vdev for child in children}), changes


def _cloning(strategy: DiskStrategy) -> CloningStrategy:
    if not isinstance(strategy, CloningStrategy):
        raise Refused(
            f"{', '.join(strategy.vdevs)}: the disk strategy {strategy.kind!r} cannot make the "
            f"disks of a clone: use a newer release of the strategy"
        )
    return strategy


def _label(request: CloneRequest, old: CloneEntry | None) -> str:
    """The end of the names of the clone's disks: other names than those of the clones before."""
    # (A strategy may make a directory for the disks, under such a name.)
    label, taken = request.domain, {part for path in _taken(old) for part in Path(path).parts}
    while any(part.endswith(f".{label}") for part in taken):
        label += SECOND
    return label


def _taken(old: CloneEntry | None) -> set[str]:
    """The disks of the clone before, and those of earlier ones that could not be deleted."""
    entries = (old, *old.leftovers) if old else ()
    return {child.target for entry in entries for child in entry.children}


def _asked(
    request: CloneRequest, chosen: Sequence[tuple[Disk, DiskRequest]], old: CloneEntry | None
) -> Mapping[str, DiskRequest]:
    """Where the user wants the disks; beside a disk of the clone before that is there yet.

    :raises UsageError: the snapshot has no such disk.
    """
    vdevs = [request.vdev for _, request in chosen]
    if unknown := [r.vdev for r in request.disks if r.vdev not in vdevs]:
        raise UsageError(
            f"the snapshot has no disk {', '.join(unknown)} (its disks: "
            f"{', '.join(vdevs) or 'none'})"
        )
    return {r.vdev: _beside(r, _taken(old)) for r in request.disks}


def _beside(asked: DiskRequest, taken: set[str]) -> DiskRequest:
    path = asked.path
    while path and str(Path(path)) in taken:
        path += SECOND
    return asked if path == asked.path else DiskRequest(asked.vdev, path, asked.format)


def _edited(request: CloneRequest, own: DomainConfig, made: set[str]) -> DomainConfig:
    """The configuration as the caller has changed it.

    :raises UsageError: it is no configuration, or was changed where it is fixed.
    """
    if not request.edited:
        return own
    try:
        edited = DomainConfig.parse(request.edited)
    except ValueError as e:
        raise UsageError(f"the edited configuration of {request.domain}: {e}") from e
    check_edited(own, edited, made)
    return edited


def _risks(look: Look, chosen: Sequence[tuple[Disk, DiskRequest]]) -> list[str]:
    saved, vdevs = look.saved, {disk.vdev for disk, _ in chosen}
    # (Writable disks that are not in the snapshot are refused, and are no mere risk.)
    all_disks = vdevs | {d.vdev for d in saved.config.disks if not d.left_out}
    return find_risks(look.host, saved.config, None, all_disks, memory=saved.path, xen=saved.xen)


def _risky(clone: str, name: str, risks: Sequence[str]) -> Risky:
    return Risky(
        f"making the clone {clone} of {name} is risky: {'; '.join(risks)}; to make it anyway, "
        f"add --force",
        reasons=risks,
    )


def read_origin(request: CloneRequest) -> tuple[str, int | None]:
    """The uuid of the snapshot's domain, and :attr:`.Saved.created`. Reads the header only.

    :raises ConfigError, BadMemoryFile: as :func:`make_plan`.
    """
    if request.config is None:
        raise ConfigError("was not read", file=request.cfgfile)
    return snapshot.saved_origin(request.config, request.cfgfile)
