"""A QEMU that answers late, and a disk's file that is replaced: no guest's disk goes wrong."""

import time

import pytest

from tests.lab.harness import external, storage
from tests.lab.harness.faults import CUT, Case, run_case
from tests.lab.harness.guests import Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.mixed import attach
from tests.lab.harness.snapshots import Before, create, pyxlsnap, unchanged

pytestmark = pytest.mark.soak

# As long as the limit of a QMP command, and some more.
STALL_S = 40
# As long as libxl waits for the QEMU of an HVM guest, and some more.
RESUME_STALL_S = 80


def qemu_pid(guest: Guest) -> str:
    path = f"/local/domain/{guest.domid()}/image/device-model-pid"
    return guest.dom0.run(["xenstore-read", path]).out.strip()


@pytest.mark.parametrize("kind", ["pvh", "hvm", "pv"])
def test_a_stalled_qemu_keeps_the_guest_suspended_until_it_answers(
    spent_lab: Lab, kind: str
) -> None:
    """Ctrl-C ends the command; the guest is resumed when QEMU has answered."""
    guest = spent_lab.guest(kind)
    pid, cfg = qemu_pid(guest), external.ask(guest, CUT)
    before = Before.of(guest)
    outcome = run_case(
        guest,
        Case(
            command=["pyxlsnap", "--json", "snapshot-create", kind, cfg],
            domain=kind,
            log=guest.log,
            point="after suspend",
            meanwhile=f"kill -STOP {pid}",
            who="SIGINT",
            later=f"sleep {STALL_S}; kill -CONT {pid}",
        ),
    )
    assert outcome.rc == 4, outcome
    assert outcome.error["left"] == [f"{kind} is suspended"]
    assert outcome.seconds is not None
    assert outcome.seconds > STALL_S
    end = time.monotonic() + 60
    while (done := pyxlsnap(guest.dom0, "snapshot-recover", kind)).rc:  # the worker still undoes
        assert time.monotonic() < end, done
    unchanged(guest, before)
    assert not guest.dom0.run(f"find {external.FROZEN} -name '*.{CUT}'").out
    tick = guest.assert_healthy()
    external.take(guest, "next")
    assert guest.assert_healthy().n > tick.n


def test_an_hvm_guest_is_resumed_when_its_qemu_answers(spent_lab: Lab) -> None:
    """libxl gives the resume up after a minute."""
    guest = spent_lab.guest("hvm")
    pid = qemu_pid(guest)
    outcome = run_case(
        guest,
        Case(
            command=["pyxlsnap", "--json", "snapshot-create", "hvm", "--name", CUT],
            domain="hvm",
            log=guest.log,
            point="after disk snapshots",
            meanwhile=f"kill -STOP {pid}; "
            f"(sleep {RESUME_STALL_S}; kill -CONT {pid}) < /dev/null > /dev/null 2>&1 &",
        ),
    )
    assert outcome.rc == 0, outcome
    assert "hvm stays suspended, waiting for QEMU to answer" in outcome.err
    assert pyxlsnap(guest.dom0, "snapshot-recover", "hvm").rc == 0
    tick = guest.assert_healthy()
    create(guest, "--name", "next")
    assert guest.assert_healthy().n > tick.n


def test_a_file_that_was_replaced_is_refused(spent_lab: Lab) -> None:
    """A qcow2 image that QEMU serves, and a raw file behind a loop device."""
    guest = spent_lab.guest("pvh")
    raw = storage.raw("pvh")
    attach(guest, {"xvdc": raw})
    for vdev, path in (("xvdb", guest.disks["xvdb"]), ("xvdc", raw)):
        before = Before.of(guest)
        guest.dom0.run(f"ln {path} {path}.old && cp {path} {path}.new && mv {path}.new {path}")
        done = pyxlsnap(guest.dom0, "snapshot-create", "pvh")
        assert done.rc == 3, done
        (line,) = done.err.splitlines()
        assert f"{vdev}: {path} is not the file that " in line
        guest.dom0.run(f"mv {path}.old {path}")
        unchanged(guest, before)
    create(guest, "--name", "right")
    guest.assert_healthy()
