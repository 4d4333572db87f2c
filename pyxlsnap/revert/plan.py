"""What a revert will do: from a cfgfile and its memory file to a plan that can be printed and run.

Everything that can be known beforehand is checked here; nothing has been touched yet.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pyxlsnap.disks.protocol import DiskStrategy, DiskTask
from pyxlsnap.disks.registry import close_all, strategies
from pyxlsnap.errors import BadMemoryFile, ConfigError, DomainNotFound, Refused, Risky, XenError
from pyxlsnap.guest import checks
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.linux.files import open_regular, refusing_os_errors
from pyxlsnap.memory import Header, read_header, walk
from pyxlsnap.model import (
    Disk,
    DiskRequest,
    DomainConfig,
    Metadata,
    RunState,
    SnapshotConfig,
    check_name,
    check_uuid,
)
from pyxlsnap.results import Plan, PlannedDisk


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
    #: the disk snapshots
    requests: tuple[DiskRequest, ...]
    #: the same disks as the domain has them
    devices: tuple[Disk, ...]
    strategies: tuple[DiskStrategy, ...]
    warnings: tuple[str, ...]

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
        """Let go of the connections that were made."""
        close_all(self.strategies)


@refusing_os_errors()
def plan_revert(
    host: Host,
    domain: str,
    wanted: SnapshotConfig,
    cfg: Path,
    *,
    running: bool = False,
    force: bool = False,
    name: str = "",
    check: Callable[[], None] = lambda: None,
) -> RevertPlan:
    """Plan a revert. Changes nothing.

    :param domain: name, domid or uuid; it may be off, and is then found by the memory file.
    :param running: the domain runs afterwards, whatever the snapshot says.
    :param force: do what is merely risky.
    :param name: the name that the domain had, if that is known better than by the memory file.
    :param check: called again and again; what it raises ends the planning.
    :raises ConfigError: the cfgfile does not name a memory file.
    :raises BadMemoryFile: the memory file is not whole.
    :raises Refused: it cannot be done.
    :raises Risky: it cannot be shown to be safe, and ``force`` was not given.
    """
    header, config, memory_path, xen = _read_memory(wanted, cfg, check)
    meta = header.metadata
    config = config.with_name(name) if name else config
    guest = _current(host, domain, config)
    if guest:
        checks.refuse_special(guest)
        config = config.with_name(guest.name or config.name)  # one half destroyed has none
    snapshot = _snapshot_name(wanted, meta, cfg)
    requests = _requests(wanted, meta, config)
    by_vdev = {d.vdev: d for d in config.disks}
    unknown = [r.vdev for r in requests if r.vdev not in by_vdev]
    if unknown:
        raise ConfigError(
            f"{config.name}, as it was saved, has no disk {', '.join(unknown)} (its disks: "
            f"{', '.join(by_vdev) or 'none'})",
            file=str(cfg),
            item="disks",
        )
    chosen = [(by_vdev[r.vdev], r) for r in requests]
    checks.refuse_name_or_uuid_in_use(host, config, guest)
    checks.refuse_shared(host, guest, [d for d in config.disks if not d.left_out])
    checks.refuse_missing_paths(config, besides={r.vdev for r in requests})
    checks.refuse_held(guest, [d for d, _ in chosen])
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
        name=snapshot,
        cfgfile=cfg,
        memory_path=memory_path,
        stream_offset=header.stream_offset,
        state=RunState.RUNNING if running or meta is None else meta.state,
        requests=requests,
        devices=tuple(disk for disk, _ in chosen),
        strategies=strategies(chosen, DiskTask(snapshot), meta.kinds if meta else {}),
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
        return _saved_config(read_header(file, str(path))).uuid


def _saved_config(header: Header) -> DomainConfig:
    """:raises ValueError: it is none, or its uuid (which names files of ours) is none."""
    config = DomainConfig.parse(header.config_json)
    if config.uuid != check_uuid(config.uuid):
        raise ValueError(f"its uuid is {config.uuid!r}")
    return config


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
    except BadMemoryFile as e:
        what = e.message.removeprefix(f"{path}: ")
        raise BadMemoryFile(
            f"{what}; take another copy of the file, or another snapshot", path=str(path)
        ) from e
    except OSError as e:
        raise BadMemoryFile(f"cannot be read: {e.strerror}", path=str(path)) from e
    except ValueError as e:
        raise BadMemoryFile(f"its domain configuration cannot be read: {e}", path=str(path)) from e


def _read_memory(
    wanted: SnapshotConfig, cfg: Path, check: Callable[[], None]
) -> tuple[Header, DomainConfig, Path, tuple[int, int]]:
    """Read the memory file from its header to its END; its Xen release comes last."""
    path = _named_memory_path(wanted, cfg)
    with _reading(path) as file:
        header = read_header(file, str(path))
        file.seek(header.stream_offset)
        summary = walk(file, str(path), on_bytes=lambda _: check())
        config = _saved_config(header)
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
            nearest=(config.name,),
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
            f"would not fit the memory; use the cfgfile of that snapshot",
            file=str(cfg),
            item="name",
        )
    name = wanted.name or (meta.name if meta else None)
    if not name:
        raise ConfigError(
            "is missing, and the memory file (made by another program) does not tell it: add the "
            "name that its disk snapshots have",
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
    return reasons + _changes(config, guest) + checks.libvirt_reason(guest)


def _changes(config: DomainConfig, guest: Guest) -> list[str]:
    """Disks that have come, gone or changed since the snapshot."""
    try:
        present = guest.config()
    except (XenError, Refused) as e:  # its QEMU has crashed, for one: a good reason to revert
        return [f"the present configuration of {guest.name} cannot be read ({e})"]
    now, then = (
        {(d.vdev, os.path.realpath(d.target)) for d in c.disks if not d.left_out}
        for c in (present, config)
    )
    changed = sorted({vdev for vdev, _ in now ^ then})
    return [f"disks were added, removed or changed since: {', '.join(changed)}"] if changed else []
