"""Whatever somebody does between a create and a revert: the revert is refused, or it ends well."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rehearsal import CONDITIONS
from tests.rehearsal.condition import Condition
from tests.unit.support.rehearsal import Stage


@pytest.fixture
def stage(filesystem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    place = filesystem / tmp_path.name
    place.mkdir()
    found = Stage(tmp_path, place, monkeypatch)
    yield found
    found.close()
    shutil.rmtree(place)  # the filesystem is small, and the list long


def test_the_list_is_long_enough() -> None:
    assert len({c.name for c in CONDITIONS}) == len(CONDITIONS) >= 30
    assert sum(c.status == 0 for c in CONDITIONS) >= 8
    assert all(c.status in (0, 3, 5) for c in CONDITIONS)
    assert sum(c.lab for c in CONDITIONS) >= 8
    assert all(c.says or c.status == 0 for c in CONDITIONS)


def cells() -> Iterator[object]:
    """After a refusal and the undo the same revert works: for most, `make soak` sees that."""
    for c in CONDITIONS:
        if not c.xen_only:
            again = c.status == 3 and not c.final
            yield pytest.param(c, again and c.lab, id=str(c))
            if again and not c.lab:
                yield pytest.param(c, True, id=f"{c}, and taken back", marks=pytest.mark.soak)


@pytest.mark.parametrize(("condition", "again"), list(cells()))
def test_condition(stage: Stage, condition: Condition, again: bool) -> None:
    stage.do(condition.do)
    before = stage.photo()
    stage.begin()
    done = stage.revert(condition)
    said = f"{condition}: {done}"
    try:
        assert done.returncode == condition.status, said
        assert condition.says.format(**stage.names) in done.stderr, said
        if condition.status:
            assert stage.photo() == before, said
            assert not stage.was_touched(), said
        if condition.status == 5:
            assert stage.revert(condition, "--force").returncode == 0
    finally:
        stage.do(condition.undo)
    if again:
        done = stage.revert(condition, *condition.undone)
        assert done.returncode == 0, done
    if condition.status in (0, 5) or again:
        stage.check_back()
