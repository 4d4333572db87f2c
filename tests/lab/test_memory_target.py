"""Guests that hold more memory than their target: paused, and made smaller meanwhile."""

import pytest

from tests.lab.harness.guests import MEMORY_MIB, Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import create, goes_back, needs_restore, revert, run_script

pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("tidy")]

SMALLER_MIB = MEMORY_MIB - 16

# A paused guest runs for a moment, to answer the suspend request, and may give back some memory
# then. With --live its memory is in the file before that moment.
CELLS = [
    pytest.param("pvh", ["--live"], id="pvh-live"),
    pytest.param("pvh", [], id="pvh-stopped"),
    pytest.param("pv", [], id="pv-stopped"),
    pytest.param("hvm", ["--live"], id="hvm-live"),
]


def limit_kb(guest: Guest, node: str) -> int:
    """What the guest sees in xenstore: "target" or "static-max"."""
    path = f"/local/domain/{guest.domid()}/memory/{node}"
    return int(guest.dom0.run(["xenstore-read", path]).out)


def memory_mib(guest: Guest) -> int:
    """What it has in Xen now."""
    return int(guest.dom0.run(["xl", "list", guest.name]).out.splitlines()[-1].split()[-4])


def held_kb(guest: Guest, memory_file: str) -> int:
    done = run_script(guest.dom0, "held_memory.py", memory_file)
    assert done.rc == 0, done
    return int(done.out)


@pytest.mark.parametrize(("kind", "words"), CELLS)
def test_a_guest_that_holds_more_than_its_target(lab: Lab, kind: str, words: list[str]) -> None:
    needs_restore(kind)
    guest = lab.guest(kind)
    guest.assert_healthy()
    guest.pause()
    maximum = limit_kb(guest, "static-max")
    guest.dom0.run(["xl", "mem-set", guest.name, str(SMALLER_MIB)])
    target = limit_kb(guest, "target")
    before = guest.last()
    snapshot = create(guest, "--name", "held", *words)
    held = held_kb(guest, snapshot["memory_path"])
    print(f"{kind}: {held} KiB in the file, the target is {target} KiB")
    if words:
        assert held > (SMALLER_MIB + 1) * 1024
    after = guest.last()

    guest.unpause()
    guest.assert_healthy()
    later, mark = guest.wait_advance(8), guest.mark()
    result = revert(guest, snapshot["cfgfile"])
    assert result["state"] == "paused"
    assert not [warning for warning in result["warnings"] if "target" in warning]
    # (An HVM guest's target is 1 MiB lower after each restore, also that of `xl restore`.)
    assert 0 <= target - limit_kb(guest, "target") <= (1024 if kind == "hvm" else 0)
    assert limit_kb(guest, "static-max") == maximum
    assert abs(memory_mib(guest) * 1024 - held) <= 1024
    guest.unpause()
    assert before.n <= goes_back(guest, mark, later).n <= after.n + 3

    guest.dom0.run(["xl", "mem-set", guest.name, str(MEMORY_MIB)])
    guest.assert_healthy()
