"""Guests that their owner has paused: still paused afterwards, and paused again by a revert."""

import json
import time
from typing import Any

import pytest

from tests.lab.harness.external import take as take_external
from tests.lab.harness.guests import Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import (
    cannot_go_back,
    create,
    disk_snapshots,
    goes_back,
    revert,
    run_script,
)

pytestmark = pytest.mark.usefixtures("tidy")


def take_internal(guest: Guest, name: str, *words: str) -> dict[str, Any]:
    """A snapshot with everything left to the defaults."""
    return create(guest, "--name", name, *words)


def wait_quiet(guest: Guest) -> int:
    """The last counter of a guest that has been paused."""
    last = guest.last()
    time.sleep(1.5)
    while (now := guest.last()) != last:
        last = now
        time.sleep(1.5)
    return last.n


CELLS = [
    pytest.param("pv", [], False, id="pv-stopped-internal"),
    pytest.param("pvh", ["--live"], True, id="pvh-live-external"),
    pytest.param("hvm", [], False, id="hvm-stopped-internal"),
]


@pytest.mark.soak
def test_a_revert_that_ends_paused(lab: Lab) -> None:
    """It has run no instruction until it is unpaused."""
    guest = lab.guest("pvh")
    before = guest.assert_healthy()
    snapshot = take_internal(guest, "paused")
    later, mark = guest.wait_advance(8), guest.mark()
    assert revert(guest, snapshot["cfgfile"], "--paused")["state"] == "paused"
    assert guest.state() == "--p---"
    assert not [t for t in guest.ticks_since(mark) if t.n < later.n]
    guest.unpause()
    assert before.n - 1 <= goes_back(guest, mark, later).n <= later.n


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "words", "external"), CELLS)
def test_a_paused_guest(lab: Lab, kind: str, words: list[str], external: bool) -> None:
    guest = lab.guest(kind)
    guest.assert_healthy()
    guest.pause()
    before = wait_quiet(guest)
    take = take_external if external else take_internal
    snapshot = take(guest, "paused", *words)
    assert guest.state() == "--p---"
    assert snapshot["state"] == "paused"
    assert snapshot["seconds_unpaused"] > 0
    after = wait_quiet(guest)
    print(f"{kind}: let go for {snapshot['seconds_unpaused']:.3f} s, {after - before} ticks")
    assert after - before <= 3  # the tick that was overdue, and what fits into the moment
    if external:
        lab.spend()  # its disks stand on frozen files now
    else:
        assert disk_snapshots(guest) == {vdev: ["paused"] for vdev in guest.disks}

    guest.unpause()
    if cannot_go_back(guest, snapshot["cfgfile"]):
        return
    later, mark = guest.wait_advance(8), guest.mark()
    result = revert(guest, snapshot["cfgfile"])
    assert result["state"] == "paused"
    assert guest.state() == "--p---"
    assert not [t for t in guest.ticks_since(mark) if t.n < later.n]
    guest.unpause()
    assert before < goes_back(guest, mark, later).n <= after + 1

    later, mark = guest.wait_advance(8), guest.mark()
    assert revert(guest, snapshot["cfgfile"], "--running")["state"] == "running"
    assert before < goes_back(guest, mark, later).n <= after + 1


def test_an_aborted_suspend_leaves_no_request(lab: Lab) -> None:
    """Else the guest would suspend by itself when its owner unpauses it."""
    guest = lab.guest("pvh")
    guest.assert_healthy()
    guest.pause()
    wait_quiet(guest)
    done = run_script(lab.dom0, "request_withdrawn.py", guest.name)
    assert done.rc == 0, done
    found = json.loads(done.out)
    assert (found["stood"], found["resumed"], found["stands"]) == (True, False, False)
    assert found["seconds"] < 5
    assert guest.state() == "--p---"
    guest.unpause()
    guest.assert_healthy(8)
    assert guest.state()[3] == "-"  # not suspended
