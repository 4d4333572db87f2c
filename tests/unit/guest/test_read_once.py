"""What is kept of a memory file for many operations, and when the file is read again."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pyxlsnap import cfgfile, memory
from pyxlsnap.errors import BadMemoryFile
from pyxlsnap.guest import read_once, snapshot
from pyxlsnap.guest.snapshot import Saved
from pyxlsnap.linux import files
from pyxlsnap.model import SnapshotConfig
from tests.unit.support import operations
from tests.unit.support.world import World


def ignore() -> None:
    """The file may be read to its end."""


class Wanted(Exception):
    """Something else is to be done."""


@pytest.fixture(autouse=True)
def _nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_once, "_kept", None)
    monkeypatch.setattr(files, "_SETTLED_S", -1.0)


@dataclass
class Snapshot:
    """A snapshot that many operations need."""

    cfgfile: str
    wanted: SnapshotConfig

    @property
    def path(self) -> Path:
        assert self.wanted.memory_path
        return Path(self.wanted.memory_path)

    def read(self) -> Saved:
        return read_once.read_saved(self.wanted, self.cfgfile, ignore)

    def keep(self, check: Callable[[], None] = ignore) -> None:
        read_once.keep(self.wanted, self.cfgfile, check)


@pytest.fixture
def taken(world: World) -> Snapshot:
    world.guest(world.image("xvda"))
    made = operations.create(world.host, "vm1", SnapshotConfig(name="snap"))
    return Snapshot(made.cfgfile, cfgfile.read(Path(made.cfgfile)))


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The memory files that were read to their ends."""
    found: list[str] = []
    walk = memory.walk

    def walking(file: Any, name: str, **options: Any) -> Any:
        found.append(name)
        return walk(file, name, **options)

    monkeypatch.setattr(snapshot, "walk", walking)
    return found  # type: ignore[return-value]


def test_an_unchanged_file_is_read_once(taken: Snapshot, walks: list[str]) -> None:
    fresh = taken.read()
    for _ in range(3):
        taken.keep()
        assert taken.read() == fresh
    assert len(walks) == 2


def touched(path: Path) -> None:
    os.utime(path)


def replaced_by_a_copy(path: Path) -> None:
    copy = path.with_suffix(".copy")
    shutil.copy2(path, copy)
    copy.rename(path)


def written_to_and_dated_back(path: Path) -> None:
    found = path.stat()
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(first)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.parametrize("change", [touched, replaced_by_a_copy, written_to_and_dated_back])
def test_a_changed_file_is_read_again(
    taken: Snapshot, walks: list[str], change: Callable[[Path], None]
) -> None:
    taken.keep()
    before = taken.read()
    assert len(walks) == 1
    change(taken.path)
    assert taken.read().config == before.config
    assert len(walks) == 2
    taken.keep()
    taken.read()
    assert len(walks) == 3


def test_another_file_is_read(taken: Snapshot, walks: list[str], tmp_path: Path) -> None:
    taken.keep()
    path = taken.path
    other = path.with_name("other.save")
    path.rename(other)  # the same file under another name, but for the time of its change
    with pytest.raises(BadMemoryFile):
        taken.read()
    assert len(walks) == 1


def test_a_damaged_file_is_not_kept(taken: Snapshot, walks: list[str]) -> None:
    taken.keep()
    path = taken.path
    os.truncate(path, path.stat().st_size - 5)
    taken.keep()
    with pytest.raises(BadMemoryFile):
        taken.read()
    assert len(walks) == 3


def test_a_file_that_was_just_changed_is_not_kept(
    taken: Snapshot, walks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_SETTLED_S", 3600.0)
    taken.keep()
    assert walks == []
    taken.read()
    assert len(walks) == 1


def test_the_reading_ends_when_something_is_to_be_done(taken: Snapshot) -> None:
    def wanted() -> NoReturn:
        raise Wanted

    with pytest.raises(Wanted):
        taken.keep(wanted)
    assert read_once._kept is None
    assert taken.read().config.name == "vm1"
