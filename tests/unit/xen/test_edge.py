"""The edge to libxl, with the real library where there is no Xen."""

import ast
import logging
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pyxlsnap
from pyxlsnap.errors import (
    Aborted,
    DomainNotFound,
    ForkedError,
    GuestTimeout,
    XenError,
    XenUnavailable,
)
from pyxlsnap.model import DomainInfo
from pyxlsnap.results import Progress
from pyxlsnap.xen.callbacks import Bridge, close_in_children
from pyxlsnap.xen.domain import Domain
from pyxlsnap.xen.ffi import C, check, ffi
from pyxlsnap.xen.toolstack import Toolstack, why_no_xen
from tests.unit.support.values import UUID
from tests.unit.support.waiting import eventually, on_xen, open_descriptors

PACKAGE = Path(pyxlsnap.__file__).parent
LOGGER = "pyxlsnap.libxl"
#: xentoollog levels by the level of logging that they become
LEVELS = {1: 10, 2: 10, 3: 10, 4: 10, 5: 10, 6: 20, 7: 30, 8: 40, 9: 50}


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent
    )


class Threads:
    """Threads and descriptors, before and after."""

    def __init__(self) -> None:
        self._threads = threading.active_count()
        self._descriptors = open_descriptors()

    def assert_none_left(self) -> None:
        assert threading.active_count() == self._threads
        assert open_descriptors() == self._descriptors


# Imports


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{a.name}" for a in node.names} | {str(node.module)}
    return found


def test_one_module_imports_the_extension() -> None:
    importers = {
        str(p.relative_to(PACKAGE))
        for p in PACKAGE.rglob("*.py")
        if any(re.search(r"(^|\.)_ffi(\.|$)", name) for name in imports_of(p))
    }
    assert importers == {"xen/ffi.py"}


def test_cdata_stays_in_xen() -> None:
    users = {
        p.parent.name
        for p in PACKAGE.rglob("*.py")
        if {"pyxlsnap.xen.ffi.C", "pyxlsnap.xen.ffi.ffi"} & imports_of(p)
    }
    assert users == {"xen"}


def test_importing_starts_no_thread_and_handles_no_signal() -> None:
    code = (
        "import signal, threading\n"
        "before = [signal.getsignal(n) for n in signal.valid_signals()]\n"
        "import pyxlsnap, pyxlsnap.worker.server, pyxlsnap.cli.app\n"
        "assert threading.active_count() == 1\n"
        "assert before == [signal.getsignal(n) for n in signal.valid_signals()]\n"
    )
    run = python(code)
    assert (run.returncode, run.stderr) == (0, "")


def test_no_module_takes_the_name_of_a_public_function() -> None:
    """Importing a submodule binds its name in the package, over what was there."""
    code = (
        "import importlib, pkgutil, pyxlsnap\n"
        "public = {n: getattr(pyxlsnap, n) for n in pyxlsnap.__all__}\n"
        "for _, name, _ in pkgutil.iter_modules(pyxlsnap.__path__):\n"
        "    importlib.import_module('pyxlsnap.' + name)\n"
        "assert public == {n: getattr(pyxlsnap, n) for n in pyxlsnap.__all__}\n"
    )
    run = python(code)
    assert (run.returncode, run.stderr) == (0, "")


# A Toolstack where there is no Xen


@on_xen
def test_no_xen_is_one_line_and_leaves_nothing() -> None:
    before = Threads()
    for _ in range(3):
        with pytest.raises(XenUnavailable) as caught:
            Toolstack()
        assert re.fullmatch(r"cannot talk to Xen: .* does not run under Xen: .*", str(caught.value))
    before.assert_none_left()


@pytest.mark.parametrize(
    ("there", "allowed", "says"),
    [
        ([], True, "does not run under Xen: run it in dom0"),
        (["sys/hypervisor/uuid", "proc/xen/capabilities"], True, "a guest of Xen: run it in dom0"),
        (["proc/xen/capabilities", "dev/xen/privcmd"], False, "a guest of Xen: run it in dom0"),
        (["dom0", "dev/xen/privcmd"], False, "no right to use /dev/xen/privcmd: run it as root"),
        (["dom0", "proc/xen/privcmd"], False, "no right to use /proc/xen/privcmd: run it as root"),
        (["dom0", "dev/xen/privcmd"], True, ""),
        (["proc/xen/xenbus"], True, ""),
    ],
)
def test_why_there_is_no_xen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str], allowed: bool, says: str
) -> None:
    for name in there:
        path = tmp_path / ("proc/xen/capabilities" if name == "dom0" else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("control_d\n" if name == "dom0" else "")
    monkeypatch.setattr(os, "access", lambda *_: allowed)
    found = why_no_xen(tmp_path)
    assert (says in found) if says else not found


def test_a_libxl_of_another_release_is_told_with_the_way_out() -> None:
    run = python(
        "import sys\n"
        "sys.modules['pyxlsnap.xen._ffi'] = None\n"  # it cannot be loaded
        "import pyxlsnap.xen.toolstack\n"
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].endswith("built for one release of Xen: install it again")


class Names(Toolstack):
    """Domains that have names, and no Xen."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def domains(self) -> list[DomainInfo]:
        return [DomainInfo(n, UUID, False, False, "", False, 0) for n in range(len(self._names))]

    def name_of(self, domid: int) -> str:
        return self._names[domid]

    def _domid_of(self, name: str) -> int | None:
        return self._names.index(name) if name in self._names else None


@pytest.mark.parametrize(
    ("domain", "nearest"),
    [("wbe1", ("web1",)), ("web", ("web1", "web-22")), ("Domain", ()), ("xyz", ()), ("77", ())],
)
def test_a_domain_that_is_not_there_has_the_names_like_it(
    domain: str, nearest: tuple[str, ...]
) -> None:
    host = Names("Domain-0", "web-22", "", "web1", "database")
    assert host.find("web1").domid == 3
    with pytest.raises(DomainNotFound) as caught:
        host.find(domain)
    assert (caught.value.domain, caught.value.nearest) == (domain, nearest)
    hint = ": did you mean " + " or ".join(map(repr, nearest)) + "?" if nearest else ""
    assert str(caught.value) == f"there is no domain {domain!r} (see `xl list`){hint}"


@pytest.mark.parametrize(
    "ignore",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        """
import ctypes
class Action(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16),
                ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
libc.sigaction.argtypes = [ctypes.c_int, ctypes.POINTER(Action), ctypes.c_void_p]
assert libc.sigaction(signal.SIGCHLD, Action(flags=2), None) == 0  # SA_NOCLDWAIT
""",
    ],
    ids=["SIG_IGN", "SA_NOCLDWAIT"],
)
def test_a_process_that_ignores_sigchld_is_refused(ignore: str) -> None:
    code = (
        f"import signal\n{ignore}\n"
        "from pyxlsnap import Toolstack, XenUnavailable\n"
        "try:\n    Toolstack()\n"
        "except XenUnavailable as e:\n    print(e)\n"
    )
    run = python(code)
    assert run.stderr == ""
    assert run.stdout.startswith("SIGCHLD is ignored in this process")
    assert run.stdout.count("\n") == 1


def test_a_process_that_handles_sigchld_is_not() -> None:
    previous = signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        assert not C.pyxlsnap_sigchld_is_ignored()
    finally:
        signal.signal(signal.SIGCHLD, previous)


class NoXen(Toolstack):
    """A Toolstack with a context that is never used: only what stands before libxl is."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._ctx = ffi.cast("void *", 1)
        self._xs = ffi.NULL
        self._lock = threading.RLock()
        self._bridge = Bridge()


def test_a_forked_child_is_told_and_closing_there_is_harmless() -> None:
    toolstack = NoXen()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            toolstack.close()
            toolstack.domains()
        except ForkedError:
            status = 42
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    toolstack._bridge.close()


# check()


@pytest.mark.parametrize("rc", range(-1, -40, -1))
def test_every_return_code_becomes_one_exception(rc: int) -> None:
    kinds: dict[int, type[Exception]] = {
        C.ERROR_ABORTED: Aborted,
        C.ERROR_GUEST_TIMEDOUT: GuestTimeout,
        C.ERROR_DOMAIN_NOTFOUND: DomainNotFound,
    }
    kind = kinds.get(rc, XenError)
    with pytest.raises(kind) as caught:
        check(rc, "libxl_x", domain="vm1", log=("first", "last"))
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    if isinstance(caught.value, XenError):
        error = caught.value
        assert (error.rc, error.operation, error.domain) == (rc, "libxl_x", "vm1")
        assert error.log == ("first", "last")
        assert re.fullmatch(rf"libxl_x of vm1 failed: .+ \({rc}\): last", str(error))


def test_success_is_none() -> None:
    check(0, "libxl_x")


def test_without_a_log_the_code_has_to_do() -> None:
    with pytest.raises(XenError) as caught:
        check(C.ERROR_INVAL, "libxl_x")
    assert not str(caught.value).endswith(": ")


# The bridge


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
    before = Threads()
    with running() as r, subprocess.Popen(["sleep", "60"]) as child:
        r.bridge._pidfds.add(os.pidfd_open(child.pid))
        child.kill()
    before.assert_none_left()


def test_close_leaves_no_thread_and_no_descriptor() -> None:
    before = Threads()
    for _ in range(5):
        with running() as r:
            pid = C.pyxlsnap_bridge_test_fork(r.c, 0)
            os.waitpid(pid, 0)
        r.bridge.close()
    before.assert_none_left()


def test_a_bridge_that_never_ran_can_be_closed() -> None:
    before = Threads()
    Bridge().close()
    before.assert_none_left()


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


# What a Domain does with time


class Clockless(Domain):
    """A domain whose states are a list, one for each look."""

    def __init__(self, *states: str, requested: tuple[bool, ...] = ()) -> None:
        self.domid, self.uuid, self.name = 7, UUID, "vm1"
        self.states, self.requested = list(states), list(requested)
        self.resumed = 0

    def info(self) -> DomainInfo:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if state == "gone":
            raise DomainNotFound("gone", domain="vm1")
        uuid = "another" if state == "another" else UUID
        return DomainInfo(7, uuid, False, state == "suspend", state, state == "dying", 1)

    def resume(self, *, paused: bool = False) -> None:
        self.resumed += 1

    def suspend_requested(self) -> bool:
        return self.requested.pop(0) if self.requested else False


class TestEnsureRunning:
    def test_a_suspended_domain_is_resumed_at_once(self) -> None:
        domain = Clockless("suspend")
        assert domain.ensure_running(settle_s=0, request_s=0)
        assert domain.resumed == 1

    def test_a_running_domain_is_left_alone(self) -> None:
        domain = Clockless("")
        assert not domain.ensure_running(settle_s=0, request_s=0)
        assert domain.resumed == 0

    def test_one_that_suspends_while_it_settles_is_resumed(self) -> None:
        domain = Clockless("", "", "suspend")
        assert domain.ensure_running(settle_s=5, request_s=0)

    def test_one_that_suspends_while_its_request_stands_is_resumed(self) -> None:
        domain = Clockless("", "", "suspend", requested=(True, True))
        assert domain.ensure_running(settle_s=0, request_s=5)

    def test_one_that_has_answered_and_suspends_a_little_later_is_resumed(self) -> None:
        """The answer takes the request away, and the guest has yet to stop what it does."""
        domain = Clockless(*[""] * 13, "suspend", requested=(True,) * 10)
        assert domain.ensure_running(settle_s=0.15, request_s=5)

    def test_a_request_that_stands_for_ever_is_not_waited_for_for_ever(self) -> None:
        domain = Clockless("", requested=(True,) * 1000)
        start = time.monotonic()
        with pytest.raises(GuestTimeout, match="may yet"):
            domain.ensure_running(settle_s=0, request_s=0.1)
        assert 0.1 <= time.monotonic() - start < 2

    @pytest.mark.parametrize("state", ["gone", "another", "dying"])
    def test_one_that_has_gone_is_not_resumed(self, state: str) -> None:
        domain = Clockless("", state)
        with pytest.raises(DomainNotFound):
            domain.ensure_running(settle_s=5, request_s=5)
        assert domain.resumed == 0


class TestWaitGone:
    @pytest.mark.parametrize("end", ["gone", "another"])
    def test_returns_when_the_domain_has_gone(self, end: str) -> None:
        Clockless("dying", "dying", end).wait_gone(timeout_s=5)

    def test_is_limited(self) -> None:
        with pytest.raises(XenError, match=r"still there 0\.1 s after"):
            Clockless("dying").wait_gone(timeout_s=0.1)


def test_a_child_that_forks_in_turn_tells_the_owner_nothing() -> None:
    """libxl's middle process of a spawn: the pidfd there has a number of ours that is in use."""
    c = C.pyxlsnap_bridge_new(1)
    pid = C.pyxlsnap_bridge_test_fork(c, 0)
    os.waitpid(pid, 0)  # it has forked before it ended
    told = array("i", os.read(c.child_fd, 4096))
    assert len(told) == 1
    os.close(told[0])
    C.pyxlsnap_bridge_free(c)


def test_progress_is_reported_ten_times_a_second_at_most() -> None:
    seen: list[Progress] = []
    with running() as r:
        r.bridge.on_progress = seen.append
        for done in range(5001):
            C.pyxlsnap_bridge_test_progress(r.c, b"Frames iteration 0", done, 5000)
        assert eventually(lambda: bool(seen) and seen[-1].bytes_done == 5000 * 4096)
    assert seen[0].bytes_done == 0
    assert len(seen) < 100


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
