"""The matrix: disks of every kind at once, on every kind of guest.

The guests compare what they keep in memory and on every disk all the time, read past their cache
(see files/guest.c). Each round leaves a record, of which the README's table is made (support.py).
"""

from typing import Any

import pytest

from tests.lab.harness import storage
from tests.lab.harness.dom0 import Dom0
from tests.lab.harness.lab import Lab
from tests.lab.harness.mixed import AROUND, attach, generation, more, quicken_hotplug, words
from tests.lab.harness.snapshots import (
    cannot_go_back,
    check_images,
    check_reverted,
    create,
    disk_snapshots,
    revert,
)
from tests.lab.harness.support import MATRIX, Cell, record

# The disks of this one come and go by Xen's own script, which is slow.
XENS_OWN = Cell("pv", live=False, external=False)


def users(dom0: Dom0, path: str) -> str:
    """Who has a disk in use, as a revert finds out before it writes into it."""
    ask = "import pathlib, sys; from pyxlsnap.disks.in_use import users"
    script = f"{ask}; print(*users(pathlib.Path(sys.argv[1])))"
    return dom0.run(["python3", "-c", script, path]).out.strip()


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cell", MATRIX, ids=str)
def test_matrix(spent_lab: Lab, cell: Cell) -> None:
    if cell != XENS_OWN:
        quicken_hotplug(spent_lab.dom0)
    made, refused = play(spent_lab, cell)
    disks = sum(artefact["kind"] == "disk snapshot" for artefact in made["artefacts"])
    record(spent_lab.dom0, cell, disks, made["seconds_suspended"], refused)


def play(lab: Lab, cell: Cell) -> tuple[dict[str, Any], str]:
    """A snapshot, and back to it, twice; what the snapshot said of itself, and why not back."""
    guest = lab.guest(cell.guest)
    before, was = attach(guest, more(guest, external=cell.external)), generation(guest)
    assert bool(was) == (cell.guest == "hvm")
    if cell.external:  # blkback is no process, and opens it without a loop device of its own
        assert users(lab.dom0, storage.plain(cell.guest)) == f"vbd-{guest.domid()}-51792"
    made = create(guest, *words(guest, cell, "first"))
    after = guest.assert_healthy()
    if not cell.external:
        assert disk_snapshots(guest) == {vdev: ["first"] for vdev in guest.disks}
    assert_space_is_told(made)
    if cannot_go_back(guest, str(made["cfgfile"])):
        return made, "the host's QEMU does not load a saved HVM guest"
    for _ in range(2):  # what a revert needs it does not use up
        later, mark = guest.wait_advance(6), guest.mark()
        result = revert(guest, str(made["cfgfile"]))
        assert sorted(result["disks"]) == sorted(before.disks)
        check_reverted(guest, mark, later, before, after)
        if was:
            assert generation(guest) != was
    assert "pre-revert" not in guest.dom0.run(f"ls {AROUND}; lvs -a {storage.GROUP}").out
    guest.destroy()
    if cell.external:
        assert users(lab.dom0, storage.plain(cell.guest)) == ""
    check_images(guest)
    return made, ""


def assert_space_is_told(made: dict[str, Any]) -> None:
    told = [artefact["where"] for artefact in made["artefacts"] if "MiB" in artefact["where"]]
    assert [where for where in told if "-thin" in where or "-d " in where]
    assert [where for where in told if "-thick" in where or "-e " in where]
