"""Whether a daemon runs: it is found by its name, and missed only where all processes are seen."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pyxlsnap import paths
from pyxlsnap.linux import daemons
from pyxlsnap.linux.daemons import may_run
from tests.unit.support.waiting import eventually


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The processes of a machine on which nothing else runs."""
    monkeypatch.setattr(paths, "PROC", tmp_path)
    monkeypatch.setattr(daemons, "_found", {})
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/pid").symlink_to("pid:[4026531836]")
    return tmp_path


def process(proc: Path, pid: int, comm: str, command: str = "") -> Path:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "comm").write_text(f"{comm}\n")
    (proc / str(pid) / "cmdline").write_text(command)
    return proc / str(pid)


@pytest.mark.parametrize(
    ("comm", "command", "runs"),
    [
        ("xenconsoled", "", True),
        (".xenconsoled-wr", "", True),
        ("memcheck-amd64-", "valgrind\0/usr/sbin/xenconsoled\0", True),
        ("xenstored", "/usr/sbin/xenstored\0", False),
        ("kthreadd", "", False),
    ],
)
def test_is_found_by_its_name(proc: Path, comm: str, command: str, runs: bool) -> None:
    process(proc, 7, comm, command)
    assert may_run("xenconsoled") is runs


def test_is_looked_for_again(proc: Path) -> None:
    found = process(proc, 7, "xenconsoled")
    assert may_run("xenconsoled")
    (found / "comm").write_text("another\n")
    assert not may_run("xenconsoled")
    shutil.rmtree(found)
    assert not may_run("xenconsoled")
    process(proc, 9, "xenconsoled")
    assert may_run("xenconsoled")


def test_may_run_where_not_all_processes_are_seen(proc: Path) -> None:
    (proc / "self/ns/pid").unlink()
    (proc / "self/ns/pid").symlink_to("pid:[4026532000]")
    assert may_run("xenconsoled")


def test_may_run_where_a_process_hides(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> str:
        raise PermissionError

    process(proc, 7, "hidden")
    monkeypatch.setattr(daemons, "_read", refuse)
    assert may_run("xenconsoled")


def test_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemons, "_found", {})
    monkeypatch.setattr(daemons, "_ALL_PIDS", str(Path("/proc/self/ns/pid").readlink()))
    name = f"own{os.getpid()}d"
    assert not may_run(name)
    shutil.copy("/bin/sh", tmp_path / name)
    with subprocess.Popen([tmp_path / name, "-c", "read line"], stdin=subprocess.PIPE) as running:
        assert eventually(lambda: may_run(name))
        assert may_run(name)
        running.communicate(b"\n")
    assert not may_run(name)
