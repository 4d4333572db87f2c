"""Watches of a domain in a worker."""

from pyxlsnap.results import DomainEvent
from tests.unit.support.standin_site import Call
from tests.unit.support.values import UUID

REBOOTED = DomainEvent("vm1", UUID, 3, "reboot", "restart", 4)


def three_reboots(call: Call) -> None:
    for _ in range(3):
        call.on_event(REBOOTED)


def until_cancelled(call: Call) -> None:
    call.on_event(REBOOTED)
    call.wait_for_cancel()
    call.cancel.check()
