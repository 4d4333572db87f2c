"""What a recovery does with a revert that was killed: the table of ``decide``."""

import itertools
from typing import Any

import pytest

from pyxlsnap.model import DomainInfo
from pyxlsnap.recovery.finish_revert import Decision, decide
from tests.unit.support.entries import revert_entry
from tests.unit.support.values import UUID

ORIGINAL, RESTORED, OTHER = 7, 8, 9
RUNS: dict[str, Any] = {}
PAUSED = {"paused": True}
NEW = {"paused": True, "has_run": False}
DYING = {"dying": True}
SHUT_DOWN = {"shutdown": True, "shutdown_reason": "poweroff"}


def domain(domid: int, **flags: Any) -> DomainInfo:
    usual = {"paused": False, "shutdown": False, "shutdown_reason": "", "dying": False}
    return DomainInfo(**{"domid": domid, "uuid": UUID, "memory_kb": 1, **usual, **flags})


def decided(
    *,
    begun: bool = True,
    restored: bool = False,
    informed: bool = False,
    now: DomainInfo | None = None,
    same_boot: bool = True,
    held: bool = False,
) -> Decision:
    entry = revert_entry(
        domid=ORIGINAL,
        destroy_begun=begun,
        restored_domid=RESTORED if restored else None,
        user_informed=informed,
    )
    return decide(entry, now, same_boot=same_boot, held=held)


@pytest.mark.parametrize("flags", [RUNS, PAUSED, DYING, SHUT_DOWN])
def test_before_the_destroy_nothing_was_touched(flags: dict[str, Any]) -> None:
    assert decided(begun=False) is Decision.UNTOUCHED
    assert decided(begun=False, now=domain(ORIGINAL, **flags)) is Decision.UNTOUCHED


def test_a_domain_that_is_off_is_reverted_again() -> None:
    assert decided() is Decision.REDO
    assert decided(same_boot=False) is Decision.REDO


@pytest.mark.parametrize("flags", [PAUSED, DYING, SHUT_DOWN])
def test_a_half_destroyed_domain_is_reverted_again(flags: dict[str, Any]) -> None:
    """libxl pauses a domain before it destroys the domain."""
    assert decided(now=domain(ORIGINAL, **flags)) is Decision.REDO


@pytest.mark.parametrize("same_boot", [True, False])
@pytest.mark.parametrize("flags", [NEW, DYING])
def test_a_half_restored_domain_is_reverted_again(flags: dict[str, Any], same_boot: bool) -> None:
    assert decided(now=domain(OTHER, **flags), same_boot=same_boot) is Decision.REDO


@pytest.mark.parametrize("flags", [RUNS, PAUSED, NEW, SHUT_DOWN])
@pytest.mark.parametrize("informed", [True, False])
def test_the_remaining_steps_are_done_for_a_restored_domain(
    flags: dict[str, Any], informed: bool
) -> None:
    now = domain(RESTORED, **flags)
    assert decided(restored=True, informed=informed, now=now) is Decision.COMPLETE


@pytest.mark.parametrize("informed", [True, False])
def test_an_original_that_runs_was_not_touched(informed: bool) -> None:
    assert decided(informed=informed, now=domain(ORIGINAL)) is Decision.UNTOUCHED


@pytest.mark.parametrize(("restored", "informed"), list(itertools.product([True, False], repeat=2)))
def test_another_domain_that_runs_is_left_alone(restored: bool, informed: bool) -> None:
    found = decided(restored=restored, informed=informed, now=domain(OTHER))
    assert found is Decision.LEAVE


@pytest.mark.parametrize("restored", [True, False])
def test_a_domain_that_was_started_after_a_reboot_is_for_a_person(restored: bool) -> None:
    """Its domid says nothing: another boot has given it."""
    for domid in (ORIGINAL, RESTORED, OTHER):
        now = domain(domid)
        assert decided(restored=restored, now=now, same_boot=False) is Decision.ASK_STARTED


@pytest.mark.parametrize("now", [None, domain(OTHER, **PAUSED)])
def test_a_domain_that_was_back_and_ended_is_for_a_person(now: DomainInfo | None) -> None:
    assert decided(restored=True, informed=True, now=now) is Decision.ASK_ENDED
    assert decided(restored=True, now=None) is Decision.ASK_ENDED


@pytest.mark.parametrize("now", [None, domain(ORIGINAL, **DYING), domain(OTHER, **PAUSED)])
def test_a_failure_that_the_user_knows_of_is_for_a_person(now: DomainInfo | None) -> None:
    assert decided(informed=True, now=now) is Decision.ASK_FAILED


@pytest.mark.parametrize("now", [None, domain(ORIGINAL, **DYING), domain(OTHER, **NEW)])
def test_while_a_stranger_holds_the_name_nothing_is_reverted(now: DomainInfo | None) -> None:
    assert decided(now=now) is Decision.REDO
    assert decided(now=now, held=True) is Decision.ASK_HELD


def test_a_stranger_changes_nothing_where_nothing_is_done_again() -> None:
    assert decided(begun=False, held=True) is Decision.UNTOUCHED
    assert decided(restored=True, now=domain(RESTORED), held=True) is Decision.COMPLETE
    assert decided(informed=True, held=True) is Decision.ASK_FAILED


def test_nothing_that_may_have_worked_since_is_reverted_again() -> None:
    """Over all rows: once restored, or once the user was informed, there is no way to REDO."""
    domains = [None] + [
        domain(domid, **flags)
        for domid in (ORIGINAL, RESTORED, OTHER)
        for flags in (RUNS, PAUSED, NEW, DYING, SHUT_DOWN)
    ]
    for now, same_boot, restored, informed in itertools.product(
        domains, [True, False], [True, False], [True, False]
    ):
        found = decided(restored=restored, informed=informed, now=now, same_boot=same_boot)
        if restored or informed:
            assert found is not Decision.REDO
        if now and now.lives and now.has_run:
            assert found is not Decision.REDO
