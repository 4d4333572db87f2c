"""Several guests at once, from one process: each is right, and none waits for another's window."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import check_reverted, needs_restore, run_script

pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("tidy")]


def several(lab: Lab, *words: str) -> dict[str, Any]:
    """What scripts/several.py says."""
    done = run_script(lab.dom0, "several.py", *words)
    assert done.rc == 0, done
    found: dict[str, Any] = json.loads(done.out)
    return found


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("names", [("pv", "pvh"), ("pv", "pvh", "hvm")], ids=" ".join)
def test_snapshots_and_reverts_at_once(
    lab: Lab, names: tuple[str, ...], figure: Callable[[str], None]
) -> None:
    for name in names:
        needs_restore(name)
    guests = [lab.guest(name) for name in names]
    before = [guest.assert_healthy() for guest in guests]
    made = several(lab, "create", *names)
    after = [guest.assert_healthy() for guest in guests]
    held, *windows = (made[name]["seconds_suspended"] for name in names)
    # The first one stood still until the others were done, and they did not wait for it.
    assert held > made["seconds"] > max(windows)
    lines = (f"{name} {window:.2f} s" for name, window in zip(names[1:], windows, strict=True))
    figure(f"several at once: {names[0]} was held suspended for {held:.0f} s, {', '.join(lines)}")
    later = [(guest.wait_advance(6), guest.mark()) for guest in guests]
    several(lab, "revert", *(f"{name}={made[name]['cfgfile']}" for name in names))
    for guest, was, then, (last, mark) in zip(guests, before, after, later, strict=True):
        check_reverted(guest, mark, last, was, then)
