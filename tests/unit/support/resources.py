"""The resources of a process, before and after; and separate Python processes."""

import subprocess
import sys
import threading
from pathlib import Path

import pyxlsnap
from tests.unit.support.waiting import open_descriptors

#: the folder of the package
PACKAGE = Path(pyxlsnap.__file__).parent


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent
    )


class Resources:
    """The number of threads and descriptors of this process."""

    def __init__(self) -> None:
        self._threads = threading.active_count()
        self._descriptors = open_descriptors()

    def assert_unchanged(self) -> None:
        assert threading.active_count() == self._threads
        assert open_descriptors() == self._descriptors
