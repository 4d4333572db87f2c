"""Disks and cells that cannot be: refused in one line, before anything is touched."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.harness import storage
from tests.lab.harness.guests import Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.mixed import AROUND, attach, more, words, write_cfg
from tests.lab.harness.snapshots import Before, pyxlsnap, unchanged
from tests.lab.harness.support import REFUSED, record

GROUP, POOL = storage.GROUP, storage.POOL


def around(guest: Guest) -> str:
    """What there is of files and volumes, whatever it is called."""
    listing = f"find {AROUND} -printf '%p %m\\n'; lvs -a --noheadings -o lv_name,lv_tags {GROUP}"
    return guest.dom0.run(listing).out


def assert_refused(guest: Guest, words: list[str], *says: str) -> str:
    """Refused in one line that names the culprit, and nothing has come or gone; the line."""
    before, files = Before.of(guest), around(guest)
    done = pyxlsnap(guest.dom0, "snapshot-create", guest.name, *words)
    assert done.rc == 3, done
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert all(word in line for word in says), line
    unchanged(guest, before)
    assert around(guest) == files
    return line


@contextmanager
def full_group(guest: Guest) -> Iterator[None]:
    guest.dom0.run(f"lvcreate -q -y -Wn -l 100%FREE -n filler {GROUP}")
    yield
    guest.dom0.run(f"lvremove -q -f {GROUP}/filler")


@contextmanager
def full_pool(guest: Guest) -> Iterator[None]:
    """Nearly: what the guest itself writes to must still have room."""
    guest.dom0.run(f"lvcreate -q -V 64M -T {GROUP}/{POOL} -n filler")
    report = "lvs --noheadings --nosuffix --units k -o lv_size,data_percent"
    size_kib, percent = map(float, guest.dom0.run(f"{report} {GROUP}/{POOL}").out.split())
    count = int(size_kib * (97 - percent) / 100 / 64)
    guest.dom0.run(f"dd if=/dev/zero of=/dev/{GROUP}/filler bs=64k count={count} oflag=direct")
    yield
    guest.dom0.run(f"lvremove -q -f {GROUP}/filler")


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_what_cannot_be_is_refused(spent_lab: Lab) -> None:
    guest = spent_lab.guest("pv")
    tick = attach(guest, more(guest, external=True))
    for cell in REFUSED:
        line = assert_refused(guest, words(guest, cell, "no"), "shadow paging")
        record(spent_lab.dom0, cell, len(tick.disks), refused=line)

    def named(*wanted: str) -> list[str]:
        return [write_cfg(guest, list(wanted))]

    plain, raw = storage.plain("pv"), "/lab/disk/big.img"
    guest.dom0.run(f"fallocate -l 110M {raw}")  # what takes no time is copied
    assert_refused(guest, [], "xvdf", plain, "cannot take snapshots")
    assert_refused(guest, named(",,xvda", ",,xvdc"), "xvdc", "cannot hold a snapshot inside")
    attach(guest, {"xvdg": raw})
    assert_refused(guest, [], "xvdg", raw, "cannot share blocks")
    with full_group(guest):
        assert_refused(guest, named(",,xvda", ",,xvde"), "xvde", f"group {GROUP}", "MiB free")
    with full_pool(guest):
        assert_refused(guest, named(",,xvda", ",,xvdd"), "xvdd", f"{GROUP}/{POOL}", "data", "full")
