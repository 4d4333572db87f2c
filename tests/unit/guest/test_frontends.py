"""The guest's devices: steady before a snapshot, and still so at its instant."""

import time

import pytest

from pyxlsnap.errors import OperationFailed
from pyxlsnap.guest.frontends import notice_devices, wait_until_steady
from tests.unit.support.errors import refusal
from tests.unit.support.guest import FakeGuest
from tests.unit.support.world import World

STATES = range(9)
#: states in which a device can stay
AT_REST = (1, 5, 6)


@pytest.fixture
def guest(world: World) -> FakeGuest:
    return world.guest(world.image("xvda"))


def wait(
    guest: FakeGuest, *, timeout_s: float = 5, steady_s: float = 0.3, vcpus: int = 2
) -> dict[str, int]:
    return wait_until_steady(guest, vcpus=vcpus, timeout_s=timeout_s, steady_s=steady_s)


class TestARunningGuest:
    def test_connected_devices_are_not_waited_for(self, guest: FakeGuest) -> None:
        assert wait(guest, timeout_s=0, steady_s=1000) == {"vbd/51712": 4, "vif/0": 4}

    def test_a_guest_without_devices_is_fine(self, guest: FakeGuest) -> None:
        guest.frontends = [{}]
        assert wait(guest, timeout_s=0) == {}

    @pytest.mark.parametrize("kind", ["vbd", "vif", "vkbd", "vfb", "console", "9pfs", "vusb"])
    @pytest.mark.parametrize("state", [s for s in STATES if s != 4])
    def test_a_device_between_two_states_is_waited_for(
        self, guest: FakeGuest, kind: str, state: int
    ) -> None:
        guest.frontends = [{f"{kind}/0": state}, {f"{kind}/0": state}, {f"{kind}/0": 4}]
        assert wait(guest) == {f"{kind}/0": 4}

    @pytest.mark.parametrize("state", AT_REST)
    def test_a_device_that_stays_unconnected_is_unused(self, guest: FakeGuest, state: int) -> None:
        guest.frontends = [{"vkbd/0": state, "vbd/51712": 4}]
        began = time.monotonic()
        assert wait(guest) == {"vkbd/0": state, "vbd/51712": 4}
        assert time.monotonic() - began >= 0.3

    def test_each_change_begins_the_time_anew(self, guest: FakeGuest) -> None:
        """A driver that is unloaded and loaded passes through such states."""
        guest.frontends = [{"vif/0": s} for s in (1, 1, 5, 5, 6, 6, 1, 1, 2, 3)] + [{"vif/0": 4}]
        assert wait(guest) == {"vif/0": 4}

    def test_a_device_plugged_in_meanwhile_begins_its_own(self, guest: FakeGuest) -> None:
        one, both = {"vif/0": 1}, {"vif/0": 1, "vif/1": 1}
        guest.frontends = [one, one, one, both]
        began = time.monotonic()
        assert wait(guest) == both
        assert time.monotonic() - began >= 0.5

    @pytest.mark.parametrize("state", [s for s in STATES if s != 4 and s not in AT_REST])
    def test_the_time_is_limited(self, guest: FakeGuest, state: int) -> None:
        guest.frontends = [{"vif/0": state, "vbd/51712": 4}]
        says = refusal(lambda: wait(guest, timeout_s=0.1, steady_s=0))
        assert (
            f"vm1: not all devices are connected or unused (vif/0 in xenbus state {state})" in says
        )

    def test_time_in_which_it_is_paused_does_not_count(self, guest: FakeGuest) -> None:
        guest.frontends = [{"vif/0": 1}]
        looks = iter([False, True])

        def owner_pauses(event: str) -> None:
            if event == "frontend_states":
                guest.paused = next(looks, True)

        guest._world.on_event = owner_pauses
        guest.cpu_seconds = 0.1
        assert "vm1 is paused, and not all" in refusal(lambda: wait(guest, steady_s=0.15))


class TestAPausedGuest:
    """Nothing changes in it, so it is not waited for."""

    @pytest.fixture
    def paused(self, guest: FakeGuest) -> FakeGuest:
        guest.paused = True
        return guest

    def test_connected_devices_are_fine(self, paused: FakeGuest) -> None:
        paused.cpu_seconds = 0.05
        assert wait(paused, timeout_s=0) == {"vbd/51712": 4, "vif/0": 4}

    @pytest.mark.parametrize("state", [1, 6])
    def test_a_device_without_driver_is_unused_if_the_guest_has_run_for_long_enough(
        self, paused: FakeGuest, state: int
    ) -> None:
        paused.frontends = [{"vkbd/0": state}]
        paused.cpu_seconds = 20.0
        began = time.monotonic()
        assert wait(paused, timeout_s=30, steady_s=10, vcpus=2) == {"vkbd/0": state}
        assert time.monotonic() - began < 5
        paused.cpu_seconds = 19.9  # by two processors in less than ten seconds, maybe
        says = refusal(lambda: wait(paused, timeout_s=30, steady_s=10, vcpus=2))
        assert says.startswith("vm1 is paused, and not all its devices are connected (vkbd/0 in x")
        assert "run `xl unpause vm1`" in says
        assert time.monotonic() - began < 5

    @pytest.mark.parametrize("state", [0, 2, 3, 5, 7, 8])
    def test_a_device_between_two_states_is_refused_at_once(
        self, paused: FakeGuest, state: int
    ) -> None:
        paused.frontends = [{"vbd/51712": state}]
        began = time.monotonic()
        assert f"vbd/51712 in xenbus state {state}" in refusal(lambda: wait(paused, timeout_s=30))
        assert time.monotonic() - began < 5


class TestAtTheInstant:
    def notices(self, guest: FakeGuest, before: dict[str, int], now: dict[str, int]) -> str:
        guest.frontends = [now]
        with pytest.raises(OperationFailed) as caught:
            notice_devices(guest, before)
        return str(caught.value)

    @pytest.mark.parametrize("before", [4, *AT_REST])
    @pytest.mark.parametrize("now", STATES)
    def test_connected_or_as_it_was(self, guest: FakeGuest, before: int, now: int) -> None:
        if now in (4, before):
            guest.frontends = [{"vif/0": now}]
            notice_devices(guest, {"vif/0": before})
            return
        says = self.notices(guest, {"vif/0": before}, {"vif/0": now})
        assert f"vif/0 of vm1 went from xenbus state {before} to {now} meanwhile" in says

    @pytest.mark.parametrize("state", STATES)
    def test_a_device_that_has_come(self, guest: FakeGuest, state: int) -> None:
        """It is not in the configuration that was saved."""
        says = self.notices(guest, {"vif/0": 4}, {"vif/0": 4, "vif/1": state})
        assert says == "vif/1 of vm1 was attached meanwhile"

    def test_a_device_that_has_gone(self, guest: FakeGuest) -> None:
        assert self.notices(guest, {"vif/0": 4}, {}) == "vif/0 of vm1 was detached meanwhile"
