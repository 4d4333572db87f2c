"""The bridge: log records, progress, children and private descriptors, with the real C."""

import logging
import os
import select
import signal
import subprocess
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyxlsnap.linux.locks import DomainLock, FileLock
from pyxlsnap.results import Progress
from pyxlsnap.xen.callbacks import Bridge, close_in_children
from pyxlsnap.xen.ffi import C, ffi
from tests.unit.support.resources import Resources
from tests.unit.support.values import UUID
from tests.unit.support.waiting import eventually

LOGGER = "pyxlsnap.libxl"
#: xentoollog levels by the level of logging that they become
LEVELS = {1: 10, 2: 10, 3: 10, 4: 10, 5: 10, 6: 20, 7: 30, 8: 40, 9: 50}


class Running:
    """A bridge that watches, without a context: no hook is registered with libxl."""

    def __init__(self) -> None:
        self.bridge = Bridge(operation="create", domain="vm1")
        self.c = self.bridge._c
        self.bridge._thread.start()

    def say(self, level: int, text: str | bytes) -> None:
        data = text if isinstance(text, bytes) else text.encode()
        C.pyxlsnap_bridge_test_message(self.c, level, ffi.new("char[]", data))


@contextmanager
def running() -> Iterator[Running]:
    found = Running()
    try:
        yield found
    finally:
        found.bridge.close()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, LOGGER)
    return caplog


def test_messages_reach_logging_in_order_with_level_and_extra(
    lines: pytest.LogCaptureFixture,
) -> None:
    with running() as r:
        for level in LEVELS:
            r.say(level, f"line {level}")
    assert [(x.levelno, x.getMessage()) for x in lines.records] == [
        (number, f"test: line {level}") for level, number in LEVELS.items()
    ]
    assert {x.name for x in lines.records} == {LOGGER}
    assert {(vars(x)["operation"], vars(x)["domain"]) for x in lines.records} == {("create", "vm1")}


def test_what_nobody_reads_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log level that was changed holds from the next call of libxl on."""
    logger, passed = logging.getLogger(LOGGER), list[bytes]()
    monkeypatch.setattr(Bridge, "_record", lambda _, record: passed.append(record))
    with running() as r:
        for wanted in (logging.DEBUG, logging.INFO, logging.WARNING):
            logger.setLevel(wanted)
            r.bridge.begin()
            for least in (1, 5, 6, 7):
                r.say(least, f"{least} at {wanted}")
    texts = [record[record.index(b"test") + 4 :] for record in passed]
    assert b", ".join(texts) == b"1 at 10, 5 at 10, 6 at 10, 7 at 10, 6 at 20, 7 at 20, 7 at 30"


def test_messages_arrive_while_it_runs(lines: pytest.LogCaptureFixture) -> None:
    with running() as r:
        r.say(6, "now")
        assert eventually(lambda: len(lines.records) == 1)


def test_the_order_holds_for_a_burst_of_many_threads(lines: pytest.LogCaptureFixture) -> None:
    count = 300

    def say(name: int) -> None:
        for n in range(count):
            r.say(6, f"{name} {n}")

    with running() as r:
        threads = [threading.Thread(target=say, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for name in range(4):
        said = [x.getMessage() for x in lines.records if f"test: {name} " in x.getMessage()]
        assert said == [f"test: {name} {n}" for n in range(count)]


def test_percent_signs_and_bad_utf_8_do_no_harm(lines: pytest.LogCaptureFixture) -> None:
    with running() as r:
        r.say(6, b"100 %s %d \xff\xfe")
    assert lines.records[0].getMessage() == "test: 100 %s %d ��"


@pytest.mark.parametrize("size", [0, 1, 4000, 4096, 4097, 100_000])
def test_a_huge_message_is_cut_and_the_next_is_whole(
    lines: pytest.LogCaptureFixture, size: int
) -> None:
    with running() as r:
        r.say(6, "x" * size)
        r.say(6, "next")
    first, second = (x.getMessage() for x in lines.records)
    body = first.removeprefix("test: ")
    assert set(body) <= {"x"}
    assert min(size, 4000) <= len(body) <= min(size, 4096)
    assert second == "test: next"


def test_records_that_nobody_reads_are_counted_and_do_not_block(
    lines: pytest.LogCaptureFixture,
) -> None:
    bridge = Bridge()
    text = ffi.new("char[]", b"x" * 4000)
    sent = 2000
    start = time.monotonic()
    for _ in range(sent):
        C.pyxlsnap_bridge_test_message(bridge._c, 6, text)
    assert time.monotonic() - start < 5
    lost = bridge._c.lost
    assert 0 < lost < sent
    bridge.drain()
    assert len(lines.records) == sent - lost
    C.pyxlsnap_bridge_test_message(bridge._c, 6, ffi.new("char[]", b"after"))
    bridge.drain()
    assert lines.records[-1].getMessage() == "test: after"
    bridge.close()


def test_the_error_of_a_call_gets_its_own_warnings_only() -> None:
    with running() as r:
        r.say(8, "of the call before")
        r.bridge.begin()
        for level, text in ((6, "info"), (7, "warning"), (8, "error"), (9, "critical")):
            r.say(level, text)
        assert r.bridge.said() == ("test: warning", "test: error", "test: critical")


def test_a_c_childs_line_arrives_and_its_end_is_seen(lines: pytest.LogCaptureFixture) -> None:
    with running() as r:
        pid = C.pyxlsnap_bridge_test_fork(r.c, 3)
        assert eventually(lambda: "test: in the child" in lines.messages)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3  # ours to reap, not taken
        assert eventually(lambda: not r.bridge._pidfds)


class Seen(Bridge):
    """A bridge that counts the ends of children."""

    ends = 0

    def _child_ended(self) -> None:
        self.ends += 1
        super()._child_ended()


def test_libxl_is_told_once_for_each_child() -> None:
    bridge = Seen()
    bridge._thread.start()
    for n in range(1, 4):
        pid = C.pyxlsnap_bridge_test_fork(bridge._c, 0)
        assert eventually(lambda n=n: bridge.ends == n)  # type: ignore[misc]
        os.waitpid(pid, 0)
    bridge.close()
    assert bridge.ends == 3


def test_a_child_still_running_at_close_leaves_no_descriptor() -> None:
    before = Resources()
    with running() as r, subprocess.Popen(["sleep", "60"]) as child:
        r.bridge._pidfds.add(os.pidfd_open(child.pid))
        child.kill()
    before.assert_unchanged()


def test_close_leaves_no_thread_and_no_descriptor() -> None:
    before = Resources()
    for _ in range(5):
        with running() as r:
            pid = C.pyxlsnap_bridge_test_fork(r.c, 0)
            os.waitpid(pid, 0)
        r.bridge.close()
    before.assert_unchanged()


def test_a_bridge_that_never_ran_can_be_closed() -> None:
    before = Resources()
    Bridge().close()
    before.assert_unchanged()


def test_its_descriptors_are_not_inherited() -> None:
    with running() as r:
        assert not any(os.get_inheritable(fd) for fd in (r.c.log_fd, r.c.child_fd))


class TestProgress:
    def seen(self, *said: tuple[str, int, int]) -> list[Progress]:
        found: list[Progress] = []
        bridge = Bridge()
        bridge.on_progress = found.append
        for what, done, total in said:
            bridge._progress(what, done, total)
        bridge.close()
        return found

    def test_passes_and_pages_are_counted_as_libxc_counts_them(self) -> None:
        assert self.seen(("Frames iteration 0", 1, 9), ("Frames iteration 2", 3, 9)) == [
            Progress("memory", 4096, 9 * 4096, 0),
            Progress("memory", 3 * 4096, 9 * 4096, 2),
        ]

    def test_the_moment_of_the_suspend_is_told(self) -> None:
        assert self.seen(("Domain now suspended", 0, 0)) == [Progress("domain now suspended")]

    def test_a_callback_that_raises_is_logged_and_the_thread_lives_on(
        self, lines: pytest.LogCaptureFixture
    ) -> None:
        def raises(_: Progress) -> None:
            raise RuntimeError("a bug")

        bridge = Bridge()
        bridge.on_progress = raises
        bridge._progress("Frames", 1, 2)
        bridge.close()
        assert "the progress callback failed" in lines.messages


def test_a_child_that_forks_in_turn_tells_the_owner_nothing() -> None:
    """libxl's middle process of a spawn: the pidfd there has a number of ours that is in use."""
    c = C.pyxlsnap_bridge_new(1)
    pid = C.pyxlsnap_bridge_test_fork(c, 0)
    os.waitpid(pid, 0)  # it has forked before it ended
    told = array("i", os.read(c.child_fd, 4096))
    assert len(told) == 1
    os.close(told[0])
    C.pyxlsnap_bridge_free(c)


def test_progress_is_reported_twice_a_second_at_most_and_at_both_ends() -> None:
    seen: list[Progress] = []
    with running() as r:
        r.bridge.on_progress = seen.append
        begun, done, total = time.monotonic(), 0, 1 << 30
        while len(seen) < 3 and time.monotonic() < begun + 60:
            C.pyxlsnap_bridge_test_progress(r.c, b"Frames iteration 0", done, total)
            done += 1
        took = time.monotonic() - begun
        C.pyxlsnap_bridge_test_progress(r.c, b"Frames iteration 0", total, total)
        assert eventually(lambda: bool(seen) and seen[-1].bytes_done == total * 4096)
    assert seen[0].bytes_done == 0
    assert 4 <= len(seen) <= 2 + (took + 0.01) / 0.5  # (C counts whole milliseconds)


def test_what_libxc_says_at_its_end_is_not_passed_on() -> None:
    """A guest may be suspended, and waits for whoever reads it."""
    seen: list[Progress] = []
    with running() as r:
        r.bridge.on_progress = seen.append
        for what in (b"Domain now suspended", b"End of stream", b"Complete", b"Frames"):
            C.pyxlsnap_bridge_test_progress(r.c, what, 0, 0)
        assert eventually(lambda: bool(seen) and seen[-1].phase == "memory")
    assert [progress.phase for progress in seen] == ["domain now suspended", "memory"]


def test_a_child_that_stays_has_no_private_descriptor() -> None:
    """libxl's middle process lives as long as a QEMU; a lock or socket in it would, too."""
    reader, writer = os.pipe()
    with running() as r:
        close_in_children(writer)
        pid = C.pyxlsnap_bridge_test_fork(r.c, -1)
        os.close(writer)
        try:
            assert select.select([reader], [], [], 10)[0]
            assert os.read(reader, 1) == b""
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)  # it is still there
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    os.close(reader)


def test_private_descriptors_that_were_closed_make_room() -> None:
    for _ in range(50):
        fd = os.open(os.devnull, os.O_RDONLY)
        other = os.open("/", os.O_RDONLY)
        close_in_children(other)
        os.close(other)
        os.close(fd)
    with pytest.raises(OSError, match="too many"):
        close_in_children(-1)


def test_a_child_that_stays_has_no_lock(tmp_path: Path) -> None:
    """A monitor starts a domain with its lock held, and the domain's QEMU must not keep it."""
    with running() as r:
        lock = DomainLock(UUID, domain="vm1", directory=tmp_path)
        xl = FileLock(tmp_path / "xl")
        assert xl.take(within_s=0)
        pid = C.pyxlsnap_bridge_test_fork(r.c, -1)
        os.close(lock.fd)  # without an unlock, as if this process had died
        xl.release()
        try:
            DomainLock(UUID, domain="vm1", directory=tmp_path, wait_s=10).release()
            assert xl.take(within_s=10)
            xl.release()
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)  # it is still there
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
