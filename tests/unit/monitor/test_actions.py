"""A domain that shuts down by itself: what its configuration says is done, as xl would."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyxlsnap import cfgfile, paths
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.create.sequence import Creation
from pyxlsnap.errors import DomainNotFound, NeedsAttention, OperationFailed, Refused, XenError
from pyxlsnap.journal import Journal
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.linux.processes import Process
from pyxlsnap.model import DomainConfig, SnapshotConfig
from pyxlsnap.monitor import actions as module
from pyxlsnap.monitor.actions import monitor
from pyxlsnap.monitor.launch import ending_monitor, keep_watched
from pyxlsnap.monitor.xl import xl_monitor
from pyxlsnap.request import Callbacks
from pyxlsnap.results import DomainEvent
from pyxlsnap.revert import other_watch
from pyxlsnap.revert.sequence import Reversion
from tests.unit.support import operations
from tests.unit.support.faults import kill
from tests.unit.support.guest import FakeGuest, config_of
from tests.unit.support.operations import plan_create, plan_revert, recover
from tests.unit.support.values import OTHER_UUID, UUID
from tests.unit.support.world import World

WANTED = SnapshotConfig(name="snap")


@contextmanager
def xl_watching(name: str, log_name: str = "") -> Iterator[int]:
    """A process called xl that writes the log of a domain."""
    xl = paths.XEN_LOGS / "bin" / "xl"
    xl.parent.mkdir(exist_ok=True)
    shutil.copy("/bin/sleep", xl)
    with (paths.XEN_LOGS / (log_name or f"xl-{name}.log")).open("w") as log:
        running = subprocess.Popen([xl, "60"], stdout=log)
    try:
        yield running.pid
    finally:
        running.kill()
        running.wait()


class Watch:
    """A watch over a guest that is configured for something."""

    def __init__(self, world: World, **actions: Any) -> None:
        self.world = world
        disk = world.image("xvda")
        config = config_of(disk, kernel=str(world.kernel), **actions)
        self.guest: FakeGuest = world.host.start(config)
        self.events: list[DomainEvent] = []
        self.ready = 0

    def shuts_down(self, reason: str) -> None:
        (guest,) = [g for g in self.world.host.guests if g.exists and g.uuid == UUID]
        guest.shutdown_reason = reason

    def run(self, *changes: str | Callable[[], object], cancel: Cancel | None = None) -> None:
        """Watch while changes come: reasons of a shutdown, or functions."""
        self.world.host.changes[:] = [
            partial(self.shuts_down, change) if isinstance(change, str) else change
            for change in changes
        ]

        def ready() -> None:
            self.ready += 1

        monitor(self.world.host, UUID, on_ready=ready, on_event=self.events.append, cancel=cancel)
        assert not self.world.host.changes, "it left too early"

    def destroyed(self) -> None:
        for guest in self.there():
            guest.exists = False

    def there(self) -> list[FakeGuest]:
        return [g for g in self.world.host.guests if g.exists]

    def summary(self) -> list[tuple[int, str, str, int | None]]:
        return [(e.domid, e.reason, e.action, e.new_domid) for e in self.events]


def test_a_reboot_starts_it_again_each_time(world: World) -> None:
    watch = Watch(world, on_reboot="restart")
    watch.run("reboot", "reboot", "poweroff")
    assert watch.summary() == [
        (1, "reboot", "restart", 2),
        (2, "reboot", "restart", 3),
        (3, "poweroff", "destroy", None),
    ]
    assert watch.ready == 1
    assert not watch.there()


def test_the_domain_that_comes_up_again_runs_and_has_its_devices(world: World) -> None:
    watch = Watch(world, on_reboot="restart")
    added = config_of(world.image("xvda"), world.image("xvdb"), on_reboot="restart")

    def add_a_disk() -> None:
        watch.guest.configuration = added

    watch.run(add_a_disk, "reboot", lambda: seen.append(watch.there()[0].runs), watch.destroyed)
    (_, new) = world.host.guests
    assert [d.vdev for d in new.configuration.disks] == ["xvda", "xvdb"]
    assert (new.name, new.uuid) == (watch.guest.name, UUID)
    assert seen == [True]


seen: list[bool] = []


def test_memory_is_made_for_it_as_xl_would(world: World) -> None:
    watch = Watch(world, on_reboot="restart")
    world.host.command_line = ""
    world.host.free_kb, world.host.needed_kb = 0, 5 * 1024
    watch.run("reboot", watch.destroyed)
    assert world.host.shrunk_kb


REASONS = ["poweroff", "reboot", "crash", "watchdog"]


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("action", ["destroy", "preserve", "coredump_destroy"])
def test_actions_after_which_it_does_not_run(world: World, reason: str, action: str) -> None:
    watch = Watch(world, **{f"on_{reason}": action})
    watch.run(reason)
    assert watch.summary() == [(1, reason, action, None)]
    assert [g.shutdown_reason for g in watch.there()] == ([reason] if action == "preserve" else [])
    assert len(list(paths.DUMPS.iterdir())) == (action == "coredump_destroy")


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("action", ["restart", "coredump_restart", "restart_rename"])
def test_actions_after_which_it_runs(world: World, reason: str, action: str) -> None:
    watch = Watch(world, **{f"on_{reason}": action})
    watch.run(reason, lambda: None, watch.destroyed)
    assert watch.summary() == [(1, reason, action, 2)]
    assert len(list(paths.DUMPS.iterdir())) == (action == "coredump_restart")
    assert watch.guest.uuid == (OTHER_UUID if action == "restart_rename" else UUID)
    assert ("destroy" in world.events) == (action != "restart_rename")


def test_a_soft_reset_goes_on_in_the_same_domain(world: World) -> None:
    watch = Watch(world, on_soft_reset="soft_reset")
    watch.run("soft_reset", lambda: seen.append(watch.guest.runs), "poweroff")
    assert watch.summary() == [
        (1, "soft_reset", "soft_reset", 1),
        (1, "poweroff", "destroy", None),
    ]
    assert seen[-1]


@pytest.mark.parametrize("reason", ["poweroff", "reboot", "crash", "?"])
def test_an_unconfigured_action_destroys(world: World, reason: str) -> None:
    watch = Watch(world)
    watch.run(reason)
    assert watch.summary() == [(1, reason, "destroy", None)]


def test_a_suspend_and_the_affairs_of_others_are_not_acted_on(world: World) -> None:
    watch = Watch(world, on_reboot="restart")

    def suspend(suspended: bool) -> None:
        watch.guest.suspended = suspended

    other = world.guest(name="vm2", uuid=OTHER_UUID)

    def other_reboots() -> None:
        other.shutdown_reason = "reboot"

    watch.run(lambda: suspend(True), other_reboots, lambda: suspend(False), watch.destroyed)
    assert watch.events == []
    assert "destroy" not in world.events


def test_a_shutdown_before_the_watch_is_acted_on(world: World) -> None:
    watch = Watch(world)
    watch.shuts_down("crash")
    watch.run()
    assert watch.summary() == [(1, "crash", "destroy", None)]


def test_a_domain_under_another_name_keeps_it(world: World) -> None:
    watch = Watch(world, on_reboot="restart")
    watch.guest.name = "renamed"
    watch.run("reboot", watch.destroyed)
    assert world.host.guests[1].name == "renamed"


def test_no_domain(world: World) -> None:
    with pytest.raises(DomainNotFound):
        monitor(world.host, UUID)


def test_it_waits_for_the_operation_under_way(world: World) -> None:
    """A revert of a domain that has shut down has the lock, and destroys it."""
    watch = Watch(world, on_reboot="restart")
    lock = DomainLock(UUID, domain="vm1")

    def end() -> None:
        watch.destroyed()
        lock.release()

    timer = threading.Timer(0.3, end)
    timer.start()
    watch.run("reboot")
    timer.join()
    assert watch.events == []
    assert "create" not in world.events


def test_it_leaves_when_its_domain_is_gone_while_it_waits(world: World) -> None:
    """The revert that has destroyed the domain waits with the lock until the new one is watched."""
    watch = Watch(world, on_reboot="restart")
    lock = DomainLock(UUID, domain="vm1")
    timer = threading.Timer(0.3, watch.destroyed)
    timer.start()
    watch.run("reboot")
    timer.join()
    assert watch.events == []
    lock.release()


def test_a_failure_of_libxl_does_not_end_its_wait(world: World) -> None:
    watch = Watch(world, on_poweroff="destroy")
    lock = DomainLock(UUID, domain="vm1")
    looks = 0

    def on_event(event: str) -> None:
        nonlocal looks
        looks += event == "info"
        if looks == 1:
            world.fail("info", XenError("no", rc=-3, operation="libxl_domain_info"))

    def well_again() -> None:
        world.on_event = lambda _: None
        world.faults.clear()
        lock.release()

    def shuts_down() -> None:
        watch.shuts_down("poweroff")
        world.on_event = on_event

    timer = threading.Timer(0.3, well_again)
    timer.start()
    watch.run(shuts_down)
    timer.join()
    assert watch.summary() == [(1, "poweroff", "destroy", None)]


def test_it_acts_while_a_create_goes_on_that_may_not_suspend_the_guest(world: World) -> None:
    watch = Watch(world, on_reboot="restart")
    lock = DomainLock(UUID, domain="vm1")
    lock.open_to_monitor()
    watch.run("reboot", "poweroff")
    assert watch.summary() == [(1, "reboot", "restart", 2), (2, "poweroff", "destroy", None)]
    lock.release()


def test_it_takes_its_turn_for_each_domain(world: World) -> None:
    watch = Watch(world, on_reboot="restart")
    asked: list[int] = []

    def turn(domid: int) -> bool:
        asked.append(domid)
        return domid < 3

    world.host.changes[:] = [partial(watch.shuts_down, "reboot")] * 2
    monitor(world.host, UUID, on_event=watch.events.append, turn=turn)
    assert asked == [1, 2, 3]  # somebody else watches the third
    assert [e.new_domid for e in watch.events] == [2, 3]
    assert watch.there()


def test_it_does_not_watch_what_another_watches(world: World) -> None:
    watch = Watch(world, on_reboot="restart")
    watch.shuts_down("reboot")
    ready: list[bool] = []
    monitor(world.host, UUID, on_ready=lambda: ready.append(True), turn=lambda _: False)
    assert ready == [True]
    assert watch.there()[0].shutdown_reason == "reboot"


def test_it_is_left_to_xl_if_that_watches_it(world: World) -> None:
    watch = Watch(world, on_reboot="restart")
    with xl_watching("vm1"):
        watch.run("reboot")
    assert watch.events == []
    assert watch.there()[0].shutdown_reason == "reboot"


def test_cancelled_it_leaves_the_domain_alone(world: World) -> None:
    watch = Watch(world)
    cancel = Cancel()
    with pytest.raises(Cancelled):
        watch.run(cancel.set, cancel=cancel)
    assert watch.guest.runs


def test_cancelled_while_another_operation_is_under_way(world: World) -> None:
    watch = Watch(world)
    cancel = Cancel()
    lock = DomainLock(UUID, domain="vm1")
    threading.Timer(0.3, cancel.set).start()
    with pytest.raises(Cancelled):
        watch.run("poweroff", cancel=cancel)
    lock.release()
    assert watch.there()


def test_whether_the_memory_will_do_is_for_libxl_to_say(world: World) -> None:
    """Without autoballooning xl just tries."""
    watch = Watch(world, on_reboot="restart")
    world.host.free_kb = 0
    watch.run("reboot", watch.destroyed)
    assert watch.summary() == [(1, "reboot", "restart", 2)]


def test_an_action_that_fails_once_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0.0)
    watch = Watch(world, on_reboot="restart")
    world.fail("create", XenError("its disk is still in use", rc=-3, operation="create"))
    real, failures = world.host.create, []

    def create(config: DomainConfig) -> FakeGuest:
        try:
            return real(config)
        except XenError:
            failures.append(config.name)
            world.faults.clear()
            raise

    monkeypatch.setattr(world.host, "create", create)
    watch.run("reboot", watch.destroyed)
    assert failures == ["vm1"]
    assert watch.summary() == [(1, "reboot", "restart", 2)]


@pytest.mark.parametrize("verb", ["destroy", "wait_gone", "create", "unpause"])
def test_an_action_that_fails_is_reported(
    world: World, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0.0)
    watch = Watch(world, on_reboot="restart")
    world.fail(verb, XenError("broken", rc=-3, operation=verb))
    with pytest.raises(NeedsAttention, match=r"vm1.*reboot.*restart.*broken") as caught:
        watch.run("reboot")
    assert caught.value.step == "restart"
    assert caught.value.left == ("vm1 does not run",)
    assert watch.events == []


def test_a_core_dump_that_fails_does_not_keep_it_down(world: World) -> None:
    watch = Watch(world, on_crash="coredump_restart")
    world.fail("core_dump", XenError("no space", rc=-3, operation="core_dump"))
    watch.run("crash", watch.destroyed)
    assert watch.summary() == [(1, "crash", "coredump_restart", 2)]


def test_the_configuration_of_the_beginning_serves_if_there_is_none_now(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLING_S", 0.0)
    watch = Watch(world, on_reboot="restart")

    def qemu_dies() -> None:
        world.fail("config", XenError("no QEMU", rc=-3, operation="config"))

    watch.run(qemu_dies, "reboot", watch.destroyed)
    assert watch.summary() == [(1, "reboot", "restart", 2)]


def test_the_configuration_is_read_when_the_guest_has_settled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(The reading takes processor time that the guest needs to come up.)"""
    clock = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    watch, read, config = Watch(world), list[float](), FakeGuest.config

    def reads(guest: FakeGuest) -> DomainConfig:
        read.append(clock[0])
        return config(guest)

    def another_ends() -> None:
        clock[0] += 10

    def a_minute_has_passed() -> None:
        clock[0] += 60

    monkeypatch.setattr(FakeGuest, "config", reads)
    watch.run(another_ends, a_minute_has_passed, a_minute_has_passed, watch.destroyed)
    assert read == [170.0]


def test_without_any_configuration_it_is_not_touched(world: World) -> None:
    watch = Watch(world, on_reboot="restart")
    world.fail("config", Refused("cannot be read"))
    with pytest.raises(NeedsAttention, match="cannot be read"):
        watch.run("reboot")
    assert watch.there()


# Who is watching


def test_xls_process_is_found_by_its_log(world: World) -> None:
    assert xl_monitor("vm1") is None
    with xl_watching("vm1") as pid:
        assert xl_monitor("vm1") == pid
        assert xl_monitor("vm") is None
        assert xl_monitor("../vm1") is None
        (paths.XEN_LOGS / "xl-vm2.log").touch()
        assert xl_monitor("vm2") is None
    assert xl_monitor("vm1") is None


def test_xls_process_of_a_domain_that_was_migrated_here(world: World) -> None:
    with xl_watching("vm1", "xl-vm1--incoming.log") as pid:
        assert xl_monitor("vm1") == pid


def test_a_process_that_only_reads_the_log_is_not_xl(world: World, tmp_path: Path) -> None:
    path = paths.XEN_LOGS / "xl-vm1.log"
    path.touch()
    with path.open() as log, subprocess.Popen(["/bin/sleep", "60"], stdin=log) as tail:
        assert xl_monitor("vm1") is None
        tail.kill()


@pytest.mark.parametrize("version", [(4, 16), (4, 19), (4, 20), (5, 0)])
def test_xls_process_leaves_before_4_20_only(world: World, version: tuple[int, int]) -> None:
    world.host.version = version
    guest = world.guest()
    assert ending_monitor(world.host, guest) is None
    with xl_watching("vm1"):
        assert (ending_monitor(world.host, guest) is not None) == (version < (4, 20))


def test_the_end_of_a_process_is_waited_for() -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as running, Process(running.pid) as process:
        assert not process.ended(within_s=0.05)
        running.kill()
        assert process.ended(within_s=5)
    with Process(running.pid) as gone, Process(None) as none:
        assert gone.ended(within_s=0)
        assert none.ended(within_s=0)


def not_started(uuid: str) -> None:
    raise OperationFailed(f"the watch of {uuid} did not start: no", step="monitor")


def test_a_domain_without_a_watch_is_reported_with_the_way_out() -> None:
    (line,) = keep_watched(not_started, "vm1", UUID)
    assert "no process watches vm1 now" in line
    assert "did not start: no" in line
    assert line.endswith(f"{sys.executable} -P -m pyxlsnap.monitor {UUID}")
    (line,) = keep_watched(None, "vm1", UUID)
    assert "no process watches vm1 now:" in line
    started: list[str] = []
    assert keep_watched(started.append, "vm1", UUID) == []
    assert started == [UUID]


class Fails:
    """A process that waits to watch a domain, and cannot."""

    def begin(self) -> None:
        pass

    def has_begun(self) -> bool:
        raise OperationFailed("no memory", step="monitor")

    def close(self) -> None:
        pass


def test_a_process_that_waited_in_vain_is_replaced() -> None:
    started: list[str] = []
    assert keep_watched(started.append, "vm1", UUID, Fails()) == []
    assert started == [UUID]


# A snapshot of a domain that xl watches


class Watched:
    """A guest that xl watches, and who is told to watch it afterwards."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.guest: FakeGuest = world.guest(world.image("xvda"))
        with xl_watching("vm1"):
            self.plan = plan_create(world.host, self.guest, WANTED)
        self.started: list[str] = []

    def creation(self) -> Creation:
        return Creation(self.plan, Callbacks(start_monitor=self.started.append))


def test_ours_takes_the_place_of_xls(world: World) -> None:
    watched = Watched(world)
    assert watched.creation().run().warnings == ()
    assert watched.started == [UUID]


def test_ours_takes_its_place_after_a_failure_too(world: World) -> None:
    watched = Watched(world)
    world.fail("create xvda", XenError("no", rc=-3, operation="x"))
    with pytest.raises(OperationFailed, match="everything is as before"):
        watched.creation().run()
    assert watched.started == [UUID]


def test_xls_stays_if_the_guest_was_never_suspended(world: World) -> None:
    watched = Watched(world)
    world.fail("prepare xvda", XenError("no", rc=-3, operation="x"))
    with pytest.raises(OperationFailed):
        watched.creation().run()
    assert watched.started == []


def test_a_failure_that_leaves_no_watch_needs_attention(world: World) -> None:
    watched = Watched(world)
    world.fail("create xvda", XenError("no", rc=-3, operation="x"))
    with pytest.raises(NeedsAttention, match="no process watches vm1"):
        Creation(watched.plan, Callbacks(start_monitor=not_started)).run()
    assert watched.guest.runs


def test_a_caller_without_our_monitor_is_warned(world: World) -> None:
    watched = Watched(world)
    (warning,) = Creation(watched.plan).run().warnings
    assert "no process watches vm1" in warning


def test_no_monitor_is_started_where_none_ran(world: World) -> None:
    guest = world.guest(world.image("xvda"))
    plan = plan_create(world.host, guest, WANTED)
    started: list[str] = []
    assert Creation(plan, Callbacks(start_monitor=started.append)).run().warnings == ()
    assert started == []


def test_the_recovery_of_a_kill_starts_ours(world: World) -> None:
    watched = Watched(world)
    kill(watched.creation(), "disk snapshots")
    recovered = recover(world.host, UUID, start_monitor=watched.started.append)
    assert recovered.rolled_back
    assert watched.started == [UUID]


def test_the_recovery_leaves_xls_where_it_is(world: World) -> None:
    watched = Watched(world)
    watched.creation().steps()[0][1]()
    with xl_watching("vm1"):
        recover(world.host, UUID, start_monitor=watched.started.append)
    assert watched.started == []


def test_a_caller_without_our_monitor_is_warned_after_a_failure_too(world: World) -> None:
    watched = Watched(world)
    world.fail("create xvda", XenError("no", rc=-3, operation="x"))
    with pytest.raises(
        OperationFailed, match="everything is as before, but no process watches vm1"
    ):
        Creation(watched.plan).run()


# A revert of a domain that xl watches


def test_a_revert_waits_for_xl_to_leave(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guest may have rebooted just now: then xl starts it, and QEMU has the disks open."""
    monkeypatch.setattr(other_watch, "_XL_S", 0.2)
    watched = Watched(world)
    made = Creation(watched.plan).run()
    cfg = Path(made.cfgfile)
    plan = plan_revert(world.host, "vm1", cfgfile.read(cfg), cfg)
    with (
        xl_watching("vm1"),
        pytest.raises(NeedsAttention, match="xl still watches vm1 and may start it again"),
    ):
        Reversion(world.host, plan).run()
    assert "revert xvda" not in world.events
    operations.revert(world.host, UUID, cfgfile.read(cfg), cfg)


def test_a_revert_of_a_domain_that_xl_is_starting_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_watch, "_XL_S", 0.2)
    watched = Watched(world)
    made = Creation(watched.plan).run()
    cfg = Path(made.cfgfile)
    watched.guest.exists = False
    with xl_watching("vm1"), pytest.raises(OperationFailed, match="nothing was changed"):
        operations.revert(world.host, UUID, cfgfile.read(cfg), cfg)
    assert "revert xvda" not in world.events
    assert Journal(UUID).read() is None
