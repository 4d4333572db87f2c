"""A host must notice nothing, and may do anything: with the real libxl, without Xen."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pyxlsnap
from pyxlsnap import api
from pyxlsnap.errors import Refused
from tests.unit.support import host_program
from tests.unit.support.scenarios import deaths, logs
from tests.unit.support.standin import StandIn
from tests.unit.support.waiting import on_xen

ROOT = Path(pyxlsnap.__file__).parent.parent


@on_xen
@pytest.mark.parametrize("host", host_program.HOSTS, ids=lambda host: host.__name__)
def test_a_host(host: Callable[[], None], worker: StandIn) -> None:
    worker.set(deaths.by_the_domains_name)
    program = [sys.executable, "-m", host_program.__name__, host.__name__, str(worker.here)]
    done = subprocess.run(
        program,
        env={"PATH": "/usr/bin:/usr/sbin:/bin:/sbin", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(worker.said())
    assert found["real"].startswith("XenUnavailable: cannot talk to Xen: ")
    assert found["monitor"].startswith("OperationFailed: the watch of 8a1f0c3e")
    assert "cannot talk to Xen" in found["monitor"]
    assert found["done"] == "snap"
    assert "the worker process was killed by signal 6: " in found["aborted"]
    assert "Assertion" in found["aborted"]
    ended = "was killed by signal 9; everything is as before"
    unknown = "ended with an unknown status; everything is as before"
    ends = (ended, unknown) if host in host_program.TAKE_STATUS else ended
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
    """Let this process open this number of descriptors, and no more."""
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


HIGH_LEVEL = "pyxlsnap; pyxlsnap.create_snapshot"
#: what its import may take, in units of what Python's own modules take that a call needs: it takes
#: 1.4 to 1.8
MOST = 2.5


class TestImport:
    def test_loads_neither_libxl_nor_what_only_some_need(self) -> None:
        code = (
            "import sys; before = set(sys.modules)\n"
            "import pyxlsnap; pyxlsnap.create_snapshot, pyxlsnap.Refused\n"
            "print(*(set(sys.modules) - before))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        loaded = {name.split(".")[0] for name in done.stdout.split()}
        assert "pyxlsnap" in loaded
        assert not loaded & {"asyncio", "concurrent", "qemu", "tqdm", "cffi", "_cffi_backend"}
        assert not {"pyxlsnap.xen._ffi", "pyxlsnap.xen.ffi", "pyxlsnap.cli.app"} & set(
            done.stdout.split()
        )

    def test_takes_little_time(self, figure: Callable[[str], None], tmp_path: Path) -> None:
        """Less than the modules of Python that a call needs; with its high level not much more.

        The limits are no seconds, because a machine may be slow. All modules are compiled in the
        first round, as those of an installed package are.
        """
        python = "dataclasses, enum, json, logging, pathlib, socket, subprocess"
        codes = ("pass", "import pyxlsnap", f"import {python}", f"import {HIGH_LEVEL}")
        rounds = [[cpu_seconds(code, tmp_path) for code in codes] for _ in range(7)]
        nothing, alone, of_python, all_of_it = map(min, zip(*rounds, strict=True))
        assert nothing < alone < of_python
        assert all_of_it - nothing < MOST * (of_python - nothing)
        figure(
            f"import pyxlsnap: {(alone - nothing) * 1000:.0f} ms of CPU time; its high level: "
            f"{(all_of_it - nothing) * 1000:.0f} ms, "
            f"{(of_python - nothing) * 1000:.0f} ms of it for Python's own modules"
        )


def cpu_seconds(code: str, compiled: Path) -> float:
    """The CPU time of a separate program.

    :param compiled: the directory for its compiled modules.
    """
    env = os.environ | {"PYTHONPYCACHEPREFIX": str(compiled), "PYTHONDONTWRITEBYTECODE": ""}
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], env)
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    return usage.ru_utime + usage.ru_stime
