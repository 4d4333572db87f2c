"""What a host must not notice, and what it may do: with the real libxl, where there is no Xen."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

import pyxlsnap
from pyxlsnap import api
from pyxlsnap.errors import Refused
from tests.unit.support.scenarios import deaths, logs
from tests.unit.support.standin import StandIn
from tests.unit.support.waiting import on_xen

ROOT = Path(pyxlsnap.__file__).parent.parent

# What hosts do with their children, signals and descriptors before they call us.
HOSTS = {
    "handles SIGCHLD": "signal.signal(signal.SIGCHLD, lambda *_: None)",
    "ignores SIGCHLD": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "has SA_NOCLDWAIT": """
        class Action(ctypes.Structure):
            _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16),
                        ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]
        assert ctypes.CDLL(None).sigaction(signal.SIGCHLD, ctypes.byref(Action(flags=2)), None) == 0
    """,
    "reaps every child in its handler": """
        def reap(*_):
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass
        signal.signal(signal.SIGCHLD, reap)
    """,
    "waits for any child in a thread": """
        def wait():
            while True:
                try:
                    os.wait()
                except ChildProcessError:
                    time.sleep(0.001)
        threading.Thread(target=wait, daemon=True).start()
    """,
    "blocks and ignores signals": """
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    """,
    "has no standard streams": "for fd in (0, 1, 2): os.close(fd)",
    "has many descriptors": """
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 4096), limit))
        files = [os.open("/", os.O_RDONLY) for _ in range(1100)]
    """,
}
#: those that take the exit statuses of others' children
TAKE_STATUS = {
    "ignores SIGCHLD",
    "has SA_NOCLDWAIT",
    "reaps every child in its handler",
    "waits for any child in a thread",
}

HOST = """
import ctypes, json, os, resource, signal, sys, threading, time
from pathlib import Path
import pyxlsnap
from tests.host_state import changed, children, host_state, inherited_since

said = os.open({said!r}, os.O_WRONLY | os.O_CREAT)
os.dup2(said, 200)
os.close(said)

{prelude}

def call(name, function, *words, **options):
    try:
        found[name] = str(function(*words, **options))
    except Exception as e:
        found[name] = f"{{type(e).__name__}}: {{e}}"

def look(progress):
    found["meanwhile"] = changed(before, host_state())
    found["inherited"] = inherited_since(before)
    found["workers"] = len(children())

def kill(progress):
    if progress.phase == "keeper":
        keeper = progress.bytes_done
        tasks = Path(f"/proc/{{keeper}}/task/{{keeper}}/children").read_text().split()
        for pid in (keeper, *map(int, tasks)):
            os.kill(pid, signal.SIGKILL)

found = {{}}
before = host_state()
call("real", pyxlsnap.plan_create, "vm1")
call("monitor", pyxlsnap.start_monitor, {uuid!r})
sys.path.insert(0, {site!r})  # from here on the worker has a stand-in for what needs Xen
call("done", lambda: pyxlsnap.create_snapshot("vm1", on_progress=look).name)
call("aborted", pyxlsnap.create_snapshot, "aborted")
call("killed", pyxlsnap.create_snapshot, "killed", on_progress=kill)
found["changed"] = changed(before, host_state())
os.write(200, json.dumps(found).encode())
"""


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    """A kind of host."""
    kind: str = request.param
    return kind


@on_xen
def test_a_host(host: str, worker: StandIn) -> None:
    worker.set(deaths.by_the_domains_name)
    script = HOST.format(
        prelude=dedent(HOSTS[host]),
        said=str(worker.here / "said"),
        uuid="8a1f0c3e-0000-4000-8000-00000000c0de",
        site=str(worker.here / "site"),
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": "/usr/bin:/usr/sbin:/bin:/sbin", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(worker.said("said"))
    assert found["real"].startswith("XenUnavailable: cannot talk to Xen: ")
    assert found["monitor"].startswith("OperationFailed: the watch of 8a1f0c3e")
    assert "cannot talk to Xen" in found["monitor"]
    assert found["done"] == "snap"
    assert "the worker process was killed by signal 6: " in found["aborted"]
    assert "Assertion" in found["aborted"]
    ended = "was killed by signal 9; everything is as before"
    unknown = "ended, how is not known; everything is as before"
    ends = (ended, unknown) if host in TAKE_STATUS else ended
    assert found["killed"].startswith("OperationFailed: the worker process ")
    assert found["killed"].endswith(ends)
    assert found["changed"] == []
    assert found["meanwhile"] == ["children", "descriptors"]
    assert found["inherited"] == []
    assert found["workers"] == 1
    signals = json.loads(worker.said("worker"))
    assert signals["blocked"] == []


@contextmanager
def room_for(descriptors: int) -> Iterator[None]:
    """This process can open so many more, and no more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    filling: list[int] = []
    try:
        try:
            while True:
                filling.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        for _ in range(descriptors):
            os.close(filling.pop())
        yield
    finally:
        for fd in filling:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("nothing_is_left")
def test_a_host_that_has_no_descriptors_left(worker: StandIn) -> None:
    worker.set()
    errors: list[str] = []
    for room in range(20):
        with room_for(room):
            try:
                assert api.plan_create("vm1").name == "snap"
                break
            except Refused as e:
                errors.append(str(e))
    assert 3 < len(errors) < 19
    assert set(errors) == {"the worker process cannot be started: Too many open files"}


class TestLogging:
    def test_every_record_says_of_which_operation_it_is(
        self, worker: StandIn, caplog: pytest.LogCaptureFixture
    ) -> None:
        worker.set(logs.of_three_libraries)
        api.create_snapshot("vm1")
        seen = [(r.name, vars(r)["operation"], vars(r)["domain"]) for r in caplog.records]
        assert seen == [
            ("pyxlsnap.create.sequence", "create", "vm1"),
            ("pyxlsnap.libxl", "watch", "vm1 itself"),
        ]

    def test_of_every_domain_none_is_named(
        self, worker: StandIn, caplog: pytest.LogCaptureFixture
    ) -> None:
        worker.set(recover=logs.warning_of_a_recovery)
        api.recover()
        assert [(vars(r)["operation"], vars(r)["domain"]) for r in caplog.records] == [
            ("recover", "")
        ]

    def test_a_host_that_has_not_set_it_up_is_not_written_to(self, worker: StandIn) -> None:
        worker.set(logs.critical)
        code = "import pyxlsnap; pyxlsnap.create_snapshot('vm1')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class TestImport:
    def test_loads_neither_libxl_nor_what_only_some_need(self) -> None:
        code = (
            "import sys; before = set(sys.modules); import pyxlsnap\n"
            "print(*(set(sys.modules) - before))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        loaded = {name.split(".")[0] for name in done.stdout.split()}
        assert "pyxlsnap" in loaded
        assert not loaded & {"asyncio", "concurrent", "qemu", "tqdm", "cffi", "_cffi_backend"}
        assert not {"pyxlsnap.xen._ffi", "pyxlsnap.xen.ffi", "pyxlsnap.cli.app"} & set(
            done.stdout.split()
        )

    def test_takes_little_time(self, figure: Callable[[str], None]) -> None:
        """What it takes beside the modules of Python that it needs is ours."""
        python = "dataclasses, enum, json, logging, pathlib, secrets, socket, subprocess"
        nothing, of_python, all_of_it = (
            min(cpu_seconds(code) for _ in range(5))
            for code in ("pass", f"import {python}", "import pyxlsnap")
        )
        assert nothing < all_of_it
        figure(
            f"import pyxlsnap: {(all_of_it - nothing) * 1000:.0f} ms of CPU time, "
            f"{(of_python - nothing) * 1000:.0f} ms of it for Python's own modules"
        )


def cpu_seconds(code: str) -> float:
    """What a program of its own takes."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    return usage.ru_utime + usage.ru_stime
