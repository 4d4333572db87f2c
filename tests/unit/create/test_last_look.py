"""The last look at a suspended guest: short if nothing has changed, else as the first."""

import threading
from collections.abc import Callable

import pytest

from pyxlsnap.create import last_look
from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.create.sequence import Creation
from pyxlsnap.errors import OperationFailed, XenError
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.model import SnapshotConfig
from tests.unit.support.guest import FakeGuest
from tests.unit.support.operations import plan_create
from tests.unit.support.world import World

SHORT, LONG = "devices changed", "frontend_states"
RIGHT = {"vbd/51712": 4, "vif/0": 4}
CONNECTING = {"vbd/51712": 3, "vif/0": 4}
PATIENCE_S = 60.0


class Case:
    """A guest that is suspended when it has been looked at for the first time."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.guest: FakeGuest = world.guest(world.image("xvda"))
        #: what happens between the two looks
        self.meanwhile: Callable[[FakeGuest], None] = lambda _: None
        self._first = threading.Event()
        self._is_ready = last_look._is_ready
        monkeypatch.setattr(last_look, "_is_ready", self._look)
        self.guest.while_suspending = self._suspends

    def _look(self, guest: Guest, plan: CreatePlan) -> bool:
        try:
            return self._is_ready(guest, plan)
        finally:
            self._first.set()

    def _suspends(self) -> None:
        assert self._first.wait(PATIENCE_S)
        self.meanwhile(self.guest)

    def looks(self, *, fails: str = "") -> list[str]:
        """Take a snapshot; returns how the suspended guest was looked at."""
        found: list[str] = []

        def note(verb: str) -> None:
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


def test_a_look_that_cannot_be_taken_is_a_failure(case: Case) -> None:
    case.world.fail(SHORT, XenError("no answer", operation="xs_read"))
    case.looks(fails="no answer")
