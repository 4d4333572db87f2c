"""The space of an operation, summed for each filesystem."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap.linux.room import Room

FREE = 1000


@pytest.fixture(autouse=True)
def _free(monkeypatch: pytest.MonkeyPatch) -> None:
    class Filesystem:
        f_bavail, f_frsize = FREE, 1

    monkeypatch.setattr(os, "statvfs", lambda _: Filesystem)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 600))))
def test_what_is_left_is_what_nobody_else_claims(claims: list[tuple[str, int]]) -> None:
    class Filesystem:
        f_bavail, f_frsize = FREE, 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: Filesystem)
        found, last = Room(), dict[str, int]()
        for what, size in claims:
            others = sum(other for name, other in last.items() if name != what)
            assert found.claim(what, Path("/"), size) == max(0, FREE - others)
            last[what] = size


def test_another_filesystem_has_its_own(tmp_path: Path) -> None:
    found = Room()
    found.claim("memory file", tmp_path, 900)
    assert found.claim("copy", Path("/proc"), 500) == FREE
    assert found.claim("other", tmp_path, 500) == FREE - 900


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Room().claim("copy", tmp_path / "none", 1)
