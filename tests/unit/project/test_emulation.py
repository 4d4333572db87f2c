"""A fault of the lab's emulated processor is told from a fault of a guest, or of ours."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.harness.guests import blames_the_processor
from tests.project import PROJECT

# Seen in the lab: the last messages and the idle processors of silent guests; healthy ones.
FLAGS = (
    "[  558.270770] RSP: 0018:ffffca53801979c0 EFLAGS: c54cc466",
    "flags: c54c8236 vif ac i nz a p",
)
FULL_STACK = "cr2: fffffe0000001ff8"
ONCE = """
from pathlib import Path
from tests.lab.harness.guests import EmulationFault
def test():
    if not Path("seen").exists():
        Path("seen").touch()
        raise {}("no ticks")
"""


@pytest.mark.parametrize("text", [*FLAGS, FULL_STACK, FULL_STACK.upper()])
def test_what_no_processor_does(text: str) -> None:
    assert blames_the_processor(f"one line\n{text}\nanother line")


@pytest.mark.parametrize(
    "text",
    ["flags: 00000246 i z p", "RSP: 0018:ffff EFLAGS: 00210246", "cr2: 00007f33f7a59cd0", ""],
)
def test_what_a_processor_does(text: str) -> None:
    assert not blames_the_processor(text)


@pytest.mark.parametrize(("fault", "status"), [("EmulationFault", 0), ("TimeoutError", 1)])
def test_only_a_test_with_such_a_fault_is_run_again(
    tmp_path: Path, fault: str, status: int
) -> None:
    (line,) = (
        line for line in (PROJECT / "Makefile").read_text().splitlines() if line[:5] == "AGAIN"
    )
    (tmp_path / "test_it.py").write_text(ONCE.format(fault))
    options = line.partition(":=")[2].split()
    command = [sys.executable, "-m", "pytest", "-q", "-o", f"pythonpath={PROJECT}", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status, done
