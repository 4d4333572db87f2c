"""The lock of a domain belongs to open files, not to processes; the journal is whole or absent."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyxlsnap.errors import AlreadyExists, Busy, Refused
from pyxlsnap.journal import Entry, Journal
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.model import Disk, DiskRequest
from tests.unit.support.waiting import open_descriptors

UUID = "8a1f0c3e-0000-4000-8000-00000000c0de"
TRY = """
import sys
from pathlib import Path
from pyxlsnap.errors import Busy
from pyxlsnap.linux.locks import DomainLock
try:
    DomainLock(sys.argv[1], domain="vm1", directory=Path(sys.argv[2]))
except Busy:
    sys.exit(7)
"""
HOLD = "import sys; print('ready', flush=True); sys.stdin.read()"


def lock(directory: Path) -> DomainLock:
    return DomainLock(UUID, domain="vm1", directory=directory)


def free_for_another_process(directory: Path) -> bool:
    run = subprocess.run([sys.executable, "-c", TRY, UUID, str(directory)])
    assert run.returncode in (0, 7)
    return run.returncode == 0


class TestLock:
    def test_excludes_another_process(self, tmp_path: Path) -> None:
        held = lock(tmp_path)
        assert not free_for_another_process(tmp_path)
        held.release()
        assert free_for_another_process(tmp_path)

    def test_excludes_another_open_of_the_same_process(self, tmp_path: Path) -> None:
        held = lock(tmp_path)
        with pytest.raises(Busy, match="another snapshot operation on vm1") as caught:
            lock(tmp_path)
        assert (caught.value.domain, caught.value.exit_code) == ("vm1", 3)
        held.release()
        lock(tmp_path).release()

    def test_a_refusal_does_not_let_the_lock_fall(self, tmp_path: Path) -> None:
        """As closing any descriptor of the file would, with locks of the other kind."""
        held = lock(tmp_path)
        with pytest.raises(Busy):
            lock(tmp_path)
        with pytest.raises(Busy):
            lock(tmp_path)
        held.release()

    def test_a_refusal_leaves_no_descriptor(self, tmp_path: Path) -> None:
        held = lock(tmp_path)
        before = open_descriptors()
        with pytest.raises(Busy):
            lock(tmp_path)
        assert open_descriptors() == before
        held.release()

    def test_is_shared_by_inheriting_and_falls_when_both_are_gone(self, tmp_path: Path) -> None:
        held = lock(tmp_path)
        child = subprocess.Popen(
            [sys.executable, "-c", HOLD],
            pass_fds=[held.fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with child:
            assert child.stdout
            assert child.stdout.readline() == b"ready\n"
            os.close(held.fd)  # as if we had died
            with pytest.raises(Busy):
                lock(tmp_path)
        assert child.returncode == 0
        lock(tmp_path).release()

    def test_a_release_is_not_put_off_by_a_child_that_has_a_copy(self, tmp_path: Path) -> None:
        """A daemon that forks without exec while an operation is under way makes such copies."""
        held = lock(tmp_path)
        copy = os.dup(held.fd)
        held.release()
        lock(tmp_path).release()
        os.close(copy)

    def test_is_not_inherited_unasked(self, tmp_path: Path) -> None:
        held = lock(tmp_path)
        assert not os.get_inheritable(held.fd)
        held.release()

    def test_release_is_idempotent(self, tmp_path: Path) -> None:
        held = lock(tmp_path)
        held.release()
        held.release()
        assert held.fd == -1

    def test_different_domains_do_not_exclude_each_other(self, tmp_path: Path) -> None:
        held = lock(tmp_path)
        other = DomainLock(UUID.replace("c0de", "beef"), domain="vm2", directory=tmp_path)
        other.release()
        held.release()

    def test_makes_its_directory_private(self, tmp_path: Path) -> None:
        lock(tmp_path / "a" / "b").release()
        assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700

    def test_a_link_in_its_place_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").touch()
        (tmp_path / f"{UUID}.lock").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(Refused, match="cannot open the lock"):
            lock(tmp_path)


_TEXT = st.text(st.characters(exclude_characters="\0"), max_size=30)
_ENTRIES = st.builds(
    Entry,
    operation=st.sampled_from(["create", "revert"]),
    uuid=st.just(UUID),
    domid=st.integers(-1, 32767),
    domain=_TEXT,
    name=_TEXT,
    temporary=st.lists(_TEXT, max_size=3).map(tuple),
    directories=st.lists(_TEXT, max_size=3).map(tuple),
    memory_path=_TEXT,
    cfgfile=_TEXT,
    disks=st.just((DiskRequest("a"), DiskRequest("b", "/p", "qcow2"))),
    devices=st.tuples(*[st.builds(Disk, _TEXT, _TEXT, _TEXT)] * 2),
    disk_state=st.dictionaries(_TEXT, _TEXT, max_size=3),
    started=st.floats(0, 1e11),
)
ENTRY = Entry(
    operation="create",
    uuid=UUID,
    domid=7,
    domain="vm1",
    name="snap",
    temporary=("/t",),
    disks=(DiskRequest("xvda"),),
    devices=(Disk("xvda", "/d", "qcow2"),),
    disk_state={"xvda overlay": "/o"},
    started=1.5,
)


class TestJournal:
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
    @given(entry=_ENTRIES)
    def test_what_is_written_is_read(self, tmp_path: Path, entry: Entry) -> None:
        journal = Journal(UUID, directory=tmp_path)
        journal.write(entry)
        assert Journal(UUID, directory=tmp_path).read() == entry
        journal.clear()
        assert journal.read() is None
        assert not list(tmp_path.iterdir())

    def test_is_private(self, tmp_path: Path) -> None:
        journal = Journal(UUID, directory=tmp_path / "j")
        journal.write(ENTRY)
        assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(journal.path.parent.stat().st_mode) == 0o700

    def test_one_that_is_there_is_not_overwritten(self, tmp_path: Path) -> None:
        journal = Journal(UUID, directory=tmp_path)
        journal.write(ENTRY)
        with pytest.raises(AlreadyExists):
            journal.write(Entry("revert", UUID, 8, "vm1", "other"))
        assert journal.read() == ENTRY
        assert list(tmp_path.iterdir()) == [journal.path]

    def test_clearing_where_there_is_none_is_fine(self, tmp_path: Path) -> None:
        Journal(UUID, directory=tmp_path).clear()
        Journal(UUID, directory=tmp_path / "nonexistent").clear()

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"{",
            b"\xff",
            b"5",
            b"null",
            b"[]",
            b'"x"',
            b"{}",
            b"[" * 100_000,
            b'{"disks": 5, "devices": [], "disk_state": {}, "temporary": [], "directories": []}',
            b'{"disks": [5], "devices": [], "disk_state": {}, "temporary": [], "directories": []}',
            b'{"disks": [], "devices": [], "disk_state": {}, "temporary": [], "directories": []}',
            json.dumps(
                {
                    "disks": [],
                    "devices": [],
                    "disk_state": {},
                    "temporary": [],
                    "directories": [],
                    "unknown": 1,
                }
            ).encode(),
        ],
    )
    def test_damage_is_refused_and_kept(self, tmp_path: Path, data: bytes) -> None:
        journal = Journal(UUID, directory=tmp_path)
        journal.path.write_bytes(data)
        with pytest.raises(Refused, match="cannot be read") as caught:
            journal.read()
        assert str(journal.path) in str(caught.value)
        assert journal.path.read_bytes() == data
