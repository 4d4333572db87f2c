"""The guest's paravirtual devices: no device may be between two states in a snapshot.

A memory file in which a driver is connecting, or has not noticed yet that the guest was restored,
cannot be restored: the guest's kernel crashes in the driver (xen-lab.md, E8). So the devices are
looked at until they are steady, while the guest runs, and again for the moment of the suspend.
"""

import time
from collections.abc import Callable, Mapping

from pyxlsnap.errors import OperationFailed, Refused
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.linux.waiting import until
from pyxlsnap.model import DomainInfo, XenbusState
from pyxlsnap.text import quote

_WAIT_S = 30.0
_STEADY_S = 5.0
_POLL_S = 0.1

# States in which a device can stay: the guest has no driver for it, or has closed it.
_AT_REST = (XenbusState.INITIALISING, XenbusState.CLOSING, XenbusState.CLOSED)
# The same for a guest that is paused: whether a device stays in CLOSING cannot be seen then.
_AT_REST_PAUSED = (XenbusState.INITIALISING, XenbusState.CLOSED)


def wait_until_steady(
    guest: Guest,
    *,
    vcpus: int,
    timeout_s: float = _WAIT_S,
    steady_s: float = _STEADY_S,
    boots: Callable[[Mapping[str, int]], bool] = lambda _: False,
    check: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Wait until every device is connected, or is seen to be unused.

    A device is unused if it stays unconnected while the guest runs for ``steady_s`` seconds. A
    paused guest does not run: it must have used processor time for this long since its start or
    restore.

    :param vcpus: how many processors the guest has at most.
    :param boots: whether the guest boots, told the state of each device: none is unused then.
    :param check: called before each further look; an exception from it ends the wait.
    :returns: the state of each device, for :func:`notice_devices`.
    :raises Refused: a device is not steady: after ``timeout_s`` seconds, or in a paused guest.
    """
    watch = _Watch(guest, steady_s=steady_s, vcpus=vcpus, boots=boots)

    def over() -> bool:
        if watch.states:
            check()
        return watch.look() or watch.paused  # nothing changes in a paused guest

    until(over, within_s=timeout_s, poll_s=_POLL_S)
    if watch.moving:
        raise Refused(_not_steady(guest.name, watch))
    return watch.states


def notice_devices(guest: Guest, before: Mapping[str, int]) -> dict[str, int]:
    """Make sure that a guest could be restored if it was suspended with its devices as they are.

    :param before: what :func:`wait_until_steady` returned.
    :returns: the state of each device now.
    :raises OperationFailed: a device has come or gone, is not connected any more, or is connecting.
    """
    now = guest.frontend_states()
    for device in sorted(before.keys() | now.keys()):
        if device not in now or device not in before:
            change = "attached" if device in now else "detached"
            raise OperationFailed(f"{device} of {guest.name} was {change} meanwhile", step="check")
        if now[device] not in (XenbusState.CONNECTED, before[device]):
            raise OperationFailed(
                f"{device} of {guest.name} went from xenbus state {before[device]} to "
                f"{now[device]} meanwhile, and the snapshot could not be restored: try again when "
                f"the guest has connected the device",
                step="check",
            )
    return now


class _Watch:
    """For how long each device has been in its state while the guest ran."""

    def __init__(
        self,
        guest: Guest,
        *,
        steady_s: float,
        vcpus: int,
        boots: Callable[[Mapping[str, int]], bool],
    ) -> None:
        self._guest = guest
        self._boots = boots
        self._steady_s = steady_s
        self._vcpus = vcpus
        self._stood_s: dict[str, float] = {}
        self._looked_at = time.monotonic()
        self.paused = False
        self.states: dict[str, int] = {}
        #: the devices that are not steady, and their states
        self.moving: dict[str, int] = {}

    def look(self) -> bool:
        """Look at all devices; whether all are steady."""
        states = self._guest.frontend_states()
        self.moving = {d: s for d, s in states.items() if s != XenbusState.CONNECTED}
        if self.moving:
            self._measure(states, self._guest.info())
        self.states = states
        return not self.moving

    def _measure(self, states: dict[str, int], info: DomainInfo) -> None:
        was_paused, self.paused = self.paused, info.paused
        last, self._looked_at = self._looked_at, time.monotonic()
        ran_s = 0.0 if info.paused or was_paused else self._looked_at - last
        self._stood_s = {
            device: self._stood_s.get(device, 0.0) + ran_s
            for device, state in states.items()
            if self.states.get(device) == state
        }
        if not self._boots(states):
            self.moving = {d: s for d, s in self.moving.items() if not self._unused(d, s, info)}

    def _unused(self, device: str, state: int, info: DomainInfo) -> bool:
        if state in _AT_REST and self._stood_s.get(device, 0.0) >= self._steady_s:
            return True
        ran_s = info.cpu_seconds / self._vcpus  # at least
        return info.paused and state in _AT_REST_PAUSED and ran_s >= self._steady_s


def _not_steady(name: str, watch: _Watch) -> str:
    states = ", ".join(f"{device} in xenbus state {s}" for device, s in watch.moving.items())
    if watch.paused:
        return (
            f"{name} is paused, and not all its devices are connected ({states}): a snapshot taken "
            f"now might not come back: run `xl unpause {quote(name)}`, and take the snapshot some "
            f"seconds later"
        )
    return (
        f"{name}: not all devices are connected or unused ({states}), and a snapshot taken now "
        f"could not be restored: try again when the guest has booted, or detach the device"
    )
