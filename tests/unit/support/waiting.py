"""Waits of tests, and the open descriptors of a process."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

on_xen = pytest.mark.skipif(Path("/proc/xen/privcmd").exists(), reason="there is a Xen here")


def open_descriptors() -> int:
    """The number of descriptors of this process, with or without the one that counts."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def eventually(true: Callable[[], bool]) -> bool:
    """Whether something comes true in the next seconds."""
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()
