"""Clones of one snapshot: each goes on from there in memory and on its disks, for itself alone."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.lab.harness import storage
from tests.lab.harness.dom0 import Dom0
from tests.lab.harness.guests import FIRST_TICK, LOGS, STANDARD, Guest, Tick
from tests.lab.harness.lab import Lab
from tests.lab.harness.mixed import (
    attach,
    generation,
    prefer_dom0,
    quicken_hotplug,
    write_cfg,
)
from tests.lab.harness.patience import patient
from tests.lab.harness.snapshots import create, needs_restore, pyxlsnap

DISKS = f"/lab/disk {storage.BTRFS}"
#: what stays of a domain that has ended: its logs, as those of any domain; and xenstored's
KEPT = (
    "! -name 'guest-*.log' ! -name 'xl-*' ! -name 'qemu-dm-*' ! -name 'qemu-probe-*' "
    "! -name 'pyxlsnap-*' ! -name 'xenstored-*'"
)
PROCESSES = ("[q]emu-system", "[q]emu-img", "[p]yxlsnap.worker", "[x]lsnap-worker")


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


def assert_not_deleted(dom0: Dom0, made: dict[str, Any], clone: str) -> None:
    """A delete of the snapshot is refused, and names the clone that stands on it."""
    script = "import pyxlsnap, sys; pyxlsnap.delete_snapshot(sys.argv[1])"
    done = dom0.run(["python3", "-c", script, made["cfgfile"]], check=False, timeout=300)
    assert done.rc == 1, done
    assert f"Refused: the clone {clone} stands on " in done.err, done
    dom0.run(["ls", made["cfgfile"], made["memory_path"]])


def left(guest: Guest) -> str:
    """What a clone may leave: files, volumes, devices, domains, nodes in xenstore, processes.

    The guest itself has one monitor more after a revert: this one is not counted.
    """
    commands = [
        f"find {DISKS} {LOGS} /var/lib/pyxlsnap /dev/{storage.GROUP} -mindepth 1 {KEPT} | sort",
        f"lvs --noheadings -o lv_name {storage.GROUP} | sort",  # also those that are not active
        "losetup -a | wc -l",
        "xl list | awk 'NR>1 {print $1}' | sort",
        *(f"xenstore-list {node} | wc -l" for node in ("/local/domain", "/vm", "/libxl")),
        "xenstore-ls -f /local/domain/0/backend | grep -c '/frontend = '",
        *(f"pgrep -fc '{name}'" for name in PROCESSES),
        f"pgrep -fa '[p]yxlsnap.monitor' | grep -vc {guest.uuid}",
    ]
    return guest.dom0.run("; ".join(commands), check=False).out


def assert_left(guest: Guest, nothing: str) -> None:
    """Nothing is left. Processes may take some time to notice that their domain has ended."""
    end = time.monotonic() + patient(60)
    while (found := left(guest)) != nothing and time.monotonic() < end:
        time.sleep(2)
    assert found.splitlines() == nothing.splitlines()


def sums(dom0: Dom0, made: dict[str, Any]) -> str:
    """The checksums of the snapshot's files and of its volume, which is not active otherwise."""
    volume = f"{storage.GROUP}/base-d"
    files = f"/lab/disk/base.a /lab/disk/base.b {storage.BTRFS}/base.c {made['memory_path']}"
    active = f"lvchange -q -ay -K {volume} && sha256sum /dev/{volume} && lvchange -q -an {volume}"
    return dom0.run(f"sha256sum {files} && {active}", timeout=300).out


def clone_of(guest: Guest, name: str, kind: str = "") -> Guest:
    return Guest(guest.dom0, name, kind or guest.name)


def assert_goes_on(clone: Guest, before: Tick, after: Tick, mark: int = 0) -> None:
    """The clone counts on from the snapshot, in its memory and on all its disks.

    :param before: of the original, before the snapshot was taken; ``after``: when it was.
    :param mark: where the log of the clone begins that is looked at.
    """
    if not mark:
        clone.wait_first()
    clone.assert_healthy(2)
    ticks = clone.ticks_since(mark)
    # (A clone that was replaced has gone on for some ticks: it was further than the new one.)
    own = [tick for tick in ticks if tick.boot == before.boot]
    assert own, ticks[:20]
    first = min(own, key=lambda tick: tick.n)
    assert before.n - 1 <= first.n <= after.n + 1
    assert {"xvda", "xvdb", "xvdc", "xvdd"} <= first.disks.keys()
    clone.assert_healthy()


def domid(guest: Guest) -> str:
    """Its domid; "" while there is none. During a reboot that changes at any moment."""
    return guest.dom0.run(["xl", "domid", guest.name], check=False).out.strip()


def reboot(clone: Guest) -> None:
    """Its reboot is watched, and it boots from its own disks."""
    old = domid(clone)
    clone.dom0.run(["xl", "sysrq", clone.name, "b"])
    end = time.monotonic() + patient(300)
    while time.monotonic() < end and domid(clone) in ("", old):
        time.sleep(2)
    assert domid(clone) not in ("", old)
    clone.wait_advance(1, timeout=FIRST_TICK)  # four others run beside it
    clone.assert_healthy()


@pytest.mark.smoke
def test_a_clone(spent_lab: Lab) -> None:
    """The cheap one: from the snapshot of the guest's own disks, beside the guest."""
    dom0 = spent_lab.dom0
    guest = spent_lab.guest("pvh")
    before = guest.assert_healthy()
    disks = ["/lab/disk/base.a,qcow2,xvda", "/lab/disk/base.b,qcow2,xvdb"]
    made = create(guest, write_cfg(guest, disks), "--name", "base")
    nothing = left(guest)
    (found,) = clones(dom0, made["cfgfile"], "c1")
    assert found["uuid"] != guest.uuid
    clone = clone_of(guest, "c1")
    first = clone.wait_first()
    assert (first.boot, before.n - 1 <= first.n) == (before.boot, True)
    clone.assert_healthy(1)
    guest.assert_healthy(1)
    assert_not_deleted(dom0, made, "c1")
    delete(dom0, "c1")
    assert_left(guest, nothing)


@contextmanager
def asleep(*clones: Guest) -> Iterator[None]:
    """Pause clones, to leave the one emulated core to others."""
    for clone in clones:
        clone.dom0.run(["xl", "pause", clone.name])
    try:
        yield
    finally:
        for clone in clones:
            clone.dom0.run(["xl", "unpause", clone.name], check=False)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["pvh", "pv", "hvm"])
def test_four_clones(spent_lab: Lab, kind: str) -> None:
    """Made two at a time, the second two while the original is reverted."""
    needs_restore(kind)
    dom0 = spent_lab.dom0
    quicken_hotplug(dom0)
    guest = spent_lab.guest(kind)
    prefer_dom0(dom0)
    for other in STANDARD:  # their memory is needed
        if other != kind:
            dom0.run(["xl", "destroy", other], check=False)
    before = guest.assert_healthy()
    made = base(guest)
    after, checksums, nothing = guest.last(), sums(dom0, made), left(guest)
    names = ("c1", "c2", "c3", "c4")
    found = clones(dom0, made["cfgfile"], *names[:2])
    four = [clone_of(guest, name) for name in names]
    command = f"pyxlsnap snapshot-revert {guest.uuid} {made['cfgfile']}"
    with asleep(*four[:2]), dom0.start(f"exec {command}") as reverting:
        reverting.end_input()
        found += clones(dom0, made["cfgfile"], *names[2:])
        reverting.wait(900, check=True)
    assert len({guest.uuid, *(clone["uuid"] for clone in found)}) == 5
    told = ["VM generation ID: a new one" in clone["changes"] for clone in found]
    assert told == [kind == "hvm"] * 4
    assert len({generation(one) for one in (guest, *four)}) == (5 if kind == "hvm" else 1)
    for clone in four:
        assert_goes_on(clone, before, after)
    for one in (guest, *four):  # nobody has seen the writes of another
        one.assert_healthy(5)
    assert sums(dom0, made) == checksums

    for clone in four:
        with asleep(*(other for other in four if other.exists() and other is not clone)):
            reboot(clone)
            mark = clone.mark()
            (again,) = clones(dom0, made["cfgfile"], clone.name, words="--replace")
            uuids = [one["uuid"] for one in found]
            assert (again["replaced"], again["uuid"] in uuids) == (True, True)
            assert_goes_on(clone, before, after, mark)
        delete(dom0, clone.name)
    assert_left(guest, nothing)
    assert sums(dom0, made) == checksums
    guest.assert_healthy()


def cloned_and_killed(guest: Guest, cfgfile: str, step: str, *, replace: bool) -> None:
    """Make the clone c1, and kill its worker and the supervisor at a step; then recover."""
    script = (
        "import os, sys, pyxlsnap\n"
        "cfgfile, step, replace = sys.argv[1:]\n"
        "def progress(p):\n"
        "    if p.phase == step:\n"
        "        os.system('pkill -KILL -o xlsnap-worker; pkill -KILL -f [p]yxlsnap.worker')\n"
        "try:\n"
        "    pyxlsnap.clone_snapshot(\n"
        "        cfgfile, 'c1', force=True, replace=bool(replace), on_progress=progress\n"
        "    )\n"
        "except pyxlsnap.OperationFailed as e:\n"
        "    print(e)\n"
    )
    words = [cfgfile, step, "yes" if replace else ""]
    guest.dom0.run(["python3", "-c", script, *words], check=False, timeout=600)
    pyxlsnap(guest.dom0, "snapshot-recover", timeout=600)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("step", "there"),
    [
        ("journal", False),
        ("disks", False),
        ("restore", None),  # the restore may be over when the worker is killed
        ("unpause", True),
        ("clone file", True),
    ],
)
def test_a_clone_whose_worker_is_killed(spent_lab: Lab, step: str, there: bool | None) -> None:
    """The clone is there and runs, or nothing of it is."""
    dom0 = spent_lab.dom0
    quicken_hotplug(dom0)
    guest = spent_lab.guest("pvh")
    before = guest.assert_healthy()
    made = base(guest)
    after, nothing = guest.last(), left(guest)
    cloned_and_killed(guest, made["cfgfile"], step, replace=False)
    clone = clone_of(guest, "c1")
    assert there in (None, clone.exists())
    if clone.exists():
        assert_goes_on(clone, before, after)
        delete(dom0, "c1")
    assert_left(guest, nothing)
    guest.assert_healthy()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_replace_whose_worker_is_killed(spent_lab: Lab) -> None:
    """The old clone stays, or the new one is there, or nothing of either is."""
    dom0 = spent_lab.dom0
    quicken_hotplug(dom0)
    guest = spent_lab.guest("pvh")
    before = guest.assert_healthy()
    made = base(guest)
    after, checksums, nothing = guest.last(), sums(dom0, made), left(guest)
    clone = clone_of(guest, "c1")
    for step in ("disks", "destroy", "restore", "old disks", "clone file"):
        if not clone.exists():
            clones(dom0, made["cfgfile"], "c1")
            clone.assert_healthy()
        old, mark = domid(clone), clone.mark()
        cloned_and_killed(guest, made["cfgfile"], step, replace=True)
        if step == "disks":
            assert domid(clone) == old
        if step in ("old disks", "clone file"):
            assert domid(clone) not in ("", old)
            assert_goes_on(clone, before, after, mark)
        if clone.exists():
            clone.assert_healthy()
            delete(dom0, "c1")
        assert_left(guest, nothing)
    assert sums(dom0, made) == checksums
    guest.assert_healthy()
