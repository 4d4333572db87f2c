"""A fault of the lab's emulated processor is told from a fault of a guest, or of ours."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.harness.guests import has_impossible_flags
from tests.project import PROJECT

# Seen in the lab: a silent guest's last message and its idle processor; healthy ones.
OOPS = "[  558.270770] RSP: 0018:ffffca53801979c0 EFLAGS: c54cc466"
ONCE = """
from pathlib import Path
from tests.lab.harness.guests import EmulationFault
def test():
    if not Path("seen").exists():
        Path("seen").touch()
        raise {}("no ticks")
"""


@pytest.mark.parametrize("text", [OOPS, "flags: c54c8236 vif ac i nz a p"])
def test_flags_that_no_processor_has(text: str) -> None:
    assert has_impossible_flags(f"one line\n{text}\nanother line")


@pytest.mark.parametrize("text", ["flags: 00000246 i z p", "RSP: 0018:ffff EFLAGS: 00210246", ""])
def test_flags_of_a_processor(text: str) -> None:
    assert not has_impossible_flags(text)


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
