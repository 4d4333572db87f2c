"""Whether a domain can be snapshotted in its present state, and what is known of it then."""

from pyxlsnap.create.downtime import memory_seconds
from pyxlsnap.create.last_time import recalled
from pyxlsnap.dataclass import dataclass
from pyxlsnap.guest import checks
from pyxlsnap.guest.device_model import examine_device_model
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.guest.qemu_version import examine_loading, program, runs
from pyxlsnap.model import DomainConfig, RunState


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
    #: why it could not be restored on this host as it is
    warnings: list[str]
    #: the disks that its QEMU emulates
    emulated: frozenset[str]


def examine(host: Host, guest: Guest, *, live: bool) -> Examined:
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
        memory_s = memory_seconds(memory_kb, live=live)
    return Examined(
        config=config,
        state=state,
        targets=targets,
        devices=devices,
        memory_kb=memory_kb,
        memory_s=memory_s,
        measured=measured,
        versions=versions,
        warnings=_warnings(host, guest, config, qemu.version),
        emulated=qemu.emulated,
    )


def _warnings(host: Host, guest: Guest, config: DomainConfig, version: str) -> list[str]:
    """:param version: of the guest's QEMU; "" if it has no state there."""
    if not version:
        return []
    path = program(host, config)
    # It may be one from before an upgrade: then that is asked which a restore would start.
    known = version if runs(guest.device_model_pid(), path) else ""
    return [finding.text for finding in examine_loading(path, known)]
