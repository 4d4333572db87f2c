"""SECURITY.md names what there is."""

import re

import pytest

from tests.project import PROJECT

TEXT = (PROJECT / "SECURITY.md").read_text()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(tests/[\w./]+)`", TEXT))))
def test_a_place_that_it_names_is_there(path: str) -> None:
    assert (PROJECT / path).exists()


def test_it_names_the_fuzzers_and_the_rehearsal_list() -> None:
    assert {"tests/fuzz", "tests/rehearsal"} <= set(re.findall(r"`(tests/\w+)`", TEXT))
