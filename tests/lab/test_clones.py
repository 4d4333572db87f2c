"""Clones of one snapshot: each goes on from there in memory and on its disks, for itself alone."""

import json
import time
from typing import Any

import pytest

from tests.lab.harness import storage
from tests.lab.harness.dom0 import Dom0
from tests.lab.harness.guests import Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.mixed import attach, quicken_hotplug, write_cfg
from tests.lab.harness.snapshots import create, pyxlsnap, revert

DISKS = f"/lab/disk {storage.BTRFS}"


def base(guest: Guest) -> dict[str, Any]:
    """A snapshot with qcow2 external, raw on btrfs, and thin LVM."""
    attach(guest, {"xvdc": storage.raw(guest.name), "xvdd": storage.thin(guest.name)})
    disks = [
        "/lab/disk/base.a,qcow2,xvda",
        "/lab/disk/base.b,qcow2,xvdb",
        f"{storage.BTRFS}/base.c,raw,xvdc",
        f"/dev/{storage.GROUP}/base-d,raw,xvdd",
    ]
    return create(guest, write_cfg(guest, disks), "--name", "base")


def clones(dom0: Dom0, cfgfile: str, *names: str, words: str = "") -> list[dict[str, Any]]:
    """Make clones at the same time, each by a command of its own."""
    run = [
        f"(pyxlsnap --json snapshot-clone {cfgfile} {name} --force {words} "
        f">/tmp/{name}.json 2>/tmp/{name}.err; echo $? >/tmp/{name}.rc) &"
        for name in names
    ]
    dom0.run("\n".join([*run, "wait"]), timeout=900)
    for name in names:
        assert dom0.run(f"cat /tmp/{name}.rc").out.strip() == "0", dom0.run(f"cat /tmp/{name}.err")
    found = [json.loads(dom0.run(f"cat /tmp/{name}.json").out) for name in names]
    return [document["result"] for document in found]


def delete(dom0: Dom0, name: str) -> None:
    script = "import pyxlsnap, sys; pyxlsnap.delete_clone(sys.argv[1])"
    dom0.run(["python3", "-c", script, name], timeout=300)


def left(dom0: Dom0) -> str:
    """What a clone may leave: files, volumes, loop devices, domains, processes, journals."""
    commands = [
        f"find {DISKS} /var/lib/pyxlsnap /dev/{storage.GROUP} -mindepth 1 | sort",
        "losetup -a | wc -l",
        "xl list | awk 'NR>1 {print $1}' | sort",
        "xenstore-list /local/domain | wc -l",
        "pgrep -c qemu-system",
    ]
    return dom0.run("; ".join(commands), check=False).out


def sums(dom0: Dom0, made: dict[str, Any]) -> str:
    """The checksums of the snapshot's files."""
    files = f"/lab/disk/base.a /lab/disk/base.b {storage.BTRFS}/base.c {made['memory_path']}"
    return dom0.run(f"sha256sum {files}", timeout=300).out


def clone_of(guest: Guest, name: str) -> Guest:
    return Guest(guest.dom0, name, guest.name)


def assert_goes_on(clone: Guest, at: int, boot: str) -> None:
    """The clone counts on from the snapshot, in its memory and on all its disks."""
    first = clone.wait_first()
    assert at - 1 <= first.n
    assert first.boot == boot
    assert {"xvda", "xvdb", "xvdc", "xvdd"} <= first.disks.keys()
    clone.assert_healthy()


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "kind",
    ["pvh", *(pytest.param(kind, marks=pytest.mark.soak) for kind in ("pv", "hvm"))],
)
def test_clones(spent_lab: Lab, kind: str) -> None:
    dom0 = spent_lab.dom0
    quicken_hotplug(dom0)
    guest = spent_lab.guest(kind)
    before = guest.assert_healthy()
    made = base(guest)
    at, checksums, nothing = before.n, sums(dom0, made), left(dom0)
    found = clones(dom0, made["cfgfile"], "c1", "c2")
    assert len({guest.uuid, *(clone["uuid"] for clone in found)}) == 3
    pair = [clone_of(guest, name) for name in ("c1", "c2")]
    for clone in pair:
        assert_goes_on(clone, at, before.boot)
    guest.assert_healthy()
    revert(guest, made["cfgfile"])
    for one in (guest, *pair):  # nobody has seen the writes of another
        one.assert_healthy(5)
    assert sums(dom0, made) == checksums

    # Its reboot is watched, and it boots from its own disks.
    old = pair[0].domid()
    dom0.run(["xl", "sysrq", "c1", "b"])
    end = time.monotonic() + 300
    while time.monotonic() < end and (not pair[0].exists() or pair[0].domid() == old):
        time.sleep(2)
    assert pair[0].domid() != old
    pair[0].assert_healthy()

    mark = pair[1].mark()
    (again,) = clones(dom0, made["cfgfile"], "c2", words="--replace")
    assert (again["replaced"], again["uuid"]) == (True, found[1]["uuid"])
    assert pair[1].ticks_since(mark) or pair[1].wait_advance(2)
    for name in ("c1", "c2"):
        delete(dom0, name)
    assert left(dom0) == nothing
    assert sums(dom0, made) == checksums
    guest.assert_healthy()


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("step", ["disks", "restore", "unpause"])
def test_a_clone_whose_worker_is_killed(spent_lab: Lab, step: str) -> None:
    """The supervisor recovers: the clone is there and runs, or nothing of it is."""
    dom0 = spent_lab.dom0
    quicken_hotplug(dom0)
    guest = spent_lab.guest("pvh")
    made = base(guest)
    nothing = left(dom0)
    script = (
        "import os, sys, pyxlsnap\n"
        "def progress(p):\n"
        "    if p.phase == sys.argv[3]:\n"
        "        os.system('pkill -KILL -o xlsnap-worker; pkill -KILL -f [p]yxlsnap.worker')\n"
        "try:\n"
        "    pyxlsnap.clone_snapshot(sys.argv[1], sys.argv[2], force=True, on_progress=progress)\n"
        "except pyxlsnap.OperationFailed as e:\n"
        "    print(e)\n"
    )
    dom0.run(["python3", "-c", script, made["cfgfile"], "c1", step], check=False, timeout=600)
    pyxlsnap(dom0, "snapshot-recover", timeout=600)
    clone = clone_of(guest, "c1")
    if clone.exists():
        clone.assert_healthy()
        delete(dom0, "c1")
    assert left(dom0) == nothing
    guest.assert_healthy()
