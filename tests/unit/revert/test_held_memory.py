"""Going back to a guest that holds more memory than its memory target."""

import pytest

from pyxlsnap import cfgfile
from pyxlsnap.create.sequence import Creation
from pyxlsnap.errors import Refused, XenError
from pyxlsnap.memory import read_header
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.request import Callbacks
from pyxlsnap.results import Reverted
from pyxlsnap.revert.sequence import Reversion
from tests.unit.support import operations, streams
from tests.unit.support.faults import run_until
from tests.unit.support.guest import FakeGuest
from tests.unit.support.memory_files import xl_file
from tests.unit.support.operations import plan_create, plan_revert
from tests.unit.support.values import UUID
from tests.unit.support.world import World

MIB_KB = 1024
TARGET_KB = 4 * MIB_KB
#: without data, so that the file is small
ALLOCATED = 0xE


def stream_of(memory_kb: int) -> bytes:
    """The stream of a guest that holds this much."""
    return streams.hvm_stream([0] + [ALLOCATED] * (memory_kb // 4 - 1))


class Case:
    """A snapshot of a guest whose target is 4 MiB."""

    def __init__(self, world: World, held_kb: int, *, paused: bool = False) -> None:
        self.world = world
        self.guest = world.guest(world.image("xvda"), target_kb=TARGET_KB)
        self.guest.stream, self.guest.memory_kb = stream_of(held_kb), held_kb
        self.guest.paused = paused
        made = plan_create(world.host, self.guest, SnapshotConfig(name="snap"))
        Creation(made).run()
        self.memory_path, self.cfg = made.memory_path, made.cfgfile
        world.events.clear()

    def reversion(self) -> Reversion:
        plan = plan_revert(self.world.host, "vm1", cfgfile.read(self.cfg), self.cfg)
        return Reversion(self.world.host, plan, Callbacks(start_monitor=lambda _: None))

    def run(self) -> Reverted:
        return self.reversion().run()

    @property
    def now(self) -> FakeGuest:
        (found,) = [g for g in self.world.host.guests if g.exists]
        return found


@pytest.mark.parametrize("paused", [False, True])
def test_it_comes_back_with_its_memory_and_its_target(world: World, paused: bool) -> None:
    case = Case(world, 12 * MIB_KB, paused=paused)
    result = case.run()
    assert case.now is not case.guest
    assert case.now.paused is paused
    assert (case.now.memory_kb, case.now.target_kb) == (12 * MIB_KB, TARGET_KB)
    assert result.warnings == ()


def test_the_target_is_set_back_before_the_guest_runs(world: World) -> None:
    case = Case(world, 12 * MIB_KB)
    case.run()
    events = [e for e in world.events if e in ("restore", "lower_memory_target", "unpause")]
    assert events == ["restore", "lower_memory_target", "unpause"]


@pytest.mark.parametrize("above_kb", [0, 1024])
def test_a_guest_that_fits_is_restored_as_it_was_saved(world: World, above_kb: int) -> None:
    """libxl gives each domain 1 MiB above its target."""
    case = Case(world, TARGET_KB + above_kb)
    case.run()
    assert case.now.configuration == case.guest.configuration
    assert "lower_memory_target" not in world.events


def test_a_little_more_than_fits_is_enough_to_raise_the_target(world: World) -> None:
    case = Case(world, TARGET_KB + 1024 + 4)
    case.run()
    assert case.now.memory_kb == TARGET_KB + 1028
    assert case.now.target_kb == TARGET_KB


def test_the_memory_that_it_held_is_asked_for_before_the_destroy(world: World) -> None:
    case = Case(world, 12 * MIB_KB)
    world.host.free_kb, case.guest.memory_kb = 3 * MIB_KB, 8 * MIB_KB
    with pytest.raises(Refused, match="vm1 needs 12 MiB of memory and Xen has 11 MiB"):
        case.run()
    assert case.guest.runs
    assert "destroy" not in world.events
    world.host.free_kb = 12 * MIB_KB
    case.run()


def test_dom0_makes_room_for_the_memory_that_it_held(world: World) -> None:
    case = Case(world, 12 * MIB_KB)
    world.host.autoballoon_setting, world.host.free_kb = "on", 2 * MIB_KB
    case.run()
    assert world.host.shrunk_kb == [10 * MIB_KB]


def test_files_of_earlier_releases_and_of_xl_save_work(world: World) -> None:
    """Nothing in the header says how much the guest held: the stream does."""
    case = Case(world, 12 * MIB_KB)
    data = case.memory_path.read_bytes()
    with case.memory_path.open("rb") as file:
        header = read_header(file, "x")
    text = header.config_json.encode() + b"\0"
    case.memory_path.write_bytes(xl_file(text) + data[header.stream_offset :])
    case.run()
    assert (case.now.memory_kb, case.now.target_kb) == (12 * MIB_KB, TARGET_KB)


def test_a_target_that_cannot_be_set_back_is_a_warning(world: World) -> None:
    """The guest is back with its memory: to destroy it again would help nobody."""
    case = Case(world, 12 * MIB_KB)
    world.fail("lower_memory_target", XenError("no", rc=-3, operation="libxl_set_memory_target"))
    (warning,) = case.run().warnings
    assert warning == (
        "the memory target of vm1 is 12288 KiB instead of 4096 KiB (no): run `xl mem-set vm1 4096k`"
    )
    assert case.now.runs


@pytest.mark.parametrize("killed_in", ["restore", "lower_memory_target"])
def test_a_recovery_sets_the_target_back(world: World, killed_in: str) -> None:
    case = Case(world, 12 * MIB_KB)

    class Killed(BaseException):
        """In the place of SIGKILL."""

    def kill(verb: str) -> None:
        if verb == killed_in:
            raise Killed

    world.on_event = kill
    steps = case.reversion().steps()
    with pytest.raises(Killed):
        run_until(steps, "unpause")
    world.on_event = lambda _: None
    operations.recover(world.host, UUID, start_monitor=lambda _: None)
    assert case.now.runs
    assert (case.now.memory_kb, case.now.target_kb) == (12 * MIB_KB, TARGET_KB)


def test_a_snapshot_of_the_restored_guest_can_be_reverted_to(world: World) -> None:
    case = Case(world, 12 * MIB_KB)
    case.run()
    case.now.stream = stream_of(12 * MIB_KB)
    again = plan_create(world.host, case.now, SnapshotConfig(name="again"))
    Creation(again).run()
    case.cfg = again.cfgfile
    case.run()
    assert case.now.memory_kb == 12 * MIB_KB
