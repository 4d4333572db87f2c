"""The fuzzer: a short run of each target, what failed once, and that it would find something."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyxlsnap import cfgfile
from pyxlsnap.memory import read_header, walk
from tests.fuzz import inputs
from tests.fuzz.targets import TARGETS, bounded

#: the inputs of each target: some seconds on an idle core
RUNS = {"cfgfile": 1_000, "memory": 700, "stream": 80}
#: Config files of 64 KiB take ten times as long as short ones, and reach no more of the code.
LIMITS = {"cfgfile": ["-max_len=4096"], "memory": [], "stream": []}
#: a run takes seconds; it hangs if it takes as long as this
PATIENCE_S = 500


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the fuzzer, reproducibly: the same inputs each time."""
    command = [sys.executable, *arguments, "-seed=1", "-verbosity=1"]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE_S,
        errors="replace",
    )  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_finds_nothing(name: str, tmp_path: Path) -> None:
    # How long an input may take is for the long run: this machine may be slow.
    options = [f"-runs={RUNS[name]}", "-timeout=120", *LIMITS[name]]
    done = fuzz("-m", "tests.fuzz", name, f"--found={tmp_path}", *options)
    assert done.returncode == 0, done.stdout
    # Some of the inputs that it begins with may come on top.
    assert (said := re.search(r"Done (\d+) runs", done.stdout))
    assert int(said[1]) >= RUNS[name]


def test_it_starts_from_valid_files() -> None:
    for data in inputs.cfgfiles():
        assert cfgfile.parse(data, file="x").disks is not None
    containers = []
    for data in inputs.memory_files()[:3]:
        file = io.BytesIO(data)
        assert read_header(file, "x").metadata is not None
        containers.append(walk(file, "x").container)
    assert containers == ["pv", "hvm", "hvm"]


@pytest.mark.parametrize("name", TARGETS)
def test_what_it_starts_from_is_read_rightly(name: str) -> None:
    with TARGETS[name].reading() as read:
        for seed in TARGETS[name].seeds():
            with bounded():
                read(seed)


@pytest.mark.parametrize("path", sorted(inputs.CORPUS.glob("*/*")), ids=lambda path: path.name)
def test_what_failed_once(path: Path) -> None:
    with TARGETS[path.parent.name].reading() as read, bounded():
        read(path.read_bytes())


@pytest.mark.soak
@pytest.mark.parametrize(
    ("fault", "kept", "says"),
    [
        ("raises", "crash-", "KeyError"),
        ("aborts", "crash-", "Fatal Python error: Aborted"),
        ("takes_memory", "crash-", "MemoryError"),
        ("takes_for_ever", "timeout-", "timeout"),
    ],
)
def test_a_fault_is_found_and_its_input_kept(
    fault: str, kept: str, says: str, tmp_path: Path
) -> None:
    # (On a busy machine any input may take some seconds.)
    timeout = f"-timeout={2 if kept == 'timeout-' else 120}"
    planted = ("-m", "tests.unit.support.planted", fault, "cfgfile", f"--found={tmp_path}", timeout)
    done = fuzz(*planted, "-runs=1000000")
    assert done.returncode != 0, done.stdout
    assert says in done.stdout
    (path,) = tmp_path.glob(f"{kept}*")
    assert b"[[" in path.read_bytes()
    assert str(path) in done.stdout.splitlines()[-1]
    again = fuzz(*planted, str(path))
    assert again.returncode == done.returncode, again.stdout
