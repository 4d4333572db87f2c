"""A host notices nothing, with libxl in its own process and in workers (unit: test_manners.py)."""

import json
from typing import Any

import pytest

from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import run_script

pytestmark = pytest.mark.usefixtures("tidy")


def host(lab: Lab, *words: str) -> dict[str, Any]:
    """What scripts/manners.py says."""
    done = run_script(lab.dom0, "manners.py", *words)
    assert done.rc == 0, done
    found: dict[str, Any] = json.loads(done.out)
    return found


@pytest.mark.soak
def test_libxl_in_a_hosts_own_process(lab: Lab) -> None:
    guests = [lab.guest("pv"), lab.guest("pvh")]
    before = [guest.assert_healthy() for guest in guests]
    found = host(lab, "low", "pv", "pvh")
    assert found["suspended"] == [True, True]
    assert found["restored"] == guests[0].domid()
    # Its own programs ended with their own statuses, and its own handler heard of each.
    assert found["wrong"] == []
    assert min(found["programs"]) > 5
    assert found["signals"] > 5
    assert found["child"] == 42
    assert found["domains"] == 4
    assert all(said.startswith("XenUnavailable: SIGCHLD is ignored") for said in found["refused"])
    assert len(found["refused"]) == 2
    for about in (["suspend", "pv"], ["suspend", "pvh"], ["restore", "pv"]):
        assert about in found["lines"]
    assert found["inherited"] == []
    assert found["changed"] == []
    after = [guest.assert_healthy() for guest in guests]
    assert [tick.boot for tick in after] == [tick.boot for tick in before]


@pytest.mark.soak
def test_operations_for_a_host_that_ignores_and_blocks_signals(lab: Lab) -> None:
    guest = lab.guest("pv")
    guest.assert_healthy()
    found = host(lab, "high", "pv")
    assert "was killed by signal 6" in found["aborted"]
    assert found["aborted"].startswith("OperationFailed: ")
    assert found["reverted"] == guest.domid()
    assert found["meanwhile"] == ["children", "descriptors"]
    assert found["inherited"] == []
    assert found["changed"] == []
    assert found["kept from QEMU"] == []
    guest.assert_healthy()
