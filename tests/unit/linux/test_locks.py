"""The lock of a domain belongs to open files, not to processes."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pyxlsnap import paths
from pyxlsnap.errors import Busy, Refused
from pyxlsnap.linux.locks import MONITOR, DomainLock, FileLock, under_way
from tests.unit.support.loop_files import need_root
from tests.unit.support.waiting import open_descriptors

UUID = "8a1f0c3e-0000-4000-8000-00000000c0de"
TRY = """
import sys
from pathlib import Path
from pyxlsnap.errors import Busy
from pyxlsnap.linux.locks import DomainLock, FileLock
from tests.unit.support.waiting import open_descriptors
try:
    DomainLock(sys.argv[1], domain="vm1", directory=Path(sys.argv[2]))
except Busy:
    sys.exit(7)
"""
HOLD = "import sys; print('ready', flush=True); sys.stdin.read()"


def lock(directory: Path) -> DomainLock:
    return DomainLock(UUID, domain="vm1", directory=directory)


def monitor_lock(directory: Path) -> DomainLock:
    return DomainLock(UUID, domain="vm1", directory=directory, part=MONITOR)


def free_for_another_process(directory: Path) -> bool:
    run = subprocess.run([sys.executable, "-c", TRY, UUID, str(directory)])
    assert run.returncode in (0, 7)
    return run.returncode == 0


class TestUnderWay:
    @pytest.fixture(autouse=True)
    def locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(paths, "LOCKS", tmp_path)
        return tmp_path

    def test_names_the_domains_whose_operation_lock_is_held(self, locks: Path) -> None:
        assert under_way() == []
        held = lock(locks)
        assert under_way() == [UUID]
        assert under_way() == [UUID]  # the look releases nothing
        held.release()
        assert under_way() == []  # the file is still there

    def test_takes_nothing_from_an_operation_that_begins(self, locks: Path) -> None:
        lock(locks).release()
        before = open_descriptors()
        under_way()
        assert open_descriptors() == before
        lock(locks).release()

    def test_a_monitor_is_no_operation(self, locks: Path) -> None:
        acting = monitor_lock(locks)
        watching = DomainLock(UUID, domain="vm1", directory=locks, kind="watch")
        assert under_way() == []
        watching.release()
        acting.release()

    def test_the_other_locks_of_a_clone_are_no_domains(self, locks: Path) -> None:
        name = DomainLock("0" * 32, domain="c1", directory=locks, kind="name.lock")
        assert under_way() == [f"{'0' * 32}.name"]  # it has no domain yet
        clone = lock(locks)
        assert under_way() == [UUID]
        clone.release()
        name.release()

    def test_no_directory_is_no_operation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(paths, "LOCKS", Path("/nonexistent"))
        assert under_way() == []


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

    def test_a_part_can_be_left_to_the_monitor(self, tmp_path: Path) -> None:
        held = lock(tmp_path)
        with pytest.raises(Busy):
            monitor_lock(tmp_path)
        held.open_to_monitor()
        monitor = monitor_lock(tmp_path)
        assert not held.close_to_monitor()
        with pytest.raises(Busy):
            lock(tmp_path)
        monitor.release()
        assert held.close_to_monitor()
        with pytest.raises(Busy):
            monitor_lock(tmp_path)
        held.open_to_monitor()
        held.release()
        held.open_to_monitor()
        lock(tmp_path).release()

    def test_a_monitor_that_acts_excludes_an_operation(self, tmp_path: Path) -> None:
        monitor = monitor_lock(tmp_path)
        with pytest.raises(Busy):
            lock(tmp_path)
        monitor.release()
        lock(tmp_path).release()

    def test_makes_its_directory_private(self, tmp_path: Path) -> None:
        lock(tmp_path / "a" / "b").release()
        assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700

    def test_a_file_of_another_user_is_refused(self, public: Path) -> None:
        """In a directory such as /run/lock: that user could hold the lock for ever."""
        need_root("another owner")
        public.chmod(0o1777)
        path = public / f"{UUID}.lock"
        path.touch(0o666)
        os.chown(path, 12345, 12345)
        says = f"cannot open the lock {path}: the file belongs to the user 12345: see what"
        with pytest.raises(Refused, match=says):
            lock(public)
        with pytest.raises(Refused, match=says):
            FileLock(path).take(within_s=0)

    def test_what_cannot_be_a_lock_is_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / f"{UUID}.lock")
        before = open_descriptors()
        with pytest.raises(Refused, match=r"cannot open the lock .*: this is no regular file"):
            lock(tmp_path)
        assert open_descriptors() == before

    def test_two_that_make_it_at_once_exclude_each_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both found no file; the first one makes it just before the second one would."""
        held, opened, first = [], os.open, True

        def racing(path: Path, flags: int, mode: int = 0o777) -> int:
            nonlocal first
            if first and flags & os.O_EXCL:
                first = False
                held.append(lock(tmp_path))
            return opened(path, flags, mode)

        monkeypatch.setattr(os, "open", racing)
        with pytest.raises(Busy):
            lock(tmp_path)
        held[0].release()

    def test_a_link_in_its_place_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").touch()
        (tmp_path / f"{UUID}.lock").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(Refused, match="cannot open the lock"):
            lock(tmp_path)


class TestFileLock:
    """A lock that it shares with programs such as xl, which use fcntl(2)'s older kind."""

    XL = f"import fcntl; {HOLD}".replace(
        "sys;", "sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX);"
    )

    def xl(self, path: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", self.XL, str(path)]
        found = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert found.stdout
        found.stdout.readline()
        return found

    def test_excludes_the_other_kind(self, tmp_path: Path) -> None:
        lock = FileLock(tmp_path / "xl")
        with self.xl(lock.path) as xl:
            assert not lock.take(within_s=0)
            assert not lock.held
            assert lock.holder() == xl.pid
            xl.communicate()
        assert lock.take(within_s=0)
        assert lock.held
        lock.release()

    def test_has_no_known_holder_if_free_or_of_this_kind(self, tmp_path: Path) -> None:
        lock, other = FileLock(tmp_path / "xl"), FileLock(tmp_path / "xl")
        assert other.holder() is None
        assert lock.take(within_s=0)
        assert lock.take(within_s=0)  # it has it
        assert not other.take(within_s=0)
        assert other.holder() is None
        lock.release()
        lock.release()
        assert other.take(within_s=0)
        other.release()

    def test_a_wait_can_be_ended(self, tmp_path: Path, nothing_is_left: None) -> None:
        lock, other = FileLock(tmp_path / "xl"), FileLock(tmp_path / "xl")
        assert lock.take(within_s=0)
        calls: list[int] = []

        def check() -> None:
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            other.take(within_s=60, check=check)
        lock.release()
        assert other.take(within_s=0)
        other.release()
