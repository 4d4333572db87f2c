"""What is noted of a domain's last snapshot for the estimate of the next."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap import paths
from pyxlsnap.create import last_time
from pyxlsnap.create.last_time import recalled, remember

UUID = "6fd4aae6-40b8-46d5-b12f-e3eb4cd4c3a0"
KB = 1 << 20


@pytest.fixture(autouse=True)
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "LOCKS", tmp_path)
    return tmp_path / f"{UUID}.times"


def test_each_kind_of_snapshot_has_its_own() -> None:
    remember(UUID, False, 8.0, KB)
    assert recalled(UUID, False, KB) == 8.0
    assert recalled(UUID, True, KB) is None
    remember(UUID, True, 0.25, KB)
    assert (recalled(UUID, False, KB), recalled(UUID, True, KB)) == (8.0, 0.25)


@pytest.mark.parametrize(
    ("seconds", "middle"),
    [([8.0, 4.0], 4.0), ([1.0, 9.0, 2.0], 2.0), ([9.0, 9.0, 1.0, 2.0, 9.0], 2.0)],
)
def test_the_middle_one_of_the_last_three_counts(seconds: list[float], middle: float) -> None:
    """So one slow snapshot does not count for long."""
    for one in seconds:
        remember(UUID, True, one, KB)
    assert recalled(UUID, True, KB) == middle


@pytest.mark.parametrize("hours", [25, -25])
def test_it_counts_for_a_day(hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(UUID, True, 4.0, KB)
    then = time.time() + hours * 3600
    monkeypatch.setattr(time, "time", lambda: then)
    assert recalled(UUID, True, KB) is None
    remember(UUID, True, 5.0, KB)
    assert recalled(UUID, True, KB) == 5.0


def test_all_of_the_memory_of_a_suspended_domain_is_written() -> None:
    remember(UUID, False, 8.0, KB)
    remember(UUID, True, 0.25, KB)
    assert recalled(UUID, False, KB // 2) == 4.0
    assert recalled(UUID, True, KB // 2) == 0.25


def test_a_host_where_nothing_can_be_noted(noted: Path) -> None:
    noted.parent.rmdir()
    remember(UUID, False, 8.0, KB)
    assert recalled(UUID, False, KB) is None


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "3", '{"live": 3}', '{"live": [1]}', '{"live": ["a", 2]}'),
        *('{"live": [[1, 0, 9]]}', '{"live": [[NaN, 2, 9]]}', '{"live": [[1, Infinity, 9]]}'),
        *('{"live": null}', '{"live": [[1, 2]]}', '{"live": [[1, 2, NaN]]}', '{"live": [3, 4]}'),
    ],
)
def test_what_says_nothing_is_as_no_file(noted: Path, content: str) -> None:
    noted.write_text(content)
    assert recalled(UUID, True, KB) is None
    remember(UUID, True, 4.0, KB)
    assert recalled(UUID, True, KB) == 4.0


@given(st.binary(max_size=60))
def test_any_content_can_be_read(content: bytes) -> None:
    path = paths.LOCKS / f"{UUID}.times"
    path.write_bytes(content)
    last_time.recalled(UUID, True, KB)
