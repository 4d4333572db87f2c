"""A slow disk under a QEMU: its flushes and opens wait as long as a test wants."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.unit.support.waiting import eventually


def build_slow_files(directory: Path) -> Path:
    """Make the library that goes into the QEMU."""
    library = directory / "slow_files.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return library


class SlowFiles:
    """The files that a QEMU opens; :attr:`environment` is for that QEMU.

    :param library: from :func:`build_slow_files`.
    :param directory: to be made.
    """

    def __init__(self, library: Path, directory: Path) -> None:
        self._stalled = directory
        directory.mkdir()
        self.environment: Mapping[str, str] = {
            "LD_PRELOAD": str(library),
            "STALLED": str(self._stalled),
        }

    def stall(self, operation: str, path: str) -> None:
        """Let each such operation on a file wait from now on: "sync" or "open"."""
        self._mark(operation, path).touch()

    def reached(self, operation: str, path: str) -> None:
        """Wait until QEMU waits for it."""
        assert eventually(self._mark(operation, path, " reached").exists)

    def go_on(self) -> None:
        """Let all operations that wait go on."""
        for mark in self._stalled.iterdir():
            mark.unlink()

    def _mark(self, operation: str, path: str, more: str = "") -> Path:
        return self._stalled / f"{operation} {Path(path).name}{more}"
