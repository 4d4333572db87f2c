"""The file under a loop device: real ones."""

import threading
from pathlib import Path

import pytest

from pyxlsnap.linux import loop
from pyxlsnap.linux.loop import loop_file
from tests.unit.support.loop_files import looped


def test_the_file_that_it_has_open(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(4096))
    with looped(file) as device:
        found = file.stat()
        assert loop_file(device) == (found.st_dev, found.st_ino)
        with looped(device) as upper:
            assert loop_file(upper) == (device.stat().st_rdev, 0)
    assert loop_file(tmp_path / "none") is None
    assert loop_file(file) is None
    assert loop_file(Path("/dev/null")) is None


def test_two_threads_can_ask_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second does not take the question of the first for one without an answer."""
    both = threading.Barrier(2, timeout=20)

    def ask(_device: Path, answered: threading.Event) -> tuple[tuple[int, int]]:
        both.wait()
        answered.set()
        return ((1, 2),)

    monkeypatch.setattr(loop, "_ask", ask)
    found: list[tuple[int, int] | None] = []
    device = tmp_path / "loop0"
    threads = [threading.Thread(target=lambda: found.append(loop_file(device))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(1, 2), (1, 2)]
