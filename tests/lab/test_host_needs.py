"""Reverts on a host that has changed since the snapshot: refused or done, and never half done."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.harness.dom0 import Dom0
from tests.lab.harness.guests import Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.reverts import check_back, goes_on, take
from tests.lab.harness.snapshots import (
    Before,
    needs_restore,
    pyxlsnap,
    revert,
    run_script,
    unchanged,
)

pytestmark = pytest.mark.usefixtures("tidy")

# What xl does while it starts a domain.
XL = """
import fcntl, sys
file = open("/run/lock/xl", "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def refused(guest: Guest, code: int, says: str, *words: str) -> None:
    """A revert that must be refused, with nothing touched."""
    before = Before.of(guest)
    done = pyxlsnap(guest.dom0, "snapshot-revert", guest.name, *words)
    assert done.rc == code, done
    assert says in done.err
    unchanged(guest, before)


@contextmanager
def away(dom0: Dom0, path: str) -> Iterator[None]:
    """A file that was moved away."""
    dom0.run(["mv", path, f"{path}.away"])
    try:
        yield
    finally:
        dom0.run(["mv", f"{path}.away", path])


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["pvh", "pv"])
def test_a_kernel_that_only_a_reboot_needs(lab: Lab, kind: str) -> None:
    guest = lab.guest(kind)
    taken = take(guest, "--name", "kernel")
    mark = goes_on(guest, taken)
    with away(lab.dom0, "/lab/vmlinux"):
        warnings = revert(guest, taken.cfgfile)["warnings"]
    assert "/lab/vmlinux (kernel)" in warnings[0]
    check_back(guest, taken, mark)


@pytest.mark.soak
def test_what_the_qemu_of_an_hvm_guest_opens(lab: Lab) -> None:
    """The kernel; and the version of QEMU, which is in the memory file."""
    needs_restore("hvm")
    guest = lab.guest("hvm")
    taken = take(guest, "--name", "qemu")
    mark = goes_on(guest, taken)
    with away(lab.dom0, "/lab/vmlinuz"):
        refused(guest, 3, "/lab/vmlinuz, which does not exist", taken.cfgfile, "--force")
    assert revert(guest, taken.cfgfile)["warnings"] == []
    check_back(guest, taken, mark)
    mark = goes_on(guest, taken)
    assert run_script(lab.dom0, "other_qemu.py", taken.memory_path).rc == 0
    refused(guest, 5, "this host has the older QEMU", taken.cfgfile)
    assert "older QEMU" in revert(guest, taken.cfgfile, "--force")["warnings"][0]
    check_back(guest, taken, mark)


@pytest.mark.soak
def test_a_device_model_that_was_removed(lab: Lab) -> None:
    """A PVH guest's disks are served by it, too."""
    guest = lab.guest("pvh")
    taken = take(guest, "--name", "model")
    path = run_script(lab.dom0, "device_model.py").out.strip()
    assert path.startswith("/"), path
    with away(lab.dom0, path):
        refused(guest, 3, f"{path}, which libxl would start, is missing", taken.cfgfile, "--force")
    mark = goes_on(guest, taken)
    revert(guest, taken.cfgfile)
    check_back(guest, taken, mark)


@pytest.mark.soak
def test_xl_starts_a_domain_for_more_than_a_minute(spent_lab: Lab) -> None:
    guest, dom0 = spent_lab.guest("pvh"), spent_lab.dom0
    dom0.write("/etc/xen/xl.conf", 'autoballoon="on"\n')
    taken = take(guest, "--name", "lock")
    with dom0.start(["python3", "-c", XL]) as xl:
        assert xl.readline() == "held\n"
        refused(guest, 3, "has held xl's lock /run/lock/xl for 60 s", taken.cfgfile)
        xl.end_input()
    mark = goes_on(guest, taken)
    revert(guest, taken.cfgfile)
    check_back(guest, taken, mark)
