"""Memory for the restored domain: made, and kept from xl, before anything is destroyed."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyxlsnap import cfgfile, paths
from pyxlsnap.cancel import Cancel
from pyxlsnap.create.sequence import Creation
from pyxlsnap.errors import Interrupted, NeedsAttention, OperationFailed, Refused, XenError
from pyxlsnap.guest import dom0_memory
from pyxlsnap.journal import Journal
from pyxlsnap.linux.locks import FileLock
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.results import Reverted
from pyxlsnap.revert.sequence import Reversion
from tests.unit.support.host import FakeHost
from tests.unit.support.operations import plan_create, plan_revert
from tests.unit.support.values import UUID
from tests.unit.support.world import World

MIB_KB = 1024

# What xl does while it starts a domain.
XL = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def xl_starts_a_domain() -> Iterator[subprocess.Popen[str]]:
    xl = subprocess.Popen(
        [sys.executable, "-c", XL, str(paths.XL_LOCK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert xl.stdout
    assert xl.stdout.readline() == "held\n"
    try:
        yield xl
    finally:
        xl.communicate()


def xl_could_start_a_domain() -> bool:
    lock = FileLock(paths.XL_LOCK)
    taken = lock.take(within_s=0)
    lock.release()
    return taken


class Case:
    """A domain of 400 MiB with a snapshot; 100 MiB are free, 600 are needed, dom0 has 2 GiB."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.guest = world.guest(world.image("xvda"))
        made = plan_create(world.host, self.guest, SnapshotConfig(name="snap"))
        Creation(made).run()
        self.cfg: Path = made.cfgfile
        world.storage.content.update(xvda="since")
        self.before = world.photo()
        host = self.host = world.host
        self.guest.memory_kb = 400 * MIB_KB
        host.autoballoon_setting = "on"
        host.free_kb, host.needed_kb = 100 * MIB_KB, 600 * MIB_KB
        host.dom0_kb = host.dom0_target_kb = 2048 * MIB_KB
        #: for each event: whether xl could take its lock, and dom0's memory
        self.seen: dict[str, tuple[bool, int]] = {}
        world.on_event = self._look

    def _look(self, event: str) -> None:
        self.seen[event] = (xl_could_start_a_domain(), self.host.dom0_kb // MIB_KB)
        if event == "destroy":
            self.host.free_kb += self.guest.memory_kb

    def run(self, cancel: Cancel | None = None) -> Reverted:
        plan = plan_revert(self.host, UUID, cfgfile.read(self.cfg), self.cfg)
        self.seen.clear()
        return Reversion(self.host, plan, cancel=cancel).run()

    def assert_nothing_changed(self) -> None:
        assert self.guest.runs
        assert self.world.photo() == self.before
        assert self.world.storage.content["xvda"] == "since"
        assert Journal(UUID).read() is None
        assert xl_could_start_a_domain()
        assert self.host.dom0_target_kb == 2048 * MIB_KB


@pytest.fixture
def case(world: World) -> Case:
    return Case(world)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dom0_memory, "LOCK_S", 0.3)
    monkeypatch.setattr(dom0_memory, "LONG_S", 0.1)


def test_dom0_gives_what_is_missing_before_the_destroy(case: Case) -> None:
    case.run()
    assert case.host.shrunk_kb == [100 * MIB_KB]
    assert [case.seen[e][1] for e in ("destroy", "revert xvda", "restore")] == [1948] * 3


def test_xl_is_kept_from_the_memory_until_the_domain_is_there(case: Case) -> None:
    case.run()
    assert not any(case.seen[e][0] for e in ("destroy", "revert xvda", "restore"))
    assert case.seen["unpause"][0]
    assert xl_could_start_a_domain()


@pytest.mark.parametrize("step", ["destroy", "revert xvda", "restore"])
def test_after_a_failure_xl_may_start_domains(case: Case, step: str) -> None:
    case.world.fail(step, XenError("no"))
    with pytest.raises(OperationFailed):
        case.run()
    assert xl_could_start_a_domain()


class TestLock:
    @pytest.mark.usefixtures("quick")
    def test_that_another_program_holds_is_refused(self, case: Case) -> None:
        with xl_starts_a_domain() as xl, pytest.raises(Refused) as caught:
            case.run()
        assert f"(pid {xl.pid}) has held xl's lock {paths.XL_LOCK} for 0.3 s" in str(caught.value)
        assert "nothing was changed" in str(caught.value)
        case.assert_nothing_changed()

    def test_is_waited_for(self, case: Case) -> None:
        with xl_starts_a_domain() as xl:
            ended = threading.Timer(0.5, xl.kill)
            ended.start()
            case.run()
            ended.join()
        assert case.seen["restore"] == (False, 1948)

    @pytest.mark.usefixtures("quick")
    def test_of_ours_is_waited_for_longer(self, case: Case) -> None:
        """Many clones are made at once: each has the lock in turn, and none can be told apart."""
        ours = FileLock(paths.XL_LOCK)
        assert ours.take(within_s=0)
        ended = threading.Timer(1.5, ours.release)
        ended.start()
        case.run()
        ended.join()
        assert case.seen["restore"] == (False, 1948)

    @pytest.mark.usefixtures("quick")
    def test_of_ours_is_not_waited_for_without_end(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dom0_memory, "OURS_S", 0.3)
        ours = FileLock(paths.XL_LOCK)
        assert ours.take(within_s=0)
        with pytest.raises(Refused, match=r"pyxlsnap for other domains has held .* for 0\.3 s"):
            case.run()
        ours.release()
        case.assert_nothing_changed()

    def test_can_be_interrupted(self, case: Case) -> None:
        cancel = Cancel()
        begun = time.monotonic()
        with xl_starts_a_domain():
            threading.Timer(0.5, cancel.set).start()
            with pytest.raises(Interrupted):
                case.run(cancel)
        assert time.monotonic() - begun < dom0_memory.LOCK_S / 2
        case.assert_nothing_changed()

    @pytest.mark.usefixtures("quick")
    def test_is_nothing_where_xl_does_not_use_it(self, case: Case) -> None:
        case.host.autoballoon_setting, case.host.free_kb = "off", 200 * MIB_KB
        with xl_starts_a_domain():
            case.run()
        assert case.host.shrunk_kb == []

    def test_that_cannot_be_opened_is_refused(self, case: Case) -> None:
        case.world.on_event = lambda _: None
        paths.XL_LOCK.mkdir()
        with pytest.raises(Refused, match=r"xl\.lock"):
            case.run()
        paths.XL_LOCK.rmdir()
        case.assert_nothing_changed()


class TestTooLittle:
    def test_is_refused_and_dom0_has_its_memory_back(self, case: Case) -> None:
        case.host.dom0_holds_kb = case.host.dom0_kb - 50 * MIB_KB
        with pytest.raises(Refused, match="600 MiB needed, 550 MiB free"):
            case.run()
        assert case.host.shrunk_kb == [100 * MIB_KB, -100 * MIB_KB]
        case.assert_nothing_changed()

    def test_is_made_good_if_the_destroy_cannot_begin(self, case: Case) -> None:
        case.world.fail("destroy", XenError("no"))
        with pytest.raises(OperationFailed, match="nothing was changed"):
            case.run()
        case.assert_nothing_changed()

    def test_since_the_plan_is_refused(self, case: Case) -> None:
        plan = plan_revert(case.host, UUID, cfgfile.read(case.cfg), case.cfg)
        case.host.autoballoon_setting, case.host.free_kb = "off", 100 * MIB_KB
        with pytest.raises(Refused, match="600 MiB needed, 500 MiB free"):
            Reversion(case.host, plan).run()
        case.assert_nothing_changed()

    def test_after_the_destroy_is_made_good_by_dom0(self, case: Case) -> None:
        """Another program than xl takes memory meanwhile."""

        def takes(event: str) -> None:
            case._look(event)
            if event == "revert xvda":
                case.host.free_kb -= 50 * MIB_KB

        case.world.on_event = takes
        case.run()
        assert case.host.shrunk_kb == [100 * MIB_KB, 50 * MIB_KB]


@pytest.mark.usefixtures("quick")
class TestSlowDisks:
    """xl waits for its lock without limit, so the disks do not keep it waiting for long."""

    def slow(self, case: Case, host: FakeHost, taken_kb: int = 0) -> None:
        def look(event: str) -> None:
            if event == "revert xvda":
                time.sleep(0.3)
                host.free_kb -= taken_kb
            case._look(event)

        case.world.on_event = look

    def test_let_xl_start_domains_and_say_so(self, case: Case) -> None:
        self.slow(case, case.host)
        warnings = case.run().warnings
        assert "the disks took more than 0.1 s" in warnings[0]
        assert case.seen["destroy"][0] is False
        assert case.seen["revert xvda"][0] is True
        assert case.seen["restore"][0] is False

    def test_make_the_memory_be_looked_at_again(self, case: Case) -> None:
        self.slow(case, case.host, 50 * MIB_KB)
        case.run()
        assert case.host.shrunk_kb == [100 * MIB_KB, 50 * MIB_KB]

    def test_and_a_lock_that_is_held_since_do_not_leave_the_guest_off(self, case: Case) -> None:
        lock = FileLock(paths.XL_LOCK)

        def held(event: str) -> None:
            if event == "revert xvda":
                time.sleep(0.3)
                assert lock.take(within_s=0)
            if event == "destroy":
                case.host.free_kb += case.guest.memory_kb

        case.world.on_event = held
        case.run()
        lock.release()

    def test_and_a_lock_that_cannot_be_opened_since_do_not_leave_the_guest_off(
        self, case: Case
    ) -> None:
        def replaced(event: str) -> None:
            if event == "revert xvda":
                time.sleep(0.3)
                paths.XL_LOCK.unlink()
                paths.XL_LOCK.mkdir()
            if event == "destroy":
                case.host.free_kb += case.guest.memory_kb

        case.world.on_event = replaced
        case.run()

    def test_with_too_little_memory_afterwards_can_be_finished(self, case: Case) -> None:
        self.slow(case, case.host, 50 * MIB_KB)
        case.host.dom0_holds_kb = 1948 * MIB_KB
        with pytest.raises(NeedsAttention, match="600 MiB needed, 550 MiB free"):
            case.run()
        assert xl_could_start_a_domain()
        case.host.dom0_holds_kb = 0
        case.run()
