"""Which process watches which domain of a uuid."""

import threading
import time

import pytest

from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.monitor import turn as module
from pyxlsnap.monitor.turn import Turn
from tests.unit.support.values import OTHER_UUID, UUID
from tests.unit.support.world import World


def of_an_earlier_release() -> DomainLock:
    return DomainLock(UUID, domain=UUID, kind="watch")


def test_one_process_for_each_domain(world: World) -> None:
    first, second, other = Turn(UUID), Turn(UUID), Turn(OTHER_UUID)
    assert first.take(1)
    assert not second.take(1)
    assert other.take(1)
    assert second.take(2)
    assert not first.take(2)  # and gives up the domain before
    assert other.take(3)
    third = Turn(UUID)
    assert third.take(1)
    second.release()
    second.release()
    assert third.take(2)


def test_a_refusal_takes_no_time(world: World) -> None:
    held, refused = Turn(UUID), Turn(UUID)
    assert held.take(1)
    begun = time.monotonic()
    assert not refused.take(1)
    assert time.monotonic() - begun < 1


def test_the_end_of_a_process_of_an_earlier_release_is_waited_for(world: World) -> None:
    held = of_an_earlier_release()
    timer = threading.Timer(0.3, held.release)
    timer.start()
    turn = Turn(UUID)
    assert turn.take(1)
    timer.join()
    assert not Turn(UUID).take(1)


def test_a_process_of_an_earlier_release_is_no_proof(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may watch the domain before."""
    monkeypatch.setattr(module, "_EARLIER_S", 0.2)
    held = of_an_earlier_release()
    assert Turn(UUID).take(1)
    held.release()
