"""The memory file as the stream writer makes it, on every kind of guest.

``snapshot-revert`` and ``xl restore`` take it, and Xen's own checker of streams finds no fault.
"""

import json
from typing import Any

import pytest

from tests.lab.harness.guests import Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import (
    cannot_go_back,
    create,
    forget,
    goes_back,
    revert,
    run_script,
)

MIB = 1 << 20
#: the first pfn above 4 GiB
HIGH = 1 << 20
#: kinds of guests that are in no other test, with lines of their configuration
SHAPES = {
    "two": ("pvh", "vcpus = 2"),
    # Memory that Xen gives when the guest first touches it: the guest's addresses go beyond what
    # the lab's machine has.
    "high": ("pvh", "memory = 512\nmaxmem = 4608"),
}
CELLS = [
    *((kind, live) for kind in ("pvh", "hvm", *SHAPES) for live in (False, True)),
    ("pv", False),  # Debian's Xen cannot log the dirty pages of a PV guest
]

pytestmark = [pytest.mark.usefixtures("tidy"), pytest.mark.soak]


class Shaped(Guest):
    """A guest of a kind, with other lines in its configuration (xl takes the last of a key)."""

    def __init__(self, lab: Lab, name: str) -> None:
        kind, self._lines = SHAPES[name]
        super().__init__(lab.dom0, name, kind)

    def config_text(self) -> str:
        return f"{super().config_text()}\n{self._lines}\n"


def a_guest(lab: Lab, name: str) -> Guest:
    if name not in SHAPES:
        return lab.guest(name)
    guest = Shaped(lab, name)
    if not guest.exists():
        guest.create()
        guest.wait_first()
    return guest


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "live"), CELLS)
def test_it_is_restored(lab: Lab, name: str, live: bool) -> None:
    guest = a_guest(lab, name)
    guest.assert_healthy()
    snapshot = create(guest, "--name", "taken", *(["--live"] if live else []))
    check(guest, snapshot["memory_path"])
    if cannot_go_back(guest, snapshot["cfgfile"]):
        return
    later, mark = guest.wait_advance(10), guest.mark()
    revert(guest, snapshot["cfgfile"])
    goes_back(guest, mark, later)

    later, mark = guest.wait_advance(10), guest.mark()
    lab.dom0.run(["xl", "destroy", name])
    for path in guest.disks.values():
        lab.dom0.run(["qemu-img", "snapshot", "-a", "taken", path])
    lab.dom0.run(["xl", "restore", snapshot["memory_path"]], timeout=240)
    goes_back(guest, mark, later)
    forget(guest)
    if name in SHAPES:
        guest.destroy()


def check(guest: Guest, memory_file: str) -> None:
    """Ask Xen's checker, and look where the pages are."""
    version = "$(xl info | sed -n 's/^xen_version *: \\([0-9]*\\.[0-9]*\\).*/\\1/p')"
    here = f"cd /usr/lib/xen-{version}"
    verify = f"PYTHONPATH=lib/python python3 bin/verify-stream-v2 -f xl -i {memory_file}"
    done = guest.dom0.run(f"{here} && {verify}", check=False, timeout=600)
    assert done.rc == 0, done
    found = pages(guest, memory_file)
    print(f"{guest.name}: {found}")
    assert found["aligned"]
    assert found["first"] % MIB == 0
    if guest.name != "pv":
        assert found["split"] == 0
    if guest.name == "high":
        assert found["highest"] >= HIGH


def pages(guest: Guest, memory_file: str) -> dict[str, Any]:
    done = run_script(guest.dom0, "pages.py", memory_file)
    assert done.rc == 0, done
    found: dict[str, Any] = json.loads(done.out)
    return found


@pytest.mark.parametrize("kind", ["pv", "pvh", "hvm"])
def test_it_is_no_larger_than_that_of_xl(lab: Lab, kind: str) -> None:
    """A live one is as large as a stopped one; on the disk, each takes what is not zero.

    Besides its pages a file has headers, lists of the pages, and the state of QEMU.
    """
    guest = lab.guest(kind)
    found: dict[bool, int] = {}
    lab.dom0.run("mkdir -p /tmp/snap")
    lab.dom0.run(["xl", "save", "-c", kind, "/tmp/snap/by-xl"], timeout=240)
    guest.wait_advance()
    size, _ = sizes(lab, "/tmp/snap/by-xl")
    for live in (False, True) if kind != "pv" else (False,):
        snapshot = create(guest, "--name", "sized", *(["--live"] if live else []))
        ours, on_disk = sizes(lab, snapshot["memory_path"])
        full = pages(guest, snapshot["memory_path"])["not_zero"]
        print(f"{kind} live={live}: {ours} bytes, {on_disk} on disk, {full} not zero; xl: {size}")
        assert ours <= size * 1.002 + MIB
        assert on_disk <= full * 1.02 + MIB
        found[live] = ours
        lab.dom0.run(["rm", snapshot["memory_path"], snapshot["cfgfile"]])
        forget(guest, "sized")
    assert max(found.values()) <= min(found.values()) * 1.001


def sizes(lab: Lab, path: str) -> tuple[int, int]:
    """Size of a file, and the space that it takes on the disk, in bytes."""
    size, blocks = lab.dom0.run(["stat", "-c", "%s %b", path]).out.split()
    return int(size), int(blocks) * 512
