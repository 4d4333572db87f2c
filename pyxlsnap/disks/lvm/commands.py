"""LVM as the disk strategies see it: which volume a disk is, what LVM knows of it, its commands.

Nothing here needs a shell, or an active volume.
"""

import json
import subprocess
from collections.abc import Callable
from typing import Any

from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.lvm.names import device_number, device_path, is_volume, names_of
from pyxlsnap.errors import DiskError, Refused
from pyxlsnap.linux.files import scratch_file, scratch_text
from pyxlsnap.linux.processes import process_text, running
from pyxlsnap.linux.waiting import remaining, until

_COMMAND_S = 120.0  # LVM waits for a lock that another LVM command holds
_STOPPING_S = 10.0
_ENDING_S = 60.0
_PATH_S = 30.0
_POLL_S = 0.2
_ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FIELDS = (
    "lv_name,lv_uuid,lv_size,lv_layout,lv_role,origin,pool_lv,lv_tags,lv_device_open,"
    "lv_suspended,lv_merging,lv_snapshot_invalid,data_percent,metadata_percent,lv_health_status,"
    "lv_check_needed,lv_permissions,lv_kernel_major,lv_kernel_minor"
)


@dataclass(frozen=True, slots=True)
class Volume:
    """A logical volume, as ``lvs`` has it."""

    name: str
    #: stays the same when the volume is renamed
    uuid: str
    #: bytes; of a thick snapshot: the space that it may take
    size: int
    #: "linear", "thin", "pool", …
    layout: tuple[str, ...]
    #: "origin", "thinsnapshot", "thicksnapshot", "thickorigin", …
    role: tuple[str, ...]
    origin: str
    pool: str
    tags: tuple[str, ...]
    #: a process or the kernel has the device open
    open: bool
    suspended: bool
    merging: bool
    #: a thick snapshot that ran full, and has lost its content
    invalid: bool
    #: how full a pool or a thick snapshot is; ``None`` while it is inactive
    data_percent: float | None
    metadata_percent: float | None
    #: the problem that a pool has; "" if none
    trouble: str
    #: `lvchange -pr`, or a read-only device
    read_only: bool
    #: device number, (-1, -1) while it is inactive
    device: tuple[int, int]


def is_lvm(path: str) -> bool:
    """Whether a disk's path leads to a logical volume.

    A path without a device counts, too, if it names a volume of a group that is there: the volume
    may be inactive, or a revert was interrupted while no volume had the disk's name.
    """
    if number := device_number(path):
        return is_volume(number)
    names = names_of(path)
    return names is not None and _group_exists(names[0])


def is_thin(path: str, *, vdev: str = "") -> bool:
    """Whether a disk that :func:`is_lvm` is a thin volume.

    A volume that is missing counts as thin: only the revert of a thin volume takes the name away
    for a moment.

    :param vdev: the disk to name in an error.
    :raises DiskError: LVM failed.
    """
    names = names_of(path)
    if names is None:
        return False
    vg, lv = names
    volume = volumes(vdev or path, vg).get(lv)
    return volume is None or "thin" in volume.layout


def _group_exists(vg: str) -> bool:
    try:
        return bool(volumes(vg, vg))
    except DiskError:
        return False


def volumes(vdev: str, vg: str) -> dict[str, Volume]:
    """The volumes of a group by name, as they are now.

    :param vdev: the disk to name in an error.
    """
    rows = _report(vdev, "lv", "lvs", "--binary", "-o", _FIELDS, vg)
    return {row["lv_name"]: _volume(row) for row in rows}


def free_space(vdev: str, vg: str) -> tuple[int, int]:
    """The free bytes of a group, and the size of its extents."""
    (row,) = _report(vdev, "vg", "vgs", "-o", "vg_free,vg_extent_size", vg)
    return int(row["vg_free"]), int(row["vg_extent_size"])


def refuse_unchangeable_group(vdev: str, vg: str) -> None:
    """:raises Refused: LVM would make, rename or remove no volume of the group."""
    (row,) = _report(vdev, "vg", "vgs", "-o", "vg_attr,vg_missing_pv_count", vg)
    missing, attributes = int(row["vg_missing_pv_count"]), row["vg_attr"]
    if missing:
        raise Refused(
            f"{vdev}: {missing} of the physical volumes of {vg} are missing, and LVM changes "
            f"nothing in such a group: bring the devices back (`pvs`), or `vgreduce "
            f"--removemissing {vg}`"
        )
    if attributes.startswith("r"):
        raise Refused(f"{vdev}: the volume group {vg} is read-only, and LVM changes nothing in it")
    if attributes[2:3] == "x":
        raise Refused(f"{vdev}: the volume group {vg} is exported: `vgimport {vg}` it first")


def _report(vdev: str, kind: str, command: str, *arguments: str) -> list[dict[str, str]]:
    form = ("--reportformat", "json", "--units", "b", "--nosuffix")
    said = lvm(vdev, command, *form, *arguments)
    try:
        rows: list[dict[str, str]] = json.loads(said)["report"][0][kind]
    except (ValueError, LookupError) as e:
        raise DiskError(f"unexpected output from {command}: {said[:80]!r}", vdev=vdev) from e
    return rows


def _volume(row: dict[str, str]) -> Volume:
    return Volume(
        name=row["lv_name"],
        uuid=row["lv_uuid"],
        size=int(row["lv_size"]),
        layout=_list(row["lv_layout"]),
        role=_list(row["lv_role"]),
        origin=row["origin"],
        pool=row["pool_lv"],
        tags=_list(row["lv_tags"]),
        open=row["lv_device_open"] == "1",
        suspended=row["lv_suspended"] == "1",
        merging=row["lv_merging"] == "1",
        invalid=row["lv_snapshot_invalid"] == "1",
        data_percent=_percent(row["data_percent"]),
        metadata_percent=_percent(row["metadata_percent"]),
        trouble=row["lv_health_status"] or ("needs a check" * (row["lv_check_needed"] == "1")),
        read_only=row["lv_permissions"].startswith("read-only"),
        device=(int(row["lv_kernel_major"]), int(row["lv_kernel_minor"])),
    )


def _list(text: str) -> tuple[str, ...]:
    return tuple(item for item in text.split(",") if item)


def _percent(text: str) -> float | None:
    return float(text) if text else None


def wait_for_path(vdev: str, vg: str, lv: str, known: Volume | None = None) -> None:
    """Wait until the volume's path leads to the volume: udev makes the link a moment later.

    :param known: the volume as it was; it may have had another name. LVM is only asked if the path
        does not lead to its device.
    :raises DiskError: it does not within some seconds.
    """
    path = device_path(vg, lv)

    def leads_there() -> bool:
        nonlocal known
        volume, known = known or volumes(vdev, vg).get(lv), None
        return volume is not None and device_number(str(path)) == volume.device

    if not until(leads_there, within_s=_PATH_S, poll_s=_POLL_S):
        raise DiskError(
            f"{path} does not lead to the volume: see whether udev runs, then `vgmknodes {vg}`",
            vdev=vdev,
        )


def wait_for_lvcreate(vdev: str, tag: str, waiting: Callable[[str], None]) -> None:
    """Wait until no lvcreate makes a volume with this tag.

    A process that is killed leaves its lvcreate running. While that waits for LVM's locks, there is
    no volume yet, and there may be one afterwards.

    :param waiting: told what is waited for, if anything.
    :raises DiskError: an lvcreate still runs after a minute; the message says which.
    """

    def look() -> list[int]:
        if found := running("lvcreate", tag):
            waiting(f"lvcreate to finish its work for {vdev}")
        return found

    if found := remaining(look, within_s=_ENDING_S, poll_s=_POLL_S):
        raise DiskError(
            f"{process_text(found[0])} of the operation that failed or was killed still runs, and "
            f"may yet make a volume: see what holds LVM's locks or a device (`dmsetup info -c`)",
            vdev=vdev,
        )


def lvm(vdev: str, command: str, *arguments: str, timeout_s: float = _COMMAND_S) -> str:
    """Run an LVM command; return its output.

    :raises DiskError: it failed, or took too long.
    """
    try:
        status, out, err = execute([command, *arguments], timeout_s)
    except FileNotFoundError as e:
        raise DiskError(f"{command} is missing: install lvm2", vdev=vdev) from e
    except subprocess.TimeoutExpired as e:
        raise DiskError(
            f"{command} {arguments[-1]} did not end in {e.timeout:g} s, and was asked to stop: see "
            f"what holds LVM's locks or a device (`dmsetup info -c`), then run the command again",
            vdev=vdev,
        ) from e
    if status:
        raise DiskError(f"{command} failed: {_complaint(err) or f'status {status}'}", vdev=vdev)
    return out


def _complaint(err: str) -> str:
    lines = [line.strip() for line in err.splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith("WARNING"))


def execute(command: list[str], timeout_s: float) -> tuple[int, str, str]:
    """Run a command; return its status, output and errors.

    The output goes to files. A pipe would break if this process is killed, and end the LVM command
    between two of its steps; and a dmeventd that LVM starts could hold the pipe open for ever. A
    command that takes too long is asked to stop (SIGTERM) and never killed: LVM puts the signal off
    while it has devices suspended.

    :raises FileNotFoundError: there is no such command.
    :raises subprocess.TimeoutExpired: it took too long, and may still run.
    """
    environment = {"PATH": _ROOT_PATH, "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL}
    with scratch_file() as out, scratch_file() as err:
        running = subprocess.Popen(command, stdout=out, stderr=err, env=environment, **streams)
        try:
            status = running.wait(timeout_s)
        except subprocess.TimeoutExpired:
            running.terminate()
            try:
                running.wait(_STOPPING_S)
            except subprocess.TimeoutExpired:
                pass
            raise
        return status, scratch_text(out), scratch_text(err)
