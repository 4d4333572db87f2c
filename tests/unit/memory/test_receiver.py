"""The stream through the pipe: libxl is aborted after a failure of ours, and never waits for us."""

import errno
import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyxlsnap.cancel import Cancelled
from pyxlsnap.errors import Aborted, BadMemoryFile, XenError
from pyxlsnap.memory import walk
from pyxlsnap.memory.receiver import Receiver
from pyxlsnap.memory.writer import StreamWriter
from tests.unit.support.guest import write_all
from tests.unit.support.waiting import eventually
from tests.unit.support.written import (
    file_size_limit,
    in_order,
    page_record,
    restored_file,
    stream_of,
    writing,
)

MIB = 1 << 20
#: many times as much as a pipe holds
STREAM = stream_of(False, in_order(4000))


class Libxl:
    """Writes a stream as libxl does: after an abort it stops after the next piece.

    :param locked: it holds its lock while it writes, so that an abort must wait.
    """

    def __init__(self, stream: bytes = STREAM, *, locked: bool = False) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._locked = locked
        self.aborted = threading.Event()
        self.written = 0

    def suspend(self, fd: int) -> None:
        if self._locked:
            with self._lock:
                self._write(fd)
        else:
            self._write(fd)

    def _write(self, fd: int) -> None:
        for at in range(0, len(self._stream), MIB):
            if self.aborted.is_set():
                raise Aborted("aborted", rc=-22, operation="libxl_domain_suspend")
            write_all(fd, self._stream[at : at + MIB])
            self.written = at + MIB
            time.sleep(0.001)

    def abort(self) -> bool:
        with self._lock:
            self.aborted.set()
            return True


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    def state() -> set[object]:
        return {*threading.enumerate(), *os.listdir("/proc/self/fd")}  # noqa: PTH208

    before = state()
    yield
    assert eventually(lambda: state() <= before)


def received(libxl: Libxl, then: Callable[[Receiver], None] = lambda _: None) -> None:
    with writing() as (writer, file):
        with Receiver(writer, libxl.abort) as receiver:
            libxl.suspend(receiver.fileno())
            then(receiver)
        assert len(restored_file(file).memory) == 4000
        file.seek(MIB - 192)
        assert walk(file, "x").guest_pages == 4000


def test_the_file_is_complete_when_it_leaves() -> None:
    received(Libxl())


def test_a_child_that_holds_the_pipe_is_not_waited_for() -> None:
    children = []

    def start(receiver: Receiver) -> None:
        fd = receiver.fileno()
        children.append(subprocess.Popen(["sleep", "60"], pass_fds=[fd]))

    received(Libxl(), start)
    assert children[0].poll() is None
    children[0].kill()
    children[0].wait()


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("room", [100, 2 * MIB])
def test_a_failure_aborts_libxl_and_is_the_error(room: int, locked: bool) -> None:
    libxl = Libxl(locked=locked)
    with (
        writing() as (writer, _),
        file_size_limit(room),
        pytest.raises(OSError, match="File too large") as caught,
        Receiver(writer, libxl.abort) as receiver,
    ):
        libxl.suspend(receiver.fileno())
    assert caught.value.errno == errno.EFBIG
    assert (libxl.written >= len(STREAM)) == locked


def test_a_failure_is_reported_though_libxl_did_not_notice() -> None:
    """The abort came too late: libxl returns 0."""
    with (
        writing() as (writer, _),
        file_size_limit(2 * MIB),
        pytest.raises(OSError, match="File too large"),
        Receiver(writer, lambda: False) as receiver,
    ):
        Libxl().suspend(receiver.fileno())


def write_and_wait(fd: int, begun: threading.Event) -> None:
    write_all(fd, STREAM[:MIB])
    assert begun.wait(60)


def test_an_abort_that_has_begun_ends_before_it_leaves() -> None:
    """It would reach the next call of libxl."""
    begun = threading.Event()
    ended: list[bool] = []

    def abort() -> bool:
        begun.set()
        time.sleep(0.2)
        ended.append(True)
        return True

    with (
        writing() as (writer, _),
        file_size_limit(100),
        pytest.raises(OSError, match="File too large"),
        Receiver(writer, abort) as receiver,
    ):
        write_and_wait(receiver.fileno(), begun)
    assert ended == [True]


def fails(fd: int) -> None:
    write_all(fd, STREAM[:60_000])
    raise XenError("no such luck", rc=-3)


def test_when_libxl_fails_its_error_is_reported() -> None:
    libxl = Libxl()

    with (
        writing() as (writer, _),
        pytest.raises(XenError, match="no such luck"),
        Receiver(writer, libxl.abort) as receiver,
    ):
        fails(receiver.fileno())
    assert not libxl.aborted.is_set()


def test_a_stream_that_libxl_did_not_finish_is_an_error() -> None:
    with (
        writing() as (writer, _),
        pytest.raises(BadMemoryFile, match="ends before its END"),
        Receiver(writer, lambda: True) as receiver,
    ):
        write_all(receiver.fileno(), STREAM[:MIB])


def test_a_stream_that_is_not_known_aborts_libxl() -> None:
    libxl = Libxl(b"nothing of this" * MIB)
    with (
        writing() as (writer, _),
        pytest.raises(BadMemoryFile, match="beginning"),
        Receiver(writer, libxl.abort) as receiver,
    ):
        libxl.suspend(receiver.fileno())
    assert libxl.aborted.is_set()


def test_a_full_disk_is_told_with_its_file(tmp_path: Path) -> None:
    path = str(tmp_path / "a.save")
    with (
        writing(path) as (writer, _),
        file_size_limit(2 * MIB),
        pytest.raises(OSError, match="File too large") as caught,
        Receiver(writer, lambda: True) as receiver,
    ):
        write_all(receiver.fileno(), STREAM)
    assert caught.value.filename == path


class Stalled(StreamWriter):
    """Its file does not answer, from the beginning of the stream on."""

    def __init__(self, goes_on: threading.Event) -> None:
        fd = os.memfd_create("memory file")
        super().__init__(fd, lambda _: 0, "memory file")
        self.file, self._goes_on = fd, goes_on
        self.written_to: list[str] = []

    def run(self, pipe_fd: int, stop_fd: int) -> None:
        self._goes_on.wait(20)
        self.written_to = [os.readlink(f"/proc/thread-self/fd/{fd}") for fd in (pipe_fd, stop_fd)]  # noqa: PTH115
        raise OSError(errno.EIO, "too late")

    def discard(self, pipe_fd: int, stop_fd: int) -> None:
        pass


@pytest.mark.parametrize("cancelled", [False, True])
def test_storage_that_stalls_is_not_waited_for_after_a_failure(cancelled: bool) -> None:
    """The guest may be suspended. Its descriptors are the thread's own, whatever else is opened."""
    goes_on, aborted = threading.Event(), threading.Event()

    def abort() -> bool:
        aborted.set()
        return True

    def suspend() -> None:
        if not cancelled:
            raise XenError("no such luck", rc=-3)

    def check() -> None:
        raise Cancelled

    writer = Stalled(goes_on)
    receiver = Receiver(writer, abort, check)
    with pytest.raises((XenError, Cancelled)), receiver:
        suspend()
    assert not receiver.ended(within_s=0.0)
    others = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
    goes_on.set()
    assert receiver.ended()
    assert writer.written_to[0].startswith("pipe:")
    assert "eventfd" in writer.written_to[1]
    assert not aborted.is_set(), "an abort now would reach the resume of the guest"
    for fd in (*others, writer.file):
        os.close(fd)


@pytest.mark.parametrize("fails", ["pipe2", "eventfd", "start"])
def test_nothing_is_left_if_it_cannot_begin(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(threading.Thread if fails == "start" else os, fails, no)
    with writing() as (writer, _):
        with pytest.raises(OSError, match="Too many open files") as caught:
            Receiver(writer, lambda: True).__enter__()
        monkeypatch.undo()
    assert fails == "start" or caught.value.filename == "the pipe for libxl's stream"


def test_a_rate_holds_in_all_passes_until_the_guest_is_suspended() -> None:
    """Nothing may wait then, and the pipe may hold more."""
    rate = 8 * MIB
    again = page_record((n, 0, 7) for n in range(256))
    stream = stream_of(False, [*in_order(256), *[again] * 130])
    half = 3 * MIB
    with writing(max_rate=rate) as (writer, _), Receiver(writer, lambda: True) as receiver:
        fd = receiver.fileno()
        begun = time.monotonic()
        write_all(fd, stream[:half])
        limited_s = time.monotonic() - begun
        assert fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < 1 << 20
        writer.lift_limit()
        begun = time.monotonic()
        write_all(fd, stream[half:])
        freed_s = time.monotonic() - begun
        assert fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) == 1 << 20
    assert writer.written.repeated == 130 * 256
    assert half / rate * 0.7 < limited_s
    assert freed_s < (len(stream) - half) / rate / 2


def test_a_limit_that_ends_lets_nothing_wait() -> None:
    """What the writer has just taken would let it wait for a minute."""
    with writing(max_rate=1000) as (writer, _), Receiver(writer, lambda: True) as receiver:
        write_all(receiver.fileno(), STREAM[:60_000])
        time.sleep(0.1)
        begun = time.monotonic()
        writer.lift_limit()
        write_all(receiver.fileno(), STREAM[60_000:])
    assert time.monotonic() - begun < 5


def test_a_slow_receiver_ends_when_no_more_comes() -> None:
    begun = time.monotonic()
    with (
        writing(max_rate=1000) as (writer, _),  # a minute for what the pipe holds
        pytest.raises(XenError),
        Receiver(writer, lambda: True) as receiver,
    ):
        fails(receiver.fileno())
    assert time.monotonic() - begun < 5
