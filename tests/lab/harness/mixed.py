"""Guests with disks of every kind at once: attached, and asked for in a snapshot."""

import json

from . import storage
from .dom0 import Dom0
from .guests import Guest, Tick
from .snapshots import SCRIPTS
from .support import Cell

# What lies around the disks, where a snapshot or a revert may leave something.
AROUND = f"{storage.BTRFS} /lab/disk /dev/{storage.GROUP}"


def more(guest: Guest, *, external: bool) -> dict[str, str]:
    """The disks that a guest of the lab can have beside its two qcow2 files, by vdev."""
    targets = {
        "xvdc": storage.raw(guest.name),
        "xvdd": storage.thin(guest.name),
        "xvde": storage.thick(guest.name),
    }
    # This one can only be copied, which must be asked for.
    return targets | ({"xvdf": storage.plain(guest.name)} if external else {})


def attach(guest: Guest, targets: dict[str, str]) -> Tick:
    """Give a guest disks; its first tick with all of them."""
    commands = [
        f"xl block-attach {guest.name} format=raw,vdev={vdev},access=rw,target={target}"
        for vdev, target in targets.items()
    ]
    guest.dom0.run(" && ".join(commands), timeout=240)
    while not targets.keys() <= guest.wait_advance(1).disks.keys():
        pass
    return guest.assert_healthy()


def generation(guest: Guest) -> str:
    """The VM generation ID of an HVM guest; "" for others."""
    (config,) = json.loads(guest.dom0.run(["xl", "list", "-l", guest.name]).out)
    return str(config["config"]["b_info"].get("type.hvm", {}).get("ms_vm_genid", ""))


def quicken_hotplug(dom0: Dom0) -> None:
    """Half of a round would else be Xen's scripts for the devices that come and go."""
    for script, ours in (("block", "hotplug-block"), ("vif-bridge", "hotplug-vif")):
        dom0.write(f"/etc/xen/scripts/{script}", (SCRIPTS / ours).read_bytes(), 0o755)


def prefer_dom0(dom0: Dom0) -> None:
    """Give dom0 the core first where many guests run.

    Else a QEMU that starts beside them has no time to answer libxl, which waits for 10 s.
    """
    dom0.run(["xl", "sched-credit2", "-d", "0", "-w", "4096"])


def write_cfg(guest: Guest, disks: list[str]) -> str:
    """A cfgfile for some disks; its path."""
    path = "/tmp/snap/mixed.cfg"
    guest.dom0.write(path, f"disks=[{', '.join(repr(disk) for disk in disks)}]\n")
    return path


def words(guest: Guest, cell: Cell, name: str) -> list[str]:
    """What `snapshot-create` is told for a cell."""
    paths = {
        "xvda": f"/lab/disk/{name}.a,qcow2",
        "xvdb": f"/lab/disk/{name}.b,qcow2",
        "xvdc": f"{storage.BTRFS}/{name}.c,raw",
        "xvdd": f"/dev/{storage.GROUP}/{name}-d,raw",
        "xvde": f"/dev/{storage.GROUP}/{name}-e,raw",
        "xvdf": f"/lab/disk/{name}.f,raw",
    }
    disks = [f"{path},{vdev}" for vdev, path in paths.items()]
    cfg = [write_cfg(guest, disks)] if cell.external else []
    return [*cfg, "--name", name, *(["--live"] if cell.live else [])]
