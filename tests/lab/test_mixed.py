"""The matrix: disks of every kind at once, on every kind of guest.

The guests compare what they keep in memory and on every disk all the time, read past their cache
(see files/guest.c). Each round leaves a record, of which the README's table is made (support.py).
"""

import json
from typing import Any

import pytest

from tests.lab.harness import storage
from tests.lab.harness.dom0 import Dom0
from tests.lab.harness.guests import Guest, Tick
from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import (
    SCRIPTS,
    check_images,
    check_reverted,
    create,
    disk_snapshots,
    revert,
)
from tests.lab.harness.support import MATRIX, Cell, record

# What lies around the disks, where a snapshot or a revert may leave something.
AROUND = f"{storage.BTRFS} /lab/disk /dev/{storage.GROUP}"
# In `make test`: every kind of guest, and both ways of everything.
ROUND = [
    Cell("pv", live=False, external=False),
    pytest.param(Cell("pvh", live=True, external=True), marks=pytest.mark.smoke),
    Cell("hvm", live=True, external=False),
]
# In `make soak` the disks of this one come and go by Xen's own script, which is slow.
XENS_OWN = Cell("pv", live=False, external=False)


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


def quicken_hotplug(dom0: Dom0) -> None:
    """Half of a round would else be Xen's script for the disks that come and go."""
    dom0.write("/etc/xen/scripts/block", (SCRIPTS / "hotplug-block").read_bytes(), 0o755)


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


def users(dom0: Dom0, path: str) -> str:
    """Who has a disk in use, as a revert finds out before it writes into it."""
    ask = "import pathlib, sys; from pyxlsnap.disks.in_use import users"
    script = f"{ask}; print(*users(pathlib.Path(sys.argv[1])))"
    return dom0.run(["python3", "-c", script, path]).out.strip()


def generation(guest: Guest) -> str:
    """The VM generation ID of an HVM guest; "" for others."""
    (config,) = json.loads(guest.dom0.run(["xl", "list", "-l", guest.name]).out)
    return str(config["config"]["b_info"].get("type.hvm", {}).get("ms_vm_genid", ""))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cell", ROUND, ids=str)
def test_round(spent_lab: Lab, cell: Cell) -> None:
    quicken_hotplug(spent_lab.dom0)
    play(spent_lab, cell, reverts=1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cell", MATRIX, ids=str)
def test_matrix(spent_lab: Lab, cell: Cell) -> None:
    if cell != XENS_OWN:
        quicken_hotplug(spent_lab.dom0)
    made = play(spent_lab, cell, reverts=2)
    disks = sum(artefact["kind"] == "disk snapshot" for artefact in made["artefacts"])
    record(spent_lab.dom0, cell, disks, made["seconds_suspended"])


def play(lab: Lab, cell: Cell, *, reverts: int) -> dict[str, Any]:
    """A snapshot, and back to it, as often as is said; what the snapshot said of itself."""
    guest = lab.guest(cell.guest)
    before, was = attach(guest, more(guest, external=cell.external)), generation(guest)
    assert bool(was) == (cell.guest == "hvm")
    if cell.external:  # blkback is no process, and opens it without a loop device of its own
        assert users(lab.dom0, storage.plain(cell.guest)) == f"vbd-{guest.domid()}-51792"
    made = create(guest, *words(guest, cell, "first"))
    after = guest.assert_healthy()
    if not cell.external:
        assert disk_snapshots(guest) == {vdev: ["first"] for vdev in guest.disks}
    assert_space_is_told(made)
    for _ in range(reverts):  # what a revert needs it does not use up
        later, mark = guest.wait_advance(6), guest.mark()
        result = revert(guest, str(made["cfgfile"]))
        assert sorted(result["disks"]) == sorted(before.disks)
        check_reverted(guest, mark, later, before, after)
        if was:
            assert generation(guest) != was
    assert "pre-revert" not in guest.dom0.run(f"ls {AROUND}; lvs -a {storage.GROUP}").out
    guest.destroy()
    if cell.external:
        assert users(lab.dom0, storage.plain(cell.guest)) == ""
    check_images(guest)
    return made


def assert_space_is_told(made: dict[str, Any]) -> None:
    told = [artefact["where"] for artefact in made["artefacts"] if "MiB" in artefact["where"]]
    assert [where for where in told if "-thin" in where or "-d " in where]
    assert [where for where in told if "-thick" in where or "-e " in where]
