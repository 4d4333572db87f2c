"""What is kept of a memory file for many reverts, and when the file is read again."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pyxlsnap import memory
from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import BadMemoryFile
from pyxlsnap.guest import snapshot
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.request import RevertRequest
from pyxlsnap.revert import saved
from pyxlsnap.revert.operation import read_cfgfile
from tests.unit.support import operations
from tests.unit.support.world import World


def ignore() -> None:
    """The file may be read to its end."""


class Wanted(Exception):
    """Something else is to be done."""


@pytest.fixture(autouse=True)
def _nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "_kept", None)
    monkeypatch.setattr(saved, "_SETTLED_S", -1.0)


@pytest.fixture
def request_(world: World) -> RevertRequest:
    world.guest(world.image("xvda"))
    taken = operations.create(world.host, "vm1", SnapshotConfig(name="snap"))
    return read_cfgfile(RevertRequest(domain="vm1", cfgfile=taken.cfgfile))


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


def path_of(request: RevertRequest) -> Path:
    assert request.config
    assert request.config.memory_path
    return Path(request.config.memory_path)


def test_an_unchanged_file_is_read_once(request_: RevertRequest, walks: list[str]) -> None:
    fresh = saved.read_saved(request_, Cancel())
    for _ in range(3):
        saved.keep(request_, ignore)
        assert saved.read_saved(request_, Cancel()) == fresh
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
    request_: RevertRequest, walks: list[str], change: Callable[[Path], None]
) -> None:
    saved.keep(request_, ignore)
    before = saved.read_saved(request_, Cancel())
    assert len(walks) == 1
    change(path_of(request_))
    assert saved.read_saved(request_, Cancel()).config == before.config
    assert len(walks) == 2
    saved.keep(request_, ignore)
    saved.read_saved(request_, Cancel())
    assert len(walks) == 3


def test_another_file_is_read(request_: RevertRequest, walks: list[str], tmp_path: Path) -> None:
    saved.keep(request_, ignore)
    path = path_of(request_)
    other = path.with_name("other.save")
    path.rename(other)  # the same file under another name, but for the time of its change
    with pytest.raises(BadMemoryFile):
        saved.read_saved(request_, Cancel())
    assert len(walks) == 1


def test_a_damaged_file_is_not_kept(request_: RevertRequest, walks: list[str]) -> None:
    saved.keep(request_, ignore)
    path = path_of(request_)
    os.truncate(path, path.stat().st_size - 5)
    saved.keep(request_, ignore)
    with pytest.raises(BadMemoryFile):
        saved.read_saved(request_, Cancel())
    assert len(walks) == 3


def test_a_file_that_was_just_changed_is_not_kept(
    request_: RevertRequest, walks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved, "_SETTLED_S", 3600.0)
    saved.keep(request_, ignore)
    assert walks == []
    saved.read_saved(request_, Cancel())
    assert len(walks) == 1


def test_the_reading_ends_when_something_is_to_be_done(request_: RevertRequest) -> None:
    def wanted() -> NoReturn:
        raise Wanted

    with pytest.raises(Wanted):
        saved.keep(request_, wanted)
    assert saved._kept is None
    assert saved.read_saved(request_, Cancel()).config.name == "vm1"
