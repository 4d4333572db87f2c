"""What a recovery does with a clone that was killed: the table of ``decide``."""

from typing import Any

import pytest

from pyxlsnap.model import DomainInfo
from pyxlsnap.recovery.finish_clone import Decision, decide
from tests.unit.support.entries import clone_entry
from tests.unit.support.values import UUID

OLD, RESTORED, OTHER = 7, 8, 9
RUNS: dict[str, Any] = {}
NEW = {"paused": True, "has_run": False}
DYING = {"dying": True}


def domain(domid: int, **flags: Any) -> DomainInfo:
    usual = {"paused": False, "shutdown": False, "shutdown_reason": "", "dying": False}
    return DomainInfo(**{"domid": domid, "uuid": UUID, "memory_kb": 1, **usual, **flags})


def decided(now: DomainInfo | None = None, *, same_boot: bool = True, **entry: Any) -> Decision:
    return decide(clone_entry(domid=OLD, **entry), now, same_boot=same_boot)


@pytest.mark.parametrize("now", [None, domain(OLD), domain(OTHER, **NEW)])
def test_a_delete_is_finished(now: DomainInfo | None) -> None:
    assert decided(now, deleting=True) is Decision.DELETE
    assert decided(now, deleting=True, restored_domid=RESTORED) is Decision.DELETE


@pytest.mark.parametrize("flags", [RUNS, NEW, DYING])
@pytest.mark.parametrize("domid", [RESTORED, OTHER])
@pytest.mark.parametrize("replaces", [True, False])
def test_a_restored_clone_is_completed(flags: dict[str, Any], domid: int, replaces: bool) -> None:
    """It may have rebooted since, and has another domid then."""
    now = domain(domid, **flags)
    found = decided(now, replaces=replaces, restored_domid=RESTORED, replace_begun=replaces)
    assert found is Decision.COMPLETE


@pytest.mark.parametrize("begun", [True, False])
def test_a_clone_without_a_domain_is_taken_back(begun: bool) -> None:
    for replaces in (True, False):
        assert decided(replaces=replaces, replace_begun=begun) is Decision.TAKE_BACK


@pytest.mark.parametrize("replaces", [True, False])
def test_a_restored_clone_that_is_off_is_kept(replaces: bool) -> None:
    """It may have run, and have written to its disks."""
    entry: dict[str, Any] = {
        "replaces": replaces,
        "replace_begun": replaces,
        "restored_domid": RESTORED,
    }
    assert decided(**entry) is Decision.KEEP
    for now in (None, domain(OTHER), domain(OTHER, **NEW), domain(OTHER, **DYING)):
        assert decided(now, same_boot=False, **entry) is Decision.KEEP


@pytest.mark.parametrize("replaces", [True, False])
def test_an_undo_that_has_begun_is_finished(replaces: bool) -> None:
    entry: dict[str, Any] = {
        "replaces": replaces,
        "replace_begun": replaces,
        "restored_domid": RESTORED,
        "undo_begun": True,
    }
    assert decided(**entry) is Decision.TAKE_BACK
    for flags in (RUNS, NEW, DYING):
        assert decided(domain(RESTORED, **flags), **entry) is Decision.DESTROY
    assert decided(domain(OTHER), **entry) is Decision.ASK
    assert decided(domain(RESTORED), same_boot=False, **entry) is Decision.ASK


@pytest.mark.parametrize("same_boot", [True, False])
def test_a_clone_that_was_not_yet_replaced_goes_on(same_boot: bool) -> None:
    assert decided(domain(OLD), replaces=True, same_boot=same_boot) is Decision.TAKE_BACK


@pytest.mark.parametrize(
    "now", [domain(OLD), domain(OLD, **DYING), domain(OTHER, **DYING), domain(OTHER, **NEW)]
)
def test_a_domain_on_the_way_from_destroy_to_restore_is_destroyed(now: DomainInfo) -> None:
    assert decided(now, replaces=True, replace_begun=True) is Decision.DESTROY


@pytest.mark.parametrize("flags", [NEW, DYING])
def test_what_a_restore_has_left_is_destroyed(flags: dict[str, Any]) -> None:
    assert decided(domain(OTHER, **flags)) is Decision.DESTROY


def test_a_domain_that_runs_is_left_to_a_person() -> None:
    assert decided(domain(OTHER)) is Decision.ASK
    assert decided(domain(OTHER), replaces=True, replace_begun=True) is Decision.ASK
    after_boot = decided(domain(OLD), replaces=True, replace_begun=True, same_boot=False)
    assert after_boot is Decision.ASK
