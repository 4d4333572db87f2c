"""The limits of a process, in processes of their own."""

import resource
import subprocess
import sys

import pytest

_RAISED = """
import resource, sys
from pyxlsnap.errors import Refused
from pyxlsnap.linux import limits
if "may not" in sys.argv:
    def refuse(limit, values):
        hard = resource.getrlimit(limit)[1]
        if hard != -1 and (values[1] == -1 or values[1] > hard):
            raise ValueError("not allowed to raise maximum limit")
        set_(limit, values)
    set_, resource.setrlimit = resource.setrlimit, refuse
limits.raise_limits()
try:
    limits.refuse_limits()
    print("fine")
except Refused as e:
    print(e)
"""
OPTIONS = [("f", 64), ("n", 24), ("t", 10), ("v", 400_000), ("d", 200_000)]


def found(ulimit: str, *words: str) -> str:
    command = ["sh", "-c", f'ulimit {ulimit}; exec "$@"', "sh", sys.executable, "-c", _RAISED]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(("option", "value"), OPTIONS)
def test_a_soft_limit_is_raised(option: str, value: int) -> None:
    assert found(f"-S{option} {value}", "may not") == "fine"


@pytest.mark.parametrize(("option", "value"), OPTIONS)
def test_a_hard_limit_that_cannot_be_raised_is_refused(option: str, value: int) -> None:
    said = found(f"-{option} {value}", "may not")
    assert "may not raise it" in said
    assert f"ulimit -{option}" in said


def test_without_limits_nothing_is_refused() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert found("-S -c 0", "may not") == "fine"
