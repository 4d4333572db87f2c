"""The checks of a plan: what is refused, each with its reason and the way out.

They look and never touch. Each raises :class:`~pyxlsnap.errors.Refused`, or returns its finding;
those of a sequence under way (``notice_…``) raise :class:`~pyxlsnap.errors.OperationFailed`.
"""

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.errors import DomainNotFound, OperationFailed, Refused
from pyxlsnap.guest.dom0_memory import spare_dom0_kb
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.linux.processes import holders, process_text
from pyxlsnap.model import Disk, DomainConfig, GuestKind, RunState
from pyxlsnap.version import VERSION
from pyxlsnap.xen.domain import XENBUS_CONNECTED, XENBUS_INITIALISING

_FRONTENDS_S = 30.0
_UNUSED_S = 5.0
_POLL_S = 0.1
_SLACK_KB = 64 * 1024

# Lists of devices in libxl's JSON whose state no memory file can hold.
_DEVICES = {
    "pcidevs": "passed-through PCI devices",
    "dtdevs": "passed-through devices",
    "usbdevs": "passed-through USB devices",
    "vtpms": "a vTPM",
    "p9s": "a 9pfs share",
}


def refuse_special(guest: Guest) -> None:
    """dom0 is no guest, nor is a stub domain."""
    if guest.domid == 0:
        raise Refused("domain 0 is the host itself and cannot be snapshotted or reverted")
    if guest.is_stub_domain():
        raise Refused(
            f"{guest.name} is a stub domain, a part of another guest, and cannot be snapshotted or "
            f"reverted by itself"
        )


def run_state(guest: Guest) -> RunState:
    """Whether the domain runs or is paused; in no other state it can be snapshotted.

    :raises Refused: it is in another.
    """
    refuse_special(guest)
    info = guest.info()
    if info.dying:
        raise Refused(f"{guest.name} is dying: there is nothing left to snapshot; start it anew")
    if info.suspended:
        raise Refused(
            f"{guest.name} is suspended already: resume it first "
            f"(pyxlsnap's own: `pyxlsnap snapshot-recover {guest.uuid}`)"
        )
    if info.shutdown:
        raise Refused(
            f"{guest.name} has shut down ({info.shutdown_reason}): only one that runs or is "
            f"paused has a memory to save: start it again"
        )
    return RunState.PAUSED if info.paused else RunState.RUNNING


def notice_change(guest: Guest, *, paused: bool) -> None:
    """Make sure that a domain is still as it was when it was planned for: it is to be suspended.

    :raises DomainNotFound: it is gone.
    :raises OperationFailed: somebody else has changed it.
    """
    info = guest.check_same()
    what = ""
    if info.shutdown:  # suspended: by another program that saves it, and must not be disturbed
        what = f"{guest.name} has shut down meanwhile ({info.shutdown_reason})"
    elif info.paused != paused:
        what = f"somebody else has {'un' if paused else ''}paused {guest.name} meanwhile"
    if what:
        raise OperationFailed(what, step="check")
    notice_rename(guest)


def notice_rename(guest: Guest) -> None:
    """:raises OperationFailed: it has another name than when it was resolved."""
    if (name := guest.present_name()) not in (guest.name, ""):
        raise OperationFailed(f"{guest.name} has been renamed to {name} meanwhile", step="check")


def notice_disks(guest: Guest, targets: Sequence[str]) -> None:
    """:raises OperationFailed: its disks are not those of the configuration that was saved."""
    if changed := set(targets) ^ set(guest.disk_targets()):
        raise OperationFailed(
            f"disks of {guest.name} have come or gone meanwhile: {', '.join(sorted(changed))}",
            step="check",
        )


def refuse_config(config: DomainConfig, guest: Guest) -> None:
    """What the configuration says that makes a snapshot impossible."""
    found = [what for key, what in _DEVICES.items() if config.values.get(key)]
    build = config.section("b_info")
    hvm = build.get("type.hvm", {})
    for key, what in (
        ("nested_hvm", "nested virtualization"),
        ("dm_restrict", "a restricted device model (dm_restrict)"),
        ("device_model_stubdomain", "a stub domain"),
    ):
        if "True" in (build.get(key), hvm.get(key) if isinstance(hvm, Mapping) else None):
            found.append(what)
    if build.get("vnuma_nodes"):
        found.append("vNUMA")
    if config.section("c_info").get("driver_domain") == "True":
        found.append("a driver domain's role")
    if found:
        raise Refused(
            f"{guest.name} has {', '.join(found)}, which cannot be saved: take it away first"
        )
    try:
        config.json.encode()
    except UnicodeEncodeError as e:
        near = config.json[max(0, e.start - 40) : e.end]
        raise Refused(
            f"{guest.name} has something in its configuration that is not UTF-8 ({near}), and no "
            f"program could read it from a memory file: rename it first"
        ) from None
    if reasons := libvirt_reason(guest):
        raise Refused(
            f"{reasons[0]}: pyxlsnap would act behind libvirt's back, use "
            f"its own snapshots (virsh snapshot-create)"
        )


def refuse_live(host: Host, config: DomainConfig, guest: Guest) -> None:
    """Where the hypervisor cannot log dirty pages, a live snapshot is impossible."""
    if config.kind is GuestKind.PV and not host.has_shadow_paging():
        raise Refused(
            f"--live is impossible for {guest.name}: it is a PV guest, and this Xen is built "
            f"without shadow paging, so it cannot log a PV guest's dirty pages; take the snapshot "
            f"without --live"
        )


def libvirt_reason(guest: Guest) -> list[str]:
    """Whether libvirt's Xen driver looks after the domain: it keeps a status file for each."""
    managed = os.path.exists(
        paths.LIBVIRT_DOMAINS / f"{guest.name}.xml"
    )  # no name is too long for that
    return [f"{guest.name} is managed by libvirt"] if managed else []


def refuse_shared(host: Host, guest: Guest | None, disks: Sequence[Disk]) -> None:
    """A disk to be snapshotted or reverted must belong to nobody else."""
    ours = {os.path.realpath(d.target): d.vdev for d in disks}
    for info in host.domains():
        if info.domid == 0 or (guest and info.domid == guest.domid):
            continue
        try:
            other = host.find(str(info.domid))
            shared = [t for t in other.disk_targets() if os.path.realpath(t) in ours]
        except DomainNotFound:
            continue  # it has just gone
        if shared:
            vdev = ours[os.path.realpath(shared[0])]
            raise Refused(f"{vdev}: domain {other.name} has {shared[0]} too: detach it there")


def refuse_held(guest: Guest | None, disks: Sequence[Disk]) -> None:
    """Nothing but the guest's own QEMU may have a disk open that is to be reverted."""
    own = guest.device_model_pid() if guest else None
    for disk in disks:
        if not os.path.exists(disk.target):
            continue  # its strategy knows what that means
        for pid in holders(Path(disk.target)):
            if pid != own:
                raise Refused(
                    f"{disk.vdev}: {disk.target} is open in {process_text(pid)}: wait for "
                    f"it, or end it"
                )


def refuse_full(directory: Path, memory_kb: int) -> None:
    """Space for the memory file. A live one repeats pages, how many nobody knows."""
    while not os.path.lexists(directory):
        directory = directory.parent
    if not directory.is_dir():
        raise Refused(f"{directory} is no directory: name another place with memory_path")
    if not os.access(directory, os.W_OK | os.X_OK):
        read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
        why = "its filesystem is mounted read-only" if read_only else "permission denied"
        raise Refused(f"cannot write in {directory} ({why}): name another place with memory_path")
    fs = os.statvfs(directory)
    free_kb, need_kb = fs.f_bavail * fs.f_frsize // 1024, memory_kb + _SLACK_KB
    if free_kb < need_kb:
        raise Refused(
            f"{directory} has {free_kb // 1024} MiB free, and the memory file takes about "
            f"{need_kb // 1024} MiB: name another place with memory_path"
        )


def wait_for_frontends(
    guest: Guest,
    *,
    timeout_s: float = _FRONTENDS_S,
    unused_s: float = _UNUSED_S,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Wait until every disk and network frontend is connected.

    A guest saved while one of them is connecting (just after a restore) cannot be restored
    (xen-lab.md, E8). A device that the guest has no driver for never connects: after ``unused_s``
    seconds it is taken as unused.

    :param check: called again and again; what it raises ends the wait.
    :raises Refused: one is still on its way after ``timeout_s`` seconds.
    """
    start = time.monotonic()
    while True:
        states = guest.frontend_states()
        waited = time.monotonic() - start
        settled = {XENBUS_CONNECTED} | ({XENBUS_INITIALISING} if waited >= unused_s else set())
        moving = {device: s for device, s in states.items() if s not in settled}
        if not moving:
            return
        if waited >= timeout_s:
            raise Refused(
                f"{guest.name}: {', '.join(moving)} is neither connected nor unused (xenbus state "
                f"{', '.join(map(str, moving.values()))}): a snapshot now could not be restored; "
                f"try again when the guest has booted, or detach the device"
            )
        check()
        time.sleep(_POLL_S)


def refuse_name_or_uuid_in_use(host: Host, config: DomainConfig, guest: Guest | None) -> None:
    """Once ``guest`` is gone, nobody may have the name or the uuid of the domain to be."""
    for key in (config.name, config.uuid):
        if key.isascii() and key.isdigit():
            continue  # find() would take it for a domid
        try:
            holder = host.find(key)
        except DomainNotFound:
            continue
        if guest is None or holder.domid != guest.domid:
            raise Refused(
                f"another domain ({holder.name}, domid {holder.domid}) holds {key}, which the "
                f"reverted domain needs: rename or destroy it"
            )


def refuse_missing_paths(config: DomainConfig, *, besides: Collection[str] = ()) -> None:
    """Every host path that the saved configuration names must be there.

    :param besides: disks that are put back: what they need is known to their strategies.
    """
    build = config.section("b_info")
    needed = [str(build.get(key) or "") for key in ("kernel", "ramdisk")]
    needed += [
        d.target
        for d in config.disks
        if d.format != "empty" and not d.script and d.vdev not in besides
    ]
    missing = [p for p in needed if p.startswith("/") and not os.path.exists(p)]
    bridges = [str(n.get("bridge") or "") for n in config.devices("nics")]
    missing += [
        f"bridge {b}" for b in bridges if b and not os.path.exists(paths.SYS / "class/net" / b)
    ]
    if missing:
        raise Refused(
            f"the saved domain needs {', '.join(missing)}, which does not exist: put it there first"
        )


def refuse_memory(host: Host, config: DomainConfig, guest: Guest | None) -> None:
    """Memory for the restored domain, once the present one has gone."""
    need, spare = host.needed_memory_kb(config), spare_dom0_kb(host)
    have = host.free_memory_kb() + (guest.info().memory_kb if guest else 0) + spare
    if have < need:
        raise Refused(
            f"{config.name} needs {need // 1024} MiB of memory and Xen has {have // 1024} MiB"
            + (f", with {spare // 1024} MiB that dom0 could give" if spare else "")
            + ": shut down another domain, or make it smaller (xl mem-set)"
        )


def versions(host: Host) -> dict[str, str]:
    """What goes into the memory file about its makers."""
    return {"pyxlsnap": VERSION, "xen": "{}.{}".format(*host.xen_version())}
