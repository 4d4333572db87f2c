"""Waits of tests, and the open descriptors of a process."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

_T = TypeVar("_T")

on_xen = pytest.mark.skipif(Path("/proc/xen/privcmd").exists(), reason="there is a Xen here")


def open_descriptors() -> int:
    """The number of descriptors of this process, with or without the one that counts."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def eventually(ask: Callable[[], _T]) -> _T:
    """The first true answer in the next seconds, else the last one."""
    end = time.monotonic() + 10
    while not (answer := ask()) and time.monotonic() < end:
        time.sleep(0.01)
    return answer
