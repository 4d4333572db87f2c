"""The files of clones, and the journals of those that are being made, when they cannot be read."""

import json
from pathlib import Path

import pytest

from pyxlsnap import paths
from pyxlsnap.clone_file import all_clones, unfinished_clones
from pyxlsnap.errors import Refused
from pyxlsnap.journal import VERSION, Journal
from tests.unit.support import operations
from tests.unit.support.clones import CLONE, Origin
from tests.unit.support.values import OTHER_UUID
from tests.unit.support.world import World


@pytest.fixture
def origin(world: World) -> Origin:
    return Origin(world)


def half_made(text: str) -> None:
    """Leave a journal that this release cannot read."""
    path = Journal(OTHER_UUID).path
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def file_of_a_clone() -> Path:
    (path,) = paths.JOURNALS.glob("*.clone")
    return path


def test_the_file_of_a_clone_of_another_release_says_what_to_do(origin: Origin) -> None:
    origin.clone()
    path = file_of_a_clone()
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "version": VERSION + 1}))
    with pytest.raises(Refused, match="delete the clone with that release") as caught:
        all_clones()
    assert "snapshot-recover" not in str(caught.value)


def test_the_file_of_a_clone_that_is_damaged_says_what_to_do(origin: Origin) -> None:
    origin.clone()
    file_of_a_clone().write_text("{")
    with pytest.raises(Refused, match="which disks are the clone's") as caught:
        origin.clone(CLONE)
    assert "remove the journal" not in str(caught.value)


UNREADABLE = {
    "damaged": "{",
    "no entry": "[]",
    "of a newer release": json.dumps({"version": VERSION + 1, "operation": "clone"}),
    "without an operation": json.dumps({"version": VERSION}),
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_a_journal_that_may_be_of_a_clone_keeps_the_snapshot(origin: Origin, text: str) -> None:
    half_made(text)
    with pytest.raises(Refused, match=OTHER_UUID):
        operations.delete(origin.world.host, origin.cfg)
    assert origin.memory_path.exists()
    assert origin.cfg.exists()


def test_a_journal_of_another_operation_is_passed_over(origin: Origin) -> None:
    half_made(json.dumps({"version": VERSION + 1, "operation": "create"}))
    assert unfinished_clones() == []
    origin.clone()
