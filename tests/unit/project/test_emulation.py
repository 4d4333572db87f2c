"""A fault of the lab's emulated processor is told from a fault of a guest, or of ours."""

import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.lab.harness.dom0 import CommandTimeout, Completed, Dom0
from tests.lab.harness.emulation import (
    EmulationFault,
    blames_the_processor,
    blaming_the_processor,
)
from tests.project import PROJECT

# Seen in the lab: the last messages and the idle processors of silent guests; healthy ones.
FLAGS = (
    "[  558.270770] RSP: 0018:ffffca53801979c0 EFLAGS: c54cc466",
    "flags: c54c8236 vif ac i nz a p",
    "[  274.922171] RSP: 0018:ffffc9000001b8c8 EFLAGS: 066cd446",
)
#: each with a bit below the sixteenth that is reserved
LOW_FLAGS = ("EFLAGS: 00008246", "EFLAGS: 0000024e", "EFLAGS: 00000266")
FULL_STACK = "cr2: fffffe0000001ff8"
ONCE = """
from pathlib import Path
from tests.lab.harness.emulation import EmulationFault
def test():
    if not Path("seen").exists():
        Path("seen").touch()
        raise {}("no ticks")
"""
#: with a dom0 whose guests have said something
IN_A_LAB = """
from pathlib import Path
from types import SimpleNamespace
import pytest
@pytest.fixture
def lab():
    said = SimpleNamespace(out="{}")
    return SimpleNamespace(dom0=SimpleNamespace(run=lambda *_, **__: said))
def test(lab):
    first = not Path("seen").exists()
    Path("seen").touch()
    assert not first, "the guest crashed"
"""


@pytest.mark.parametrize("text", [*FLAGS, *LOW_FLAGS, FULL_STACK, FULL_STACK.upper()])
def test_what_no_processor_does(text: str) -> None:
    assert blames_the_processor(f"one line\n{text}\nanother line")


@pytest.mark.parametrize(
    "text",
    [
        "flags: 00000246 i z p",
        "RSP: 0018:ffff EFLAGS: 00210246",
        # At the end of a kernel thread's trace, or of a page that was restored as zeros.
        "RIP: 0000:0x0 EFLAGS: 00000000",
        "cr2: 00007f33f7a59cd0",
        "",
    ],
)
def test_what_a_processor_does(text: str) -> None:
    assert not blames_the_processor(text)


DEAD = Completed(-9, "", "")


def _dom0(said: str | Exception) -> Dom0:
    """A dom0 whose guests have said that."""
    outcome = said if isinstance(said, Exception) else Completed(0, said, "")
    return Mock(spec=Dom0, run=Mock(side_effect=[outcome]))


class TestBlaming:
    """A test that has failed for another reason than a silent guest."""

    @pytest.mark.parametrize("said", [FLAGS[0], FULL_STACK])
    @pytest.mark.parametrize("failure", [AssertionError, pytest.fail.Exception])  # (a timeout)
    def test_a_guest_that_was_harmed(self, failure: type[BaseException], said: str) -> None:
        fault = pytest.raises(EmulationFault, match="the guest crashed")
        with fault as caught, blaming_the_processor(_dom0(said)):
            raise failure("the guest crashed")
        assert isinstance(caught.value.__cause__, failure)

    @pytest.mark.parametrize(
        "said", ["", "EFLAGS: 00000246", CommandTimeout("grep", DEAD), OSError("no machine")]
    )
    def test_another_failure_stays(self, said: str | Exception) -> None:
        failure = pytest.raises(AssertionError, match="the guest crashed")
        with failure, blaming_the_processor(_dom0(said)):
            raise AssertionError("the guest crashed")

    def test_a_test_that_passes_looks_at_nothing(self) -> None:
        with blaming_the_processor(Mock(spec=[])):
            pass


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (ONCE.format("EmulationFault"), 0),
        (ONCE.format("TimeoutError"), 1),
        (IN_A_LAB.format("EFLAGS: 066cd446"), 0),
        (IN_A_LAB.format("EFLAGS: 00000246"), 1),
    ],
    ids=["told", "silent", "harmed", "well"],
)
def test_only_a_test_with_such_a_fault_is_run_again(tmp_path: Path, text: str, status: int) -> None:
    (line,) = (
        line for line in (PROJECT / "Makefile").read_text().splitlines() if line[:5] == "AGAIN"
    )
    (tmp_path / "test_it.py").write_text(text)
    (tmp_path / "conftest.py").write_text("from tests.lab.conftest import pytest_runtest_call\n")
    options = line.partition(":=")[2].split()
    command = [sys.executable, "-m", "pytest", "-q", "-o", f"pythonpath={PROJECT}", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status, done
