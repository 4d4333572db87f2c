"""Deleting external snapshots with a real QEMU, from the cfgfile to the data on the disks."""

from pathlib import Path

import pytest

from pyxlsnap import cfgfile
from pyxlsnap.cancel import Cancel
from pyxlsnap.clone import plan as clone_plan
from pyxlsnap.clone import removal as clone_removal
from pyxlsnap.clone.delete import delete_clone
from pyxlsnap.clone.operation import clone
from pyxlsnap.delete import plan as delete_plan
from pyxlsnap.delete.sequence import Deletion
from pyxlsnap.disks import registry
from pyxlsnap.errors import Interrupted, Refused
from pyxlsnap.journal import Journal
from pyxlsnap.memory import write_header
from pyxlsnap.model import Disk, DiskRequest, Metadata, RunState, SnapshotConfig
from pyxlsnap.request import Callbacks, CloneRequest, DeleteCloneRequest
from tests.unit.support import operations, streams
from tests.unit.support.chains import Chains
from tests.unit.support.faults import run_until
from tests.unit.support.guest import config_of
from tests.unit.support.operations import delete, plan_delete
from tests.unit.support.qemu import DOMID, Qemu
from tests.unit.support.values import UUID
from tests.unit.support.world import World

STEPS = [name for name, _ in Deletion.__new__(Deletion).steps()]
HARMLESS = ("journal", "free disk snapshots")


class Case(Chains):
    """Two snapshots with all their files, of a guest that runs."""

    world: World

    def cfg(self, name: str) -> Path:
        return self.world.directory / f"{name}.cfg"

    def memory(self, name: str) -> Path:
        return self.world.directory / f"{name}.save"

    def describe(self, name: str) -> None:
        """Write the memory file, with a page of memory, and the cfgfile."""
        requests = tuple(
            DiskRequest(d.vdev, str(self.frozen_file(d, name)), "qcow2") for d in self.disks
        )
        kinds = {d.vdev: "qcow2" for d in self.disks}
        metadata = Metadata(name, "", 1, RunState.RUNNING, requests, {"xen": "4.17"}, kinds)
        with self.memory(name).open("xb") as file:
            config = config_of(*self.disks, kernel=str(self.world.kernel))
            write_header(file, config_json=config.json, metadata=metadata)
            file.write(streams.hvm_stream())
        wanted = SnapshotConfig(name, None, str(self.memory(name)), requests)
        self.cfg(name).write_text(cfgfile.render(wanted))

    def stop(self) -> None:
        self.qemu.close()
        for guest in self.world.host.guests:
            guest.exists = False

    def assert_deleted(self, last: int) -> None:
        """The first is gone, and all that is left is right."""
        assert {p for p in self.world.directory.iterdir() if p.is_file()} == {
            self.cfg("s2"),
            self.memory("s2"),
        }
        names = {p.name for p in self.frozen.iterdir() if p.suffix != ".raw"}
        assert names == {f"{d.vdev}.s2" for d in self.disks}
        assert Journal(UUID).read() is None
        self.stop()
        self.check({"s2": 2, "": last})


@pytest.fixture
def case(disks: list[Disk], qemu: Qemu, world: World, monkeypatch: pytest.MonkeyPatch) -> Case:
    for module in (clone_plan, clone_removal, delete_plan):
        monkeypatch.setattr(module, "strategies", registry.strategies)
    frozen = world.root / "frozen"
    for directory in (frozen, world.directory):
        directory.mkdir()
    found = Case(disks, qemu, frozen)
    found.world = world
    world.guest(*disks).domid = DOMID
    for number in (1, 2):
        found.write(number)
        found.take(f"s{number}")
        found.describe(f"s{number}")
    found.write(3)
    return found


@pytest.mark.parametrize("state", ["running", "off"])
def test_the_first_of_two(case: Case, state: str) -> None:
    if state == "off":
        case.stop()
    done = delete(case.world.host, case.cfg("s1"))
    assert sum("stands on no other file now" in line for line in done.lines) == 2
    case.assert_deleted(3)


@pytest.mark.parametrize("state", ["running", "off"])
@pytest.mark.parametrize("step", STEPS)
def test_one_that_was_killed_after_any_step(case: Case, step: str, state: str) -> None:
    """The other snapshot is whole, and so is this one as long as it has a cfgfile."""
    if state == "off":
        case.stop()
    plan = plan_delete(case.world.host, case.cfg("s1"))
    run_until(Deletion(plan).steps(), step)
    plan.close()
    assert case.cfg("s1").exists() == (step in HARMLESS)
    operations.recover(case.world.host, UUID)
    if step in HARMLESS:
        if state == "off":
            case.check({"s1": 1, "s2": 2, "": 3})
        delete(case.world.host, case.cfg("s1"))
    case.assert_deleted(3)


@pytest.mark.parametrize(("name", "state"), [("s1", "running"), ("s1", "off"), ("s2", "off")])
def test_one_on_which_a_clone_stands_is_kept_until_that_is_deleted(
    case: Case, name: str, state: str
) -> None:
    """A clone of s2 stands on s1, too."""
    if state == "off":
        case.stop()
    host = case.world.host
    asked = CloneRequest(domain="c1", cfgfile=str(case.cfg(name)))
    made = clone(host, asked, Callbacks())
    assert [disk.how for disk in made.disks] == ["overlay"] * 2
    before = case.world.photo()
    for _ in range(2):
        with pytest.raises(Refused, match=r"the clone c1 stands on .*xvda\.s1: .*delete_clone"):
            delete(host, case.cfg("s1"))
        assert case.world.photo() == before
        host.guests[-1].exists = False  # the clone is off the second time
    delete_clone(host, DeleteCloneRequest(domain="c1"), Callbacks())
    delete(host, case.cfg("s1"))
    case.assert_deleted(3)


def test_the_guest_writes_on_and_a_later_snapshot_is_right(case: Case) -> None:
    delete(case.world.host, case.cfg("s1"))
    case.write(4)
    case.assert_deleted(4)


def test_what_no_frozen_file_can_be_freed_of_is_refused_before_anything_is_changed(
    case: Case,
) -> None:
    case.qemu.close()
    case.qemu.start()
    case.qemu.has_opened()
    case.take("s3")
    case.describe("s3")
    before = {p: p.read_bytes() for p in case.world.directory.iterdir() if p.is_file()}
    with pytest.raises(Refused, match="shut down the domain first"):
        delete(case.world.host, case.cfg("s2"))  # s3 is known by the disk's name
    assert {p: p.read_bytes() for p in case.world.directory.iterdir() if p.is_file()} == before
    case.stop()
    case.check({"s1": 1, "s2": 2, "s3": 3, "": 3})


def test_one_that_is_cancelled_while_qemu_works(case: Case) -> None:
    cancel = Cancel()

    def at(progress: object) -> None:
        if getattr(progress, "phase", "") == "free disk snapshots":
            cancel.set()

    with pytest.raises(Interrupted):
        delete(case.world.host, case.cfg("s1"), cancel=cancel, on_progress=at)
    assert Journal(UUID).read() is None
    case.stop()
    case.check({"s1": 1, "s2": 2, "": 3})
