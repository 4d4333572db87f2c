"""The last look at a suspended guest: short if nothing has changed, else as the first."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest

from pyxlsnap.create import beside
from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.create.sequence import Creation
from pyxlsnap.errors import OperationFailed, XenError
from pyxlsnap.model import SnapshotConfig
from tests.unit.support.guest import FakeDevices, FakeGuest
from tests.unit.support.operations import plan_create
from tests.unit.support.waiting import eventually
from tests.unit.support.world import World

SHORT, LONG = "devices changed", "frontend_states"
RIGHT = {"vbd/51712": 4, "vif/0": 4}
CONNECTING = {"vbd/51712": 3, "vif/0": 4}


class Case:
    """A guest; the suspend waits for the first look at it."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.guest: FakeGuest = world.guest(world.image("xvda"))
        #: what happens between the two looks
        self.meanwhile: Callable[[FakeGuest], None] = lambda _: None
        #: all that was begun
        self.begun: list[str] = []
        self.guest.while_suspending = lambda: self.meanwhile(self.guest)

    def looks(self, *, fails: str = "") -> list[str]:
        """Take a snapshot; returns how the suspended guest was looked at."""
        found: list[str] = []

        def note(verb: str) -> None:
            self.begun.append(verb)
            if self.guest.suspended and verb in (SHORT, LONG):
                found.append(verb)

        self.world.on_begin = note
        creation = Creation(self.plan())
        if fails:
            with pytest.raises(OperationFailed, match=fails):
                creation.run()
        else:
            creation.run()
        assert self.guest.runs
        return found

    def plan(self) -> CreatePlan:
        return plan_create(self.world.host, self.guest, SnapshotConfig(name="snap"))


@pytest.fixture
def case(world: World, monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(world, monkeypatch)


def test_one_request_is_enough_if_nothing_has_changed(case: Case) -> None:
    assert case.looks() == [SHORT]


def gets_a_device(guest: FakeGuest) -> None:
    guest.frontends = [{**RIGHT, "vif/1": 4}]


def connects_again(guest: FakeGuest) -> None:
    guest.frontends = [CONNECTING]


def gets_a_disk(guest: FakeGuest) -> None:
    guest.attached = ("/dev/other",)


@pytest.mark.parametrize("change", [gets_a_device, connects_again, gets_a_disk])
def test_a_change_after_the_first_look_is_found(
    case: Case, change: Callable[[FakeGuest], None]
) -> None:
    case.meanwhile = change
    assert case.looks(fails="meanwhile") == [SHORT, LONG]


def test_a_change_that_is_over_only_makes_the_last_look_thorough(case: Case) -> None:
    case.meanwhile = lambda guest: setattr(guest, "brief_changes", 1)
    assert case.looks() == [SHORT, LONG]


@pytest.mark.parametrize("now", [CONNECTING, {"vif/0": 4}])
def test_what_is_wrong_at_the_first_look_may_be_over_at_the_last(
    case: Case, monkeypatch: pytest.MonkeyPatch, now: dict[str, int]
) -> None:
    plan = case.plan()
    monkeypatch.setattr(case, "plan", lambda: plan)
    case.guest.frontends = [now]
    case.meanwhile = lambda guest: setattr(guest, "frontends", [RIGHT])
    assert case.looks() == [LONG]


def test_a_guest_without_a_connected_device_is_always_looked_at_thoroughly(case: Case) -> None:
    """That it boots by now may be seen in its QEMU alone."""
    case.guest.frontends = [{"vbd/51712": 1}]
    assert case.looks() == [LONG]


def test_a_change_during_the_first_look_is_found(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """xenstore reports changes from before the first look on."""
    states = case.guest.frontend_states

    def changes_at_last() -> dict[str, int]:
        found = states()
        gets_a_disk(case.guest)
        return found

    plan = case.plan()
    monkeypatch.setattr(case, "plan", lambda: plan)
    monkeypatch.setattr(case.guest, "frontend_states", changes_at_last)
    assert case.looks(fails="meanwhile") == [SHORT, LONG]


def lost() -> NoReturn:
    raise XenError("lost", operation="xs_read_watch")


@pytest.mark.parametrize("call", ["changed", "reported"])
def test_a_report_that_cannot_be_asked_for_makes_the_last_look_thorough(
    case: Case, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(FakeDevices, call, lambda _: lost())
    monkeypatch.setattr(FakeDevices, "changed", lambda _: lost())
    monkeypatch.setattr(beside, "_REPORTS_S", 0.01)
    case.meanwhile = lambda _: time.sleep(0.05)
    assert case.looks() == [LONG]


def test_without_a_watch_the_last_look_is_thorough_and_beside_the_memory(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(case.guest, "watching_devices", lost)
    looking: list[str] = []
    states = case.guest.frontend_states

    def noted() -> dict[str, int]:
        looking.append(threading.current_thread().name)
        return states()

    monkeypatch.setattr(case.guest, "frontend_states", noted)
    assert case.looks() == [LONG]
    assert looking[-1] == "pyxlsnap-devices"


def test_reports_are_taken_as_they_come_until_the_first(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a guest could fill the memory with them while its own is saved."""
    monkeypatch.setattr(beside, "_REPORTS_S", 0.01)
    closed: list[bool] = []
    watching = case.guest.watching_devices

    @contextmanager
    def noted() -> Iterator[FakeDevices]:
        with watching() as devices:
            yield devices
        closed.append(case.guest.suspended)

    def changes(guest: FakeGuest) -> None:
        guest.brief_changes = 1
        assert eventually(lambda: bool(closed))

    monkeypatch.setattr(case.guest, "watching_devices", noted)
    case.meanwhile = changes
    assert case.looks() == [LONG]
    assert closed == [False]


def test_the_suspend_waits_for_the_first_look(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the window it would keep the guest waiting."""
    seen: list[bool] = []
    states = case.guest.frontend_states

    def slow() -> dict[str, int]:
        time.sleep(0.2)
        seen.append("suspend" in case.begun)
        return states()

    plan = case.plan()
    monkeypatch.setattr(case, "plan", lambda: plan)
    monkeypatch.setattr(case.guest, "frontend_states", slow)
    assert case.looks() == [SHORT]
    assert seen == [False]
