"""From a request and a live domain to a plan: a value that can be printed, checked and run.

Everything that can be known beforehand is checked here, while the guest runs and nothing has
been touched.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from pyxlsnap import cfgfile, checks
from pyxlsnap.disks import strategies
from pyxlsnap.errors import BadMemoryFile, ConfigError, DomainNotFound, Refused, Risky, UsageError
from pyxlsnap.files import open_regular, refuse_existing
from pyxlsnap.memory import Header, read_header, walk
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
from pyxlsnap.ports import DiskStrategy, Guest, Host

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
    strategies: tuple[DiskStrategy, ...]
    #: disks that will not be in it, each with the reason
    left_out: dict[str, str]
    warnings: tuple[str, ...]

    def close(self) -> None:
        """Let go of the connections that planning made."""
        for strategy in self.strategies:
            strategy.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class RevertPlan:
    """A revert that can be done."""

    #: the domain to be destroyed; ``None`` when it is off
    guest: Guest | None = field(repr=False)
    config: DomainConfig = field(repr=False)
    name: str
    cfgfile: Path
    memory_path: Path
    stream_offset: int
    state: RunState
    strategies: tuple[DiskStrategy, ...]
    warnings: tuple[str, ...]

    def close(self) -> None:
        """Let go of the connections that were made."""
        for strategy in self.strategies:
            strategy.close()


# create


def plan_create(
    host: Host,
    guest: Guest,
    wanted: SnapshotConfig,
    *,
    live: bool = False,
    directory: Path = SNAPSHOT_DIR,
    wait: Callable[[Guest, DomainConfig], None] = checks.wait_for_frontends,
) -> CreatePlan:
    """Plan a snapshot of a running guest. Changes nothing.

    :param wanted: what the cfgfile says; what it leaves out is filled in.
    :param directory: where snapshots go that name no memory file.
    :raises UsageError: the name or a path will not do.
    :raises Refused: the guest, a disk or the host does not allow it.
    """
    created = int(time.time())
    name = check_name(wanted.name or datetime.fromtimestamp(created).strftime("%Y%m%d-%H%M%S"))
    checks.refuse_state(guest)
    config = guest.config()
    checks.refuse_config(config, guest)
    if live and config.kind is GuestKind.PV and not host.has_shadow_paging():
        raise Refused(
            f"--live is impossible for {guest.name}: it is a PV guest, and this Xen is built "
            f"without shadow paging, so it cannot log a PV guest's dirty pages; take the snapshot "
            f"without --live"
        )
    chosen, left_out, warnings = _choose_disks(config, wanted.disks)
    checks.refuse_shared(host, guest, [d for d, _ in chosen])
    memory_path = _memory_path(wanted, directory / guest.uuid, name)
    cfg = memory_path.parent / f"{name}.cfg"
    for path in (memory_path, cfg):
        refuse_existing(path)
    requests = tuple(request for _, request in chosen)
    complete = SnapshotConfig(name, wanted.description, str(memory_path), requests)
    checks.refuse_full(memory_path.parent, guest.info().memory_kb)
    inactive = live and config.kind is GuestKind.HVM
    plan = CreatePlan(
        guest=guest,
        config=config,
        metadata=Metadata(
            name=name,
            description=wanted.description or "",
            created=created,
            state=RunState.RUNNING,
            disks=requests,
            versions=checks.versions(host),
        ),
        live=live,
        memory_path=memory_path,
        cfgfile=cfg,
        cfgfile_text=cfgfile.render(complete),
        strategies=strategies(chosen, name=name, inactive=inactive),
        left_out=left_out,
        warnings=(*warnings, *checks.monitor_warning(host, guest)),
    )
    try:
        for strategy in plan.strategies:
            strategy.check_create(guest.domid)
        wait(guest, config)
    except BaseException:
        plan.close()
        raise
    return plan


def _choose_disks(
    config: DomainConfig, wanted: Sequence[DiskRequest] | None
) -> tuple[list[tuple[Disk, DiskRequest]], dict[str, str], list[str]]:
    """The disks to snapshot, those left out (with the reason), and warnings."""
    writable = [d for d in config.disks if not d.left_out]
    left_out = {d.vdev: d.left_out for d in config.disks if d.left_out}
    if wanted is None:
        return [(d, DiskRequest(d.vdev)) for d in writable], left_out, []
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


def _memory_path(wanted: SnapshotConfig, directory: Path, name: str) -> Path:
    path = Path(wanted.memory_path) if wanted.memory_path else directory / f"{name}.save"
    if not path.is_absolute():
        path = Path.cwd() / path
    if wanted.memory_path and not path.parent.is_dir():
        raise Refused(f"memory_path {path}: there is no directory {path.parent}: make it first")
    return path


# revert


def plan_revert(
    host: Host,
    domain: str,
    wanted: SnapshotConfig,
    cfg: Path,
    *,
    running: bool = False,
    force: bool = False,
) -> RevertPlan:
    """Plan a revert. Changes nothing.

    :param domain: name, domid or uuid; it may be off, and is then found by the memory file.
    :param running: the domain runs afterwards, whatever the snapshot says.
    :param force: do what is merely risky.
    :raises ConfigError: the cfgfile does not name a memory file.
    :raises BadMemoryFile: the memory file is not whole.
    :raises Refused: it cannot be done.
    :raises Risky: it cannot be shown to be safe, and ``force`` was not given.
    """
    header, config, memory_path, xen = _read_memory(wanted, cfg)
    meta = header.metadata
    guest = _current(host, domain, config)
    if guest:
        checks.refuse_special(guest)
        config = config.with_name(guest.name)
    name = _snapshot_name(wanted, meta, cfg)
    requests = _requests(wanted, meta, config)
    by_vdev = {d.vdev: d for d in config.disks}
    unknown = [r.vdev for r in requests if r.vdev not in by_vdev]
    if unknown:
        raise ConfigError(
            f"the saved domain has no disk {', '.join(unknown)}", file=str(cfg), item="disks"
        )
    chosen = [(by_vdev[r.vdev], r) for r in requests]
    checks.refuse_name_or_uuid_in_use(host, config, guest)
    checks.refuse_shared(host, guest, [d for d in config.disks if not d.left_out])
    checks.refuse_missing_paths(config)
    checks.refuse_memory(host, config, guest)
    reasons = _risks(host, config, guest, {r.vdev for r in requests}, xen)
    if reasons and not force:
        raise Risky(
            f"reverting {config.name} is risky: {'; '.join(reasons)}: --force does it anyway",
            reasons=reasons,
        )
    plan = RevertPlan(
        guest=guest,
        config=config,
        name=name,
        cfgfile=cfg,
        memory_path=memory_path,
        stream_offset=header.stream_offset,
        state=RunState.RUNNING if running or meta is None else meta.state,
        strategies=strategies(chosen, name=name),
        warnings=tuple(reasons),
    )
    for strategy in plan.strategies:
        strategy.check_revert()
    return plan


def saved_uuid(wanted: SnapshotConfig, cfg: Path) -> str:
    """The uuid of the domain in a memory file: its header only, the file may yet be damaged.

    :raises ConfigError, BadMemoryFile: as :func:`plan_revert`.
    """
    path = _named_memory_path(wanted, cfg)
    with _reading(path) as file:
        return DomainConfig.parse(read_header(file, str(path)).config_json).uuid


def _named_memory_path(wanted: SnapshotConfig, cfg: Path) -> Path:
    if not wanted.memory_path:
        raise ConfigError(
            "names no memory file: use the cfgfile that snapshot-create wrote (its output names "
            "it), or add memory_path",
            file=str(cfg),
            item="memory_path",
        )
    return cfg.parent / wanted.memory_path  # an absolute path stays as it is


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        with open_regular(path) as file:
            yield file
    except OSError as e:
        raise BadMemoryFile(f"cannot be read: {e.strerror}", path=str(path)) from e
    except ValueError as e:
        raise BadMemoryFile(f"its domain configuration cannot be read: {e}", path=str(path)) from e


def _read_memory(
    wanted: SnapshotConfig, cfg: Path
) -> tuple[Header, DomainConfig, Path, tuple[int, int]]:
    """Read the memory file from its header to its END; its Xen release comes last."""
    path = _named_memory_path(wanted, cfg)
    with _reading(path) as file:
        header = read_header(file, str(path))
        file.seek(header.stream_offset)
        summary = walk(file, str(path))
        config = DomainConfig.parse(header.config_json)
    return header, config, path, (summary.xen_major, summary.xen_minor)


def _current(host: Host, domain: str, config: DomainConfig) -> Guest | None:
    """The domain to be reverted, if it is there."""
    try:
        return host.find(domain)
    except DomainNotFound:
        pass
    if domain not in (config.name, config.uuid):
        raise DomainNotFound(
            f"there is no domain {domain!r}, and the snapshot is of {config.name!r}: name that",
            domain=domain,
        )
    try:
        renamed = host.find(config.uuid)
    except DomainNotFound:
        return None
    raise Refused(f"{domain!r} is called {renamed.name!r} now: name it so")


def _snapshot_name(wanted: SnapshotConfig, meta: Metadata | None, cfg: Path) -> str:
    if wanted.name and meta and wanted.name != meta.name:
        raise ConfigError(
            f"is {wanted.name!r}, but the memory file belongs to snapshot {meta.name!r}: the disks "
            f"would not fit the memory",
            file=str(cfg),
            item="name",
        )
    name = wanted.name or (meta.name if meta else None)
    if not name:
        raise ConfigError(
            "is missing, and the memory file (made by another program) does not tell it",
            file=str(cfg),
            item="name",
        )
    return check_name(name)


def _requests(
    wanted: SnapshotConfig, meta: Metadata | None, config: DomainConfig
) -> tuple[DiskRequest, ...]:
    """The disk snapshots: the cfgfile's, else the memory file's, else every writable disk."""
    if wanted.disks is not None:
        return wanted.disks
    if meta is not None:
        return meta.disks
    return tuple(DiskRequest(d.vdev) for d in config.disks if not d.left_out)


def _risks(
    host: Host,
    config: DomainConfig,
    guest: Guest | None,
    in_snapshot: set[str],
    xen: tuple[int, int],
) -> list[str]:
    """Why the revert cannot be shown to be safe, a line each."""
    reasons = []
    outside = [d.vdev for d in config.disks if not d.left_out and d.vdev not in in_snapshot]
    if outside:
        reasons.append(f"{', '.join(outside)} is not in the snapshot and has gone on since")
    if xen != host.xen_version():
        made, now = ("{}.{}".format(*v) for v in (xen, host.xen_version()))
        reasons.append(f"the memory was saved on Xen {made}, and this is Xen {now}")
    if guest is None:
        return reasons
    if guest.uuid != config.uuid:
        reasons.append(f"{guest.name} has another uuid than the snapshot ({config.uuid})")
    if guest.info().suspended:
        return reasons  # by a snapshot that could not resume it: libxl would ask its stopped QEMU
    now_there = {
        (d.vdev, os.path.realpath(d.target)) for d in guest.config().disks if not d.left_out
    }
    then = {(d.vdev, os.path.realpath(d.target)) for d in config.disks if not d.left_out}
    changed = sorted({vdev for vdev, _ in now_there ^ then})
    if changed:
        reasons.append(f"disks were added, removed or changed since: {', '.join(changed)}")
    return reasons + checks.libvirt_reason(guest)
