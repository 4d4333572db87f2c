"""What a snapshot will be: from a request and a live domain to a plan that can be printed and run.

Everything that can be known beforehand is checked here, while the guest runs and nothing has
been touched.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pyxlsnap import cfgfile, checks
from pyxlsnap.disks import default_request, strategies
from pyxlsnap.errors import AlreadyExists, Refused, UsageError
from pyxlsnap.files import refuse_existing
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
from pyxlsnap.ports import DiskStrategy, DiskTask, Guest, Host
from pyxlsnap.watched import loses_monitor

SNAPSHOT_DIR = Path("/var/lib/xen/snapshots")


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatePlan:
    """A snapshot that can be taken."""

    guest: Guest = field(repr=False)
    config: DomainConfig = field(repr=False)
    metadata: Metadata
    live: bool
    memory_path: Path
    cfgfile: Path
    cfgfile_text: str
    #: the disks in it, in the order of ``metadata.disks``
    devices: tuple[Disk, ...]
    strategies: tuple[DiskStrategy, ...]
    #: disks that will not be in it, each with the reason
    left_out: dict[str, str]
    warnings: tuple[str, ...]
    #: whoever acts on the guest's shutdowns will leave when it is suspended
    loses_monitor: bool = False

    @property
    def paused(self) -> bool:
        """Its owner has paused the domain, and it will be paused afterwards."""
        return self.metadata.state is RunState.PAUSED

    def close(self) -> None:
        """Let go of the connections that planning made."""
        for strategy in self.strategies:
            strategy.close()


def plan_create(
    host: Host,
    guest: Guest,
    wanted: SnapshotConfig,
    *,
    live: bool = False,
    directory: Path = SNAPSHOT_DIR,
    wait: Callable[[Guest], None] = checks.wait_for_frontends,
) -> CreatePlan:
    """Plan a snapshot of a running guest. Changes nothing.

    :param wanted: what the cfgfile says; what it leaves out is filled in.
    :param directory: where snapshots go that name no memory file.
    :raises UsageError: the name or a path will not do.
    :raises Refused: the guest, a disk or the host does not allow it.
    """
    created = int(time.time())
    name = check_name(wanted.name or datetime.fromtimestamp(created).strftime("%Y%m%d-%H%M%S"))
    state = checks.run_state(guest)
    config = guest.config()
    checks.refuse_config(config, guest)
    if live and config.kind is GuestKind.PV and not host.has_shadow_paging():
        raise Refused(
            f"--live is impossible for {guest.name}: it is a PV guest, and this Xen is built "
            f"without shadow paging, so it cannot log a PV guest's dirty pages; take the snapshot "
            f"without --live"
        )
    chosen, left_out, warnings = _choose_disks(config, wanted.disks, name)
    checks.refuse_shared(host, guest, [d for d, _ in chosen])
    memory_path = _memory_path(wanted, directory / guest.uuid, name)
    cfg = memory_path.parent / f"{name}.cfg"
    refuse_existing(memory_path)
    if os.path.lexists(cfg):
        raise AlreadyExists(
            f"{cfg} exists, and our cfgfile would go there: choose another name, or another "
            f"directory for memory_path",
            where=str(cfg),
        )
    requests = tuple(request for _, request in chosen)
    _refuse_same_place(requests, memory_path, cfg)
    complete = SnapshotConfig(name, wanted.description, str(memory_path), requests)
    checks.refuse_full(memory_path.parent, guest.info().memory_kb)
    inactive = live and config.kind is GuestKind.HVM
    task = DiskTask(name, inactive=inactive, asked=wanted.disks is not None)
    plan = CreatePlan(
        guest=guest,
        config=config,
        metadata=Metadata(
            name=name,
            description=wanted.description or "",
            created=created,
            state=state,
            disks=requests,
            versions=checks.versions(host),
        ),
        live=live,
        memory_path=memory_path,
        cfgfile=cfg,
        cfgfile_text=cfgfile.render(complete),
        devices=tuple(disk for disk, _ in chosen),
        strategies=strategies(chosen, task),
        left_out=left_out,
        warnings=tuple(warnings),
        loses_monitor=loses_monitor(host, guest),
    )
    try:
        for strategy in plan.strategies:
            strategy.check_create(guest.domid)
        wait(guest)
    except BaseException:
        plan.close()
        raise
    return plan


def _choose_disks(
    config: DomainConfig, wanted: Sequence[DiskRequest] | None, name: str
) -> tuple[list[tuple[Disk, DiskRequest]], dict[str, str], list[str]]:
    """The disks to snapshot, those left out (with the reason), and warnings."""
    writable = [d for d in config.disks if not d.left_out]
    left_out = {d.vdev: d.left_out for d in config.disks if d.left_out}
    if wanted is None:
        return [(d, default_request(d, name)) for d in writable], left_out, []
    by_vdev = {d.vdev: d for d in config.disks}
    unknown = [r.vdev for r in wanted if r.vdev not in by_vdev]
    if unknown:
        has = ", ".join(by_vdev) or "none"
        raise UsageError(f"the domain has no disk {', '.join(unknown)} (its disks: {has})")
    named = {r.vdev for r in wanted}
    forgotten = [d.vdev for d in writable if d.vdev not in named]
    left_out |= dict.fromkeys(forgotten, "not named in the cfgfile")
    warnings = [f"{v} is not in the snapshot: reverting it will be risky" for v in forgotten]
    return [(by_vdev[r.vdev], r) for r in wanted], left_out, warnings


def _refuse_same_place(requests: Sequence[DiskRequest], memory_path: Path, cfg: Path) -> None:
    """:raises UsageError: two things of the snapshot would have the same path."""
    places: dict[str, list[str]] = {}
    for request in requests:
        if request.path:
            places.setdefault(os.path.realpath(request.path), []).append(request.vdev)
    for path, what in ((memory_path, "the memory file"), (cfg, "the cfgfile")):
        places.setdefault(os.path.realpath(path), []).append(what)
    for place, found in places.items():
        if len(found) > 1:
            raise UsageError(
                f"{' and '.join(found)} would be in one place, {place}: give each its own"
            )


def _memory_path(wanted: SnapshotConfig, directory: Path, name: str) -> Path:
    path = Path(wanted.memory_path) if wanted.memory_path else directory / f"{name}.save"
    if not path.is_absolute():
        path = Path.cwd() / path
    if wanted.memory_path and not path.parent.is_dir():
        raise Refused(f"memory_path {path}: there is no directory {path.parent}: make it first")
    return path
