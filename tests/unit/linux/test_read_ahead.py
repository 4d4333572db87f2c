"""Reading a file ahead: what has data, and no more than there is memory for."""

import os
from pathlib import Path

import pytest

from pyxlsnap import paths
from pyxlsnap.linux.read_ahead import read_ahead

MIB = 1 << 20


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "PROC", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  65536 kB\nBuffers: 3 kB\n")
    return tmp_path


def reads(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[tuple[int, int]]]:
    """What the function returns, and start and end of each of its reads."""
    found: list[tuple[int, int]] = []
    real = os.sendfile

    def sendfile(out: int, fd: int, offset: int, count: int) -> int:
        sent = real(out, fd, offset, count)
        found.append((offset, offset + sent))
        return sent

    monkeypatch.setattr(os, "sendfile", sendfile)
    with path.open("rb") as file:
        return read_ahead(file.fileno(), lambda: None), found


def test_all_of_a_file_is_read(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = proc / "file"
    path.write_bytes(b"x" * (9 * MIB + 5))
    count, found = reads(path, monkeypatch)
    assert count == 9 * MIB + 5
    assert [start for start, _ in found] == [0, *(end for _, end in found[:-1])]


def test_holes_are_not_read(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = proc / "file"
    with path.open("wb") as file:
        for at in (0, 64 * MIB):
            file.seek(at)
            file.write(b"x" * MIB)
        file.truncate(128 * MIB)
        os.fsync(file.fileno())
    count, found = reads(path, monkeypatch)
    assert count == 2 * MIB
    assert not [start for start, _ in found if MIB <= start < 64 * MIB]


def test_no_more_than_a_quarter_of_the_available_memory(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = proc / "file"
    path.write_bytes(b"x" * (20 * MIB))
    assert reads(path, monkeypatch)[0] == 16 * MIB


def test_nothing_if_the_kernel_does_not_tell(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (proc / "meminfo").write_text("MemTotal: 9 kB\n")
    path = proc / "file"
    path.write_bytes(b"x" * MIB)
    assert reads(path, monkeypatch) == (0, [])


def test_a_cancel_ends_it(proc: Path) -> None:
    path = proc / "file"
    path.write_bytes(b"x" * MIB)

    def check() -> None:
        raise KeyboardInterrupt

    with path.open("rb") as file, pytest.raises(KeyboardInterrupt):
        read_ahead(file.fileno(), check)


def test_nothing_is_read_where_the_kernel_tells_nothing_of_its_memory(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (proc / "file").write_bytes(b"x" * MIB)
    (proc / "meminfo").unlink()
    assert reads(proc / "file", monkeypatch) == (0, [])
