"""The checks of a plan: each refusal names its reason and a way out.

The checks change nothing. They raise :class:`~pyxlsnap.errors.Refused`, or return their finding.
The checks inside a running sequence (``notice_…``) raise
:class:`~pyxlsnap.errors.OperationFailed`.
"""

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.disks.qcow2.backing import chain_files
from pyxlsnap.errors import OperationFailed, Refused
from pyxlsnap.guest.device_model import not_saved
from pyxlsnap.guest.dom0_memory import spare_dom0_kb
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.room import Claim
from pyxlsnap.linux.stalled import stat_within, stats_within
from pyxlsnap.linux.there import is_dir, lexists
from pyxlsnap.model import Disk, DiskRequest, DomainConfig, GuestKind, RunState
from pyxlsnap.text import quote
from pyxlsnap.version import VERSION

_SLACK_KB = 64 * 1024
#: the lists of pages in a memory file take one part in so many of the guest's maximum memory at
#: most: those of an HVM guest one in 409; those behind them, if all pages are there, one in 510
_LISTS = 200

# Keys of libxl's JSON that list devices whose state a memory file cannot hold.
_DEVICES = {
    "pcidevs": "passed-through PCI devices",
    "dtdevs": "passed-through devices",
    "usbdevs": "passed-through USB devices",
    "vtpms": "a vTPM",
    "p9s": "a 9pfs share",
}


def refuse_special(guest: Guest) -> None:
    """Refuse dom0 and stub domains."""
    if guest.domid == 0:
        raise Refused("domain 0 is the host itself and cannot be snapshotted or reverted")
    if guest.is_stub_domain():
        raise Refused(
            f"{guest.name} is a stub domain, a part of another guest, and cannot be snapshotted or "
            f"reverted by itself: use the name of the guest"
        )


def run_state(guest: Guest) -> RunState:
    """Whether the domain runs or is paused. In no other state a snapshot is possible.

    :raises Refused: the domain is in another state.
    """
    refuse_special(guest)
    info = guest.info()
    if info.dying:
        raise Refused(f"{guest.name} is being destroyed: start it again first")
    if info.suspended:
        raise Refused(
            f"{guest.name} is suspended already: resume it first (if pyxlsnap has suspended it: "
            f"`pyxlsnap snapshot-recover {guest.uuid}`)"
        )
    if info.shutdown:
        raise Refused(
            f"{guest.name} has shut down ({info.shutdown_reason}): only a running or paused guest "
            f"can be snapshotted: start it again"
        )
    if not info.has_run:
        raise Refused(
            f"{guest.name} has not run since it was started or restored, so its drivers do not "
            f"know their devices yet and its snapshot would not come back: run `xl unpause "
            f"{quote(guest.name)}`, and take the snapshot some seconds later"
        )
    return RunState.PAUSED if info.paused else RunState.RUNNING


def notice_change(guest: Guest, *, paused: bool) -> None:
    """Make sure that a domain has not changed since the plan was made, before it is suspended.

    :raises DomainNotFound: the domain no longer exists.
    :raises OperationFailed: another program has changed it.
    """
    info = guest.check_same()
    if info.shutdown:  # maybe suspended by another program that is saving it: do not interfere
        raise OperationFailed(
            f"{guest.name} has shut down meanwhile ({info.shutdown_reason})", step="check"
        )
    if info.paused != paused:
        raise OperationFailed(
            f"another program has {'un' if paused else ''}paused {guest.name} meanwhile",
            step="check",
        )
    notice_rename(guest)


def notice_resumed(guest: Guest) -> None:
    """Make sure that the guest is still suspended: else it may have written to its disks.

    :raises OperationFailed: another program has resumed it.
    :raises DomainNotFound: it is gone.
    """
    if not guest.check_same().suspended:
        what = f"another program has resumed {guest.name}"
        raise OperationFailed(f"{what}: memory and disks do not match", step="suspended")


def notice_rename(guest: Guest) -> None:
    """:raises OperationFailed: the domain was renamed since it was looked up."""
    if (name := guest.present_name()) not in (guest.name, ""):
        raise OperationFailed(f"{guest.name} was renamed to {name} meanwhile", step="check")


def notice_disks(guest: Guest, targets: Sequence[str]) -> None:
    """:raises OperationFailed: the domain's disks differ from the configuration that was saved."""
    if changed := set(targets) ^ set(guest.disk_targets()):
        raise OperationFailed(
            f"disks of {guest.name} were attached or detached meanwhile: "
            f"{', '.join(sorted(changed))}",
            step="check",
        )


def attached(guest: Guest | None, disks: Sequence[Disk]) -> frozenset[str]:
    """The vdevs of those of the disks that the domain has now."""
    targets = {os.path.realpath(target) for target in guest.disk_targets()} if guest else set()
    return frozenset(d.vdev for d in disks if os.path.realpath(d.target) in targets)


def refuse_config(config: DomainConfig, guest: Guest) -> None:
    """Refuse a configuration that makes a snapshot impossible."""
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
    found += not_saved(config, guest.name)
    if found:
        raise Refused(
            f"{guest.name} has {', '.join(found)}, which cannot be saved: remove it first"
        )
    try:
        config.json.encode()
    except UnicodeEncodeError as e:
        near = config.json[max(0, e.start - 40) : e.end]
        raise Refused(
            f"the configuration of {guest.name} has text that is not UTF-8 ({near}), which no "
            f"program could read from a memory file: rename it first"
        ) from None
    if reasons := libvirt_reason(guest):
        raise Refused(
            f"{reasons[0]}, which would not know of the snapshot: use libvirt's own snapshots "
            f"(virsh snapshot-create)"
        )


def refuse_live(host: Host, config: DomainConfig, guest: Guest) -> None:
    """Refuse a live snapshot where the hypervisor cannot log dirty pages."""
    if config.kind is GuestKind.PV and not host.has_shadow_paging():
        raise Refused(
            f"--live is impossible for {guest.name}: it is a PV guest, and this Xen is built "
            f"without shadow paging, so it cannot log a PV guest's dirty pages: take the snapshot "
            f"without --live"
        )


def libvirt_reason(guest: Guest) -> list[str]:
    """Whether libvirt manages the domain: libvirt's Xen driver keeps a status file for each."""
    # (A name that is too long for a file is not managed by it.)
    managed = os.path.exists(paths.LIBVIRT_DOMAINS / f"{guest.name}.xml")
    return [f"{guest.name} is managed by libvirt"] if managed else []


def refuse_shared(host: Host, guest: Guest | None, disks: Sequence[Disk]) -> None:
    """Refuse a disk that another domain has, too, under whatever name."""
    others = [g for g in host.list_guests() if guest is None or g.domid != guest.domid]
    theirs = [(other, target) for other in others for target in other.disk_targets()]
    found = _identities([*(disk.target for disk in disks), *(target for _, target in theirs)])
    ours = {identity: disk.vdev for disk, identity in zip(disks, found, strict=False)}
    for (other, target), identity in zip(theirs, found[len(disks) :], strict=True):
        if vdev := ours.get(identity):
            name = other.present_name() or other.uuid  # it may have ended
            raise Refused(f"{vdev}: domain {name} uses {target}, too: detach it there")


def refuse_silent(disks: Sequence[Disk], snapshots: Sequence[DiskRequest] = ()) -> None:
    """Refuse a disk whose server (NFS, for example) does not answer: the next look would hang.

    The server of any file that an image stands on counts, too.

    :param snapshots: the disk snapshots that will be put back.
    """
    formats = {disk.vdev: disk.format for disk in disks}
    files = [(disk.vdev, disk.target) for disk in disks]
    files += [(request.vdev, request.path) for request in snapshots]
    for vdev, path in files:
        if not path.startswith("/"):
            continue
        try:
            stat_within(path)
            if formats.get(vdev) == "qcow2":
                chain_files(Path(os.path.realpath(path)))
        except TimeoutError as e:
            raise Refused(
                f"{vdev}: {e.filename}: {e.strerror}: see whether its server runs, and whether the "
                f"mount is well"
            ) from e
        except OSError:
            pass  # who needs the file says so


def _identities(paths: Sequence[str]) -> list[tuple[str | int, ...]]:
    """The same for all names of a file or block device; for a missing one, its real path."""
    return [_identity(p, status) for p, status in zip(paths, stats_within(paths), strict=True)]


def _identity(path: str, status: os.stat_result | OSError) -> tuple[str | int, ...]:
    if isinstance(status, TimeoutError):
        return (path,)
    if isinstance(status, OSError):
        return (os.path.realpath(path),)
    if stat.S_ISBLK(status.st_mode):
        return ("block device", status.st_rdev)
    return (status.st_dev, status.st_ino)


def memory_file_kb(memory_kb: int, config: DomainConfig) -> int:
    """The largest possible size of a memory file, KiB.

    Pages of zeros will take no space, but how many there are is not known beforehand. A list is for
    all pages that the guest can have in 8 MiB, also if a balloon has taken most of them.

    :param memory_kb: the memory that the guest has now.
    """
    said = config.section("b_info").get("max_memkb")
    most_kb = max(memory_kb, said if isinstance(said, int) else 0)
    return memory_kb + most_kb // _LISTS + _SLACK_KB


@refusing_os_errors()
def refuse_full(directory: Path, need_kb: int, claim: Claim) -> None:
    """Refuse a directory without space for the memory file, and claim that space.

    :param need_kb: see :func:`memory_file_kb`.
    """
    while not lexists(directory):
        directory = directory.parent
    if not is_dir(directory):
        raise Refused(f"{directory} is not a directory: name another place with memory_path")
    if not os.access(directory, os.W_OK | os.X_OK):
        read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
        why = "its filesystem is mounted read-only" if read_only else "permission denied"
        raise Refused(f"cannot write in {directory} ({why}): name another place with memory_path")
    free_kb = claim("memory file", directory, need_kb * 1024) // 1024
    if free_kb < need_kb:
        raise Refused(
            f"{directory} has {free_kb // 1024} MiB free, and the memory file takes about "
            f"{need_kb // 1024} MiB: name another place with memory_path"
        )


def refuse_name_or_uuid_in_use(host: Host, config: DomainConfig, guest: Guest | None) -> None:
    """Refuse if a domain other than ``guest`` has the name or the uuid of the restored domain."""
    for key in (config.name, config.uuid):
        if key.isascii() and key.isdigit():
            continue  # find() would read it as a domid
        holder = host.find_if_there(key)
        if holder and (guest is None or holder.domid != guest.domid):
            raise Refused(
                f"another domain ({holder.name}, domid {holder.domid}) holds {key}, which the "
                f"restored domain needs: rename or destroy that other domain"
            )


def refuse_memory(host: Host, config: DomainConfig, guest: Guest | None) -> None:
    """Refuse if Xen lacks memory for the restored domain, even after ``guest`` is destroyed."""
    need, spare = host.needed_memory_kb(config), spare_dom0_kb(host)
    have = host.free_memory_kb() + (guest.info().memory_kb if guest else 0) + spare
    if have < need:
        raise Refused(
            f"{config.name} needs {need // 1024} MiB of memory and Xen has {have // 1024} MiB"
            + (f", with {spare // 1024} MiB that dom0 could give" if spare else "")
            + ": shut down another domain, or make it smaller (xl mem-set)"
        )


def versions(host: Host) -> dict[str, str]:
    """The versions of pyxlsnap and Xen, for the memory file."""
    return {"pyxlsnap": VERSION, "xen": "{}.{}".format(*host.xen_version())}
