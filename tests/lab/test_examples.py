"""The examples do what they say, on real guests."""

import json
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.harness.dom0 import Dom0
from tests.lab.harness.guests import LOGS, STANDARD, Guest, parse_ticks
from tests.lab.harness.install import PROJECT, packages, push
from tests.lab.harness.lab import Lab
from tests.lab.harness.mixed import attach, prefer_dom0, quicken_hotplug, write_cfg
from tests.lab.harness.snapshots import (
    SNAPSHOTS,
    check_reverted,
    create,
    disk_snapshots,
    goes_back,
    revert,
)
from tests.lab.harness.storage import BTRFS

SOURCE, DEST = PROJECT / "examples", "/opt/examples"

# Each takes two to three minutes; off Xen the unit tests run what they can of them.
pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("tidy")]


def run(dom0: Dom0, name: str, *words: str) -> str:
    """Run an example, which must work; what it said."""
    return dom0.run(["python3", f"{DEST}/{name}", *words], timeout=480).out


def install_strategy(dom0: Dom0) -> None:
    """As pip does it, which the dom0 has not."""
    project = tomllib.loads((SOURCE / "btrfs-disks" / "pyproject.toml").read_text())["project"]
    site = packages(dom0)
    info = f"{site}/btrfs_disks-1.dist-info"
    dom0.write(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    dom0.write(f"{info}/entry_points.txt", "".join(lines))
    module = (SOURCE / "btrfs-disks" / "btrfs_disks.py").read_bytes()
    dom0.write(f"{site}/btrfs_disks.py", module)


def test_a_nightly_script(lab: Lab) -> None:
    guests = [lab.guest(kind) for kind in ("pv", "pvh")]
    push(lab.dom0, SOURCE, DEST)
    done = lab.dom0.run(
        ["python3", f"{DEST}/nightly.py", "1", "pv", "nobody", "pvh"], check=False, timeout=480
    )
    assert done.rc == 3, done
    pv, pvh = done.out.splitlines()
    assert "(stopped" in pv
    assert "(live" in pvh
    assert "nobody: there is no domain 'nobody'" in done.err
    guests[0].assert_healthy()
    later, mark = guests[1].assert_healthy(6), guests[1].mark()
    first = pvh.split(": ")[1].split(" (")[0]
    revert(guests[1], first)
    goes_back(guests[1], mark, later)

    # The next night's snapshot takes the place of the first one; the guest runs on.
    before = guests[1].assert_healthy()
    taken, deleted = run(lab.dom0, "nightly.py", "1", "pvh").splitlines()
    assert deleted == f"pvh: deleted {first}"
    second = taken.split(": ")[1].split(" (")[0]
    files = lab.dom0.run(f"ls -A {SNAPSHOTS}/{guests[1].uuid}").out.split()
    assert sorted(files) == sorted(
        Path(second).with_suffix(suffix).name for suffix in (".cfg", ".save")
    )
    name = Path(second).stem
    assert disk_snapshots(guests[1]) == {vdev: [name] for vdev in guests[1].disks}
    assert guests[1].assert_healthy().n > before.n


def test_hooks_that_quiesce_the_guest(lab: Lab) -> None:
    guest = lab.guest("pvh")
    guest.assert_healthy()
    push(lab.dom0, SOURCE, DEST)
    script = (PROJECT / "tests/lab/scripts/stand_in_agent.py").read_bytes()
    lab.dom0.write("/tmp/stand_in_agent.py", script)
    with lab.dom0.start(["python3", "/tmp/stand_in_agent.py", "/tmp/agent", "pvh"]) as agent:
        assert agent.readline() == "ready\n"
        cfgfile = run(lab.dom0, "quiesce.py", "pvh", "/tmp/agent", "quiet").strip()
        later, mark = guest.assert_healthy(6), guest.mark()
        back = (
            "import pathlib, pyxlsnap, quiesce; hooks = quiesce.hooks(pathlib.Path('/tmp/agent'));"
            f"print(pyxlsnap.revert_snapshot('pvh', {cfgfile!r}, hooks=hooks).warnings)"
        )
        said = lab.dom0.run(["python3", "-c", back], cwd=DEST, timeout=480).out
        assert said == "()\n"
        goes_back(guest, mark, later)
        told = [json.loads(line) for line in agent.out.splitlines()[1:]]
    assert [t["command"] for t in told] == [
        *("guest-fsfreeze-freeze", "guest-fsfreeze-thaw"),
        *("guest-fsfreeze-thaw", "guest-set-time"),
    ]
    # Each time the guest runs or idles: it is neither paused nor suspended.
    assert all(set(t["state"]) <= set("rb-") for t in told), told


def test_a_disk_strategy_of_its_own(spent_lab: Lab) -> None:
    lab = spent_lab
    quicken_hotplug(lab.dom0)
    install_strategy(lab.dom0)
    volume = f"{BTRFS}/vm"
    lab.dom0.run(f"btrfs subvolume create {volume} && truncate -s 8M {volume}/c.img {volume}/d.img")
    guest = lab.guest("pvh")
    before = attach(guest, {"xvdc": f"{volume}/c.img", "xvdd": f"{volume}/d.img"})
    plan = create(guest, "--live", "--name", "mine", "--dry-run")
    assert [d["how"] for d in plan["disks"]] == ["qcow2", "qcow2", *["btrfs subvolume"] * 2]
    made = create(guest, "--live", "--name", "mine")
    after = guest.assert_healthy()
    (ours,) = [a for a in made["artefacts"] if "btrfs" in a["where"]]
    assert ours["where"] == f"{volume}.mine (xvdc, xvdd; btrfs subvolume)"
    later, mark = guest.wait_advance(6), guest.mark()
    revert(guest, made["cfgfile"])
    check_reverted(guest, mark, later, before, after)
    assert lab.dom0.run(["ls", "-A", volume]).out == "c.img\nd.img\n"

    # One that fails when all disks are done is undone: somebody takes its cfgfile's name.
    wrong = (
        "import pyxlsnap\n"
        "def taken(moment):\n"
        f"    open(f'{SNAPSHOTS}/{{moment.uuid}}/other.cfg', 'x').close()\n"
        "pyxlsnap.create_snapshot('pvh', name='other', hooks=pyxlsnap.Hooks(before_suspend=taken))"
    )
    failed = lab.dom0.run(["python3", "-c", wrong], check=False, timeout=480)
    assert "OperationFailed" in failed.err, failed
    assert "everything is as before" in failed.err, failed
    guest.assert_healthy()
    assert lab.dom0.run(["ls", BTRFS]).out.split() == [
        *sorted(f"{kind}.img" for kind in STANDARD),
        "vm",
        "vm.mine",
    ]
    delete = f"import pyxlsnap; pyxlsnap.delete_snapshot({made['cfgfile']!r})"
    lab.dom0.run(["python3", "-c", delete], timeout=480)
    assert "vm.mine" not in lab.dom0.run(["ls", BTRFS]).out


def status(dom0: Dom0) -> list[dict[str, Any]]:
    """What the daemon says of its guests."""
    told: list[dict[str, Any]] = json.loads(dom0.run("socat -u UNIX-CONNECT:/tmp/daemon -").out)
    return told


def until(dom0: Dom0, good: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """The daemon's status as soon as it is as wanted."""
    end = time.monotonic() + 240
    while not good(told := status(dom0)):
        assert time.monotonic() < end, told
    return told


def test_a_daemon(lab: Lab) -> None:
    guests = [lab.guest(kind) for kind in ("pvh", "pv")]
    push(lab.dom0, SOURCE, DEST)
    command = f"exec python3 {DEST}/daemon.py /tmp/daemon 1 2 pvh pv"
    with lab.dom0.start(command) as daemon:
        lab.dom0.run("until [ -S /tmp/daemon ]; do sleep 0.1; done")
        told = until(lab.dom0, lambda told: all(guest["snapshots"] for guest in told))
        assert [guest["domain"] for guest in told] == ["pvh", "pv"]
        until(lab.dom0, lambda told: any(guest["doing"] == "memory" for guest in told))
        daemon.kill()  # in the middle of the next ones
        ended = daemon.wait()
    assert (ended.rc, ended.out) == (0, "ended\n"), ended
    for guest, known in zip(guests, told, strict=True):
        guest.assert_healthy()
        assert not known["error"]
        files = lab.dom0.run(f"ls -A {SNAPSHOTS}/{guest.uuid}").out.split()
        cfgs = {name for name in files if name.endswith(".cfg")}
        assert len(files) == 2 * len(cfgs)  # a memory file each, and nothing else
    later, mark = guests[0].last(), guests[0].mark()
    revert(guests[0], told[0]["snapshots"][0])
    goes_back(guests[0], mark, later)


BRIDGES = ("isolated", "apart")
MAC = "00:16:3e:0a:0b:0c"
#: uses a pool of two three times; says what is there before, and of each sandbox that runs
USE_POOL = """
import asyncio, json, os, subprocess, sys, sandbox
from pyxlsnap import Toolstack

def read(node):
    return subprocess.run(["xenstore-read", node], capture_output=True, text=True).stdout.strip()

def look(domid):
    nic = f"/libxl/{domid}/device/vif/0"
    return {
        "time": read(f"/local/domain/{domid}/vm-data/time"),
        "bridge": os.path.basename(os.path.realpath(f"/sys/class/net/vif{domid}.0/master")),
        "mac": read(f"{nic}/mac"),
    }

async def main(cfgfile, *bridges):
    pool = sandbox.Pool(cfgfile, bridges)
    await pool.fill()
    with Toolstack() as host:
        found = [host.find(f"sandbox{n}") for n in (0, 1)]
        ready = [{"has_run": one.info().has_run, **look(one.domid)} for one in found]
    seen = []
    for _ in range(3):
        async with pool.sandbox() as made:
            await asyncio.sleep(30)
            own = {"name": made.domain, "uuid": made.uuid, "domid": made.domid}
            seen.append({**own, "changes": made.changes, **look(made.domid)})
    await pool.close()
    print(json.dumps([ready, seen]))

asyncio.run(main(*sys.argv[1:]))
"""


class Networked(Guest):
    """A PVH guest with a NIC on a bridge."""

    def __init__(self, dom0: Dom0) -> None:
        super().__init__(dom0, "origin", "pvh")

    def config_text(self) -> str:
        return f'{super().config_text()}\nvif = [ "mac={MAC},bridge=home" ]\n'


def test_a_pool_of_sandboxes(spent_lab: Lab) -> None:
    """Each row of the table in examples/README.md."""
    dom0 = spent_lab.dom0
    quicken_hotplug(dom0)
    prefer_dom0(dom0)
    for bridge in ("home", *BRIDGES):
        dom0.run(f"ip link add {bridge} type bridge; ip link set {bridge} up")
    for name in STANDARD:  # their memory is needed
        dom0.run(["xl", "destroy", name], check=False)
    guest = Networked(dom0)
    guest.create()
    guest.wait_first()
    before = guest.assert_healthy()
    made = external(guest)
    push(dom0, SOURCE, DEST)
    files = f"sha256sum {made['memory_path']} /lab/disk/*.base"
    checksums = dom0.run(files).out
    nothing = dom0.run("ls /lab/disk /var/lib/pyxlsnap /sys/class/net; xl list | wc -l").out
    now = int(dom0.run("date +%s").out)
    command = ["python3", "-c", USE_POOL, made["cfgfile"], *BRIDGES]
    ready, seen = json.loads(dom0.run(command, cwd=DEST, timeout=900).out)

    # Kept ready: on the bridge, the clock set by the hook, and no instruction run.
    for one in (*ready, *seen):
        assert one["bridge"] in BRIDGES
        assert one["mac"].startswith("00:16:3e:")
        assert int(one["time"]) >= now
    assert [one["has_run"] for one in ready] == [False, False]
    assert len({MAC, *(one["mac"] for one in ready)}) == 3
    assert [one["bridge"] for one in ready] == list(BRIDGES)
    assert {one["name"] for one in seen} == {"sandbox0", "sandbox1"}
    assert len({one["domid"] for one in seen}) == 3
    hooked = {f"sandbox{n}": int(one["time"]) for n, one in enumerate(ready)}
    for one in seen[:2]:  # set again when it was handed out
        assert int(one["time"]) > hooked[one["name"]]
    # The third is the first one, made anew.
    assert seen[0]["uuid"] == seen[2]["uuid"] != seen[1]["uuid"]
    for one in seen:
        assert any(one["mac"] in change for change in one["changes"]), one
    for name in ("sandbox0", "sandbox1"):
        ticks = parse_ticks(dom0.run(f"cat {LOGS}/guest-{name}.log").out)
        assert ticks[0].boot == before.boot
        assert ticks[0].n >= before.n - 1
        assert all(tick.ok for tick in ticks)
    left = dom0.run("ls /lab/disk /var/lib/pyxlsnap /sys/class/net; xl list | wc -l").out
    assert left == nothing
    assert dom0.run(files).out == checksums
    guest.assert_healthy()
    assert "is ready" in run(dom0, "sandbox.py", made["cfgfile"], BRIDGES[0])


def external(guest: Guest) -> dict[str, Any]:
    """A snapshot with external disk snapshots."""
    disks = [f"/lab/disk/{vdev}.base,qcow2,{vdev}" for vdev in guest.disks]
    return create(guest, write_cfg(guest, disks), "--name", "base")


def test_a_snapshot_that_is_moved(spent_lab: Lab) -> None:
    """The other host is this one, from which everything of the guest was removed."""
    dom0, guest = spent_lab.dom0, spent_lab.guest("pvh")
    before = guest.assert_healthy()
    made = external(guest)
    push(dom0, SOURCE, DEST)
    said = run(dom0, "move_snapshot.py", made["cfgfile"], "/lab/moved.tar")
    dom0.run(["xl", "destroy", guest.name])
    gone = [*guest.disks.values(), made["memory_path"], made["cfgfile"]]
    dom0.run(["rm", *gone, *(f"/lab/disk/{vdev}.base" for vdev in guest.disks)])
    dom0.run(f"set -eu\n{said}", timeout=480)
    assert guest.assert_healthy(1).boot == before.boot
    assert before.n < guest.last().n
