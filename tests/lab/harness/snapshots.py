"""What the lab tests do with the package under test, in the dom0."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import host_state

from . import image
from .dom0 import Completed, Dom0
from .guests import KINDS, Guest, Kind, Tick

SNAPSHOTS = "/var/lib/xen/snapshots"
SCRIPTS = Path(__file__).parents[1] / "scripts"
SLOW = 480.0
NOT_LOADED = "does not load a saved guest from libxl"


def pyxlsnap(dom0: Dom0, *words: str, timeout: float = SLOW) -> Completed:
    """Run the command line; its exit status is the caller's to judge."""
    return dom0.run(["pyxlsnap", *words], check=False, timeout=timeout)


def create(guest: Guest, *words: str) -> dict[str, Any]:
    """``snapshot-create`` of a guest, which must work; its result."""
    done = pyxlsnap(guest.dom0, "--json", "snapshot-create", guest.name, *words)
    assert done.rc == 0, done
    result: dict[str, Any] = json.loads(done.out)["result"]
    return result


def revert(guest: Guest, cfgfile: str, *words: str) -> dict[str, Any]:
    """``snapshot-revert`` of a guest, which must work; its result."""
    done = pyxlsnap(guest.dom0, "--json", "snapshot-revert", guest.name, cfgfile, *words)
    assert done.rc == 0, done
    result: dict[str, Any] = json.loads(done.out)["result"]
    return result


def restores(kind: Kind) -> bool:
    """Whether the release can restore a guest of that kind."""
    return kind.type != "hvm" or image.wanted().loads_hvm


def needs_restore(name: str) -> None:
    """Skip a test of a guest, by its kind's name, that the release cannot restore."""
    if not restores(KINDS[name]):
        pytest.skip("this release cannot restore a guest of this kind")


def cannot_go_back(guest: Guest, cfgfile: str) -> bool:
    """Whether the release cannot restore such a guest.

    Then a create says so, and a revert is refused before the guest has missed a tick.
    """
    if restores(guest.kind):
        return False
    before = Before.of(guest)
    done = pyxlsnap(guest.dom0, "snapshot-revert", guest.name, cfgfile)
    assert done.rc == 5, done
    assert NOT_LOADED in done.err
    unchanged(guest, before)
    return True


def run_script(dom0: Dom0, script: str, *words: str, timeout: float = SLOW) -> Completed:
    """Run one of scripts/ in the dom0; it may import tests.host_state."""
    dom0.write("/tmp/tests/host_state.py", Path(host_state.__file__).read_bytes())
    dom0.write(f"/tmp/{script}", (SCRIPTS / script).read_bytes())
    return dom0.run(["python3", f"/tmp/{script}", *words], check=False, timeout=timeout)


def disk_snapshots(guest: Guest) -> dict[str, list[str]]:
    """The names of the snapshots in each of a guest's images, as its QEMU knows them."""
    nodes = _nodes(guest)
    return {
        vdev: [s["name"] for s in nodes[path]["image"].get("snapshots", [])]
        for vdev, path in guest.disks.items()
    }


def _nodes(guest: Guest) -> dict[str, dict[str, Any]]:
    """QEMU's qcow2 nodes by their file (which has a node of its own, too)."""
    nodes = guest.qmp("query-named-block-nodes", flat=True)
    return {node["file"]: node for node in nodes if node["drv"] == "qcow2"}


def goes_back(guest: Guest, mark: int, was: Tick) -> Tick:
    """The first tick of a guest that has gone back since ``mark``, when it was at tick ``was``."""
    guest.assert_healthy()
    ticks = guest.ticks_since(mark)
    back = [tick for tick in ticks if tick.n < was.n]
    assert back, f"{guest.name} was at {was.n} and has not gone back: {ticks[:20]}"
    return back[0]


def check_reverted(guest: Guest, mark: int, later: Tick, before: Tick, after: Tick) -> None:
    """Memory and all disks are those of one moment, and that of the snapshot."""
    first = goes_back(guest, mark, later)
    assert before.n < first.n <= after.n + 1
    assert first.boot == before.boot
    assert first.disks.keys() == before.disks.keys()
    assert all(n == first.n - 1 for n, _ in first.disks.values())


def check_images(guest: Guest) -> None:
    """``qemu-img check`` of a guest's images; the guest must be off."""
    for path in guest.disks.values():
        done = guest.dom0.run(["qemu-img", "check", path], check=False)
        assert done.rc == 0, done


@dataclass(frozen=True, slots=True)
class Before:
    """Everything about a guest and the files of snapshots that a refusal must leave as it is."""

    domid: int
    disk_snapshots: dict[str, list[str]]
    files: str

    @classmethod
    def of(cls, guest: Guest) -> "Before":
        listing = guest.dom0.run(
            f"find {SNAPSHOTS} /var/lib/pyxlsnap /tmp/snap -mindepth 1 -printf '%p %s %m\\n' "
            "2>/dev/null",
            check=False,
        )
        return cls(guest.domid(), disk_snapshots(guest), listing.out)


def unchanged(guest: Guest, before: Before) -> Tick:
    """The guest is the same domain, it runs and is well, and nothing has come or gone."""
    now = Before.of(guest)
    assert now.domid == before.domid
    assert now.disk_snapshots == before.disk_snapshots
    assert now.files.splitlines() == before.files.splitlines()
    return guest.assert_healthy()


def forget(guest: Guest, name: str = "") -> None:
    """Remove a guest's snapshots, or the one of that name: the next test begins without."""
    delete = "blockdev-snapshot-delete-internal-sync"
    guest.qmp_all(
        [
            (delete, {"device": node["node-name"], "name": made["name"]})
            for node in _nodes(guest).values()
            for made in node["image"].get("snapshots", [])
            if name in ("", made["name"])
        ]
    )
    # (There is no directory if all were refused.)
    files = f"mkdir -p {SNAPSHOTS} && rm -f {SNAPSHOTS}/*/{name}.*"
    one = f"{files} && find {SNAPSHOTS} -mindepth 1 -type d -empty -delete"
    guest.dom0.run(one if name else f"rm -rf {SNAPSHOTS} /tmp/snap")
