"""The main story, on every kind of guest: snapshot, go on, revert, and nothing is amiss.

The guests count in memory and on both disks and read everything back all the time; a memory and
a disk from different moments make them say BAD (see test_guests.py for the proof).
"""

import json

import pytest

from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import (
    NOT_LOADED,
    SNAPSHOTS,
    cannot_go_back,
    check_images,
    create,
    disk_snapshots,
    goes_back,
    pyxlsnap,
    revert,
    run_script,
)

# In `make test`: two on the Xen of the smoke tests, one of each form that a memory file can have.
SOAK, SMOKE = pytest.mark.soak, pytest.mark.smoke
CELLS = [
    pytest.param("pv", False, marks=SMOKE),
    ("pvh", False),
    ("pvh", True),
    ("hvm", False),
    pytest.param("hvm", True, marks=SMOKE),
]

pytestmark = pytest.mark.usefixtures("tidy")


@SOAK
@pytest.mark.parametrize(("kind", "live"), CELLS)
def test_snapshot_and_revert(lab: Lab, kind: str, live: bool) -> None:
    guest = lab.guest(kind)
    before = guest.assert_healthy()
    watched = run_script(
        lab.dom0, "create_watching.py", kind, guest.log, "1" if live else "0", "story"
    )
    assert watched.rc == 0, watched
    told = json.loads(watched.out)
    snapshot = told["snapshot"]
    after = guest.assert_healthy()

    # Live, the counter advances while the memory is saved; else it must not.
    assert "domain now suspended" in told["phases"]
    in_memory = told["memory"]
    if live:
        assert in_memory[-1] > in_memory[0]
        assert snapshot["seconds_suspended"] < 3
    else:
        assert in_memory[-1] - in_memory[0] <= 1  # one line may still be on its way
    assert disk_snapshots(guest) == {vdev: ["story"] for vdev in guest.disks}
    assert lab.dom0.run(["stat", "-c", "%a", snapshot["memory_path"]]).out == "600\n"

    if cannot_go_back(guest, snapshot["cfgfile"]):
        assert [w for w in snapshot["warnings"] if NOT_LOADED in w]
        return
    later = guest.wait_tick(after.n + 15)
    mark, domid = guest.mark(), guest.domid()
    result = revert(guest, snapshot["cfgfile"])
    first = goes_back(guest, mark, later)
    print(f"{kind} live={live}: {before.n} .. {after.n} .. {later.n}, reverted to {first.n}, "
          f"suspended for {snapshot['seconds_suspended']:.2f} s")  # fmt: skip
    assert before.n < first.n <= after.n + 1
    assert first.boot == before.boot
    assert first.disks.keys() == before.disks.keys()
    assert all(n == first.n - 1 for n, _ in first.disks.values())
    assert result["domid"] == guest.domid() != domid
    assert result["disks"] == list(guest.disks)
    # What was kept of the disks as they were before the revert is gone.
    assert disk_snapshots(guest) == {vdev: ["story"] for vdev in guest.disks}


def test_nothing_specified_works(lab: Lab) -> None:
    guest = lab.guest("pv")
    done = pyxlsnap(lab.dom0, "snapshot-create", "pv")
    assert done.rc == 0, done
    (name,) = disk_snapshots(guest)["xvda"]
    uuid = lab.dom0.run("xl list -v pv | tail -1 | grep -oE '[0-9a-f-]{36}'").out.strip()
    for wanted in (
        f"{SNAPSHOTS}/{uuid}/{name}.save",
        f"{SNAPSHOTS}/{uuid}/{name}.cfg",
        f"rm {SNAPSHOTS}/{uuid}/{name}.save",
        f"qemu-img snapshot -d {name} {guest.disks['xvda']}",
        f"snapshot_delete_blkdev_internal xvda-qcow2 {name}",
        f"revert: pyxlsnap snapshot-revert pv {SNAPSHOTS}/{uuid}/{name}.cfg",
    ):
        assert wanted in done.out
    # The commands it gives are right.
    lab.dom0.run(f"xl qemu-monitor-command pv 'snapshot_delete_blkdev_internal xvda-qcow2 {name}'")
    assert disk_snapshots(guest) == {"xvda": [], "xvdb": [name]}


@SOAK
def test_a_cfgfile_that_names_everything_is_taken_by_revert(lab: Lab) -> None:
    guest = lab.guest("pvh")
    lab.dom0.run("mkdir -p /tmp/snap")
    lab.dom0.write(
        "/tmp/snap/given.cfg",
        'name="mine"\ndescription="a \\"quoted\\" one"\nmemory_path="/tmp/snap/mine.memory"\n'
        "disks=[',,xvda',',,xvdb',]\n",
    )
    snapshot = create(guest, "/tmp/snap/given.cfg", "--name", "other")
    assert snapshot["name"] == "mine"
    assert snapshot["memory_path"] == "/tmp/snap/mine.memory"
    later = guest.assert_healthy(10)
    mark = guest.mark()
    revert(guest, "/tmp/snap/given.cfg")
    goes_back(guest, mark, later)
    assert snapshot["cfgfile"] != "/tmp/snap/given.cfg"  # the user's own is never written to


def test_xl_restores_our_memory_file(lab: Lab) -> None:
    guest = lab.guest("pv")
    snapshot = create(guest, "--name", "for-xl")
    later, mark = guest.wait_advance(10), guest.mark()
    lab.dom0.run(["xl", "destroy", "pv"])
    for path in guest.disks.values():
        lab.dom0.run(["qemu-img", "snapshot", "-a", "for-xl", path])
    lab.dom0.run(["xl", "restore", snapshot["memory_path"]])
    goes_back(guest, mark, later)


@SOAK
def test_revert_takes_what_xl_saved(lab: Lab) -> None:
    guest = lab.guest("pvh")
    lab.dom0.run("mkdir -p /tmp/snap")
    lab.dom0.run(["xl", "save", "pvh", "/tmp/snap/by-xl"], timeout=120)
    saved = guest.last()
    for path in guest.disks.values():
        lab.dom0.run(["qemu-img", "snapshot", "-c", "by-xl", path])
    lab.dom0.run(["xl", "restore", "/tmp/snap/by-xl"], timeout=120)
    later, mark = guest.wait_tick(saved.n + 10), guest.mark()
    lab.dom0.write("/tmp/snap/xl.cfg", 'name="by-xl"\nmemory_path="/tmp/snap/by-xl"\n')
    result = revert(guest, "/tmp/snap/xl.cfg")
    assert result["state"] == "running"
    assert goes_back(guest, mark, later).n <= saved.n + 1
    later, mark = guest.wait_advance(10), guest.mark()
    lab.dom0.run(["xl", "destroy", "pvh"])
    check_images(guest)
    revert(guest, "/tmp/snap/xl.cfg")  # the domain is off now
    assert goes_back(guest, mark, later).n <= saved.n + 1
