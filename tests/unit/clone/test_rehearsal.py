"""Whatever somebody does between a create and a clone: the clone is refused, or it ends well."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rehearsal.clones import CLONE_CONDITIONS, REPLACE_CONDITIONS
from tests.rehearsal.condition import Condition
from tests.unit.support.rehearsal import CloneStage


@pytest.fixture
def stage(
    filesystem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CloneStage]:
    place = filesystem / tmp_path.name
    place.mkdir()
    found = CloneStage(tmp_path, place, monkeypatch)
    yield found
    found.close()
    shutil.rmtree(place)  # the filesystem is small, and the lists long


@pytest.mark.parametrize(
    ("conditions", "least"), [(CLONE_CONDITIONS, 25), (REPLACE_CONDITIONS, 15)]
)
def test_the_lists(conditions: tuple[Condition, ...], least: int) -> None:
    assert len({c.name for c in conditions}) == len(conditions) >= least
    assert all(c.status in (0, 3, 5) for c in conditions)
    assert all(c.says or c.status == 0 for c in conditions)


def cells(conditions: tuple[Condition, ...]) -> Iterator[object]:
    """After a refusal and the undo the same clone works: for most, `make soak` sees that."""
    for number, c in enumerate(conditions):
        again = c.status == 3
        seen_now = again and number % 8 == 0
        yield pytest.param(c, seen_now, id=str(c))
        if again and not seen_now:
            yield pytest.param(c, True, id=f"{c}, and taken back", marks=pytest.mark.soak)


@pytest.mark.parametrize(("condition", "again"), list(cells(CLONE_CONDITIONS)))
def test_condition(stage: CloneStage, condition: Condition, again: bool) -> None:
    see(stage, condition, again)


@pytest.mark.parametrize(("condition", "again"), list(cells(REPLACE_CONDITIONS)))
def test_condition_of_a_replace(stage: CloneStage, condition: Condition, again: bool) -> None:
    assert stage.clone(condition).returncode == 0
    see(stage, condition, again, "--replace")


def see(stage: CloneStage, condition: Condition, again: bool, *more: str) -> None:
    """The condition is there, and a clone is asked for; then the condition is taken back."""
    stage.do(condition.do)
    before, domains = stage.photo(), stage.domains()
    done = stage.clone(condition, *more)
    said = f"{condition}: {done}"
    try:
        assert done.returncode == condition.status, said
        assert condition.says.format(**stage.names) in done.stderr, said
        if condition.status:
            assert stage.photo() == before, said
        if condition.status == 5:
            assert stage.clone(condition, "--force", *more).returncode == 0
    finally:
        stage.do(condition.undo)
    if again:
        done = stage.clone(condition, *more)
        assert done.returncode == 0, done
    for other in domains.keys() - {"c1", "kept"}:
        assert stage.domains()[other] == domains[other]
    if condition.status != 3 or again:
        stage.check_cloned()
