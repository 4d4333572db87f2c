"""The JSON Schema of ``--json``: it takes every document there is, and nothing else."""

import json
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from docs.commands import commands
from docs.schema import schema
from pyxlsnap.cli import app
from pyxlsnap.cli.parser import build_parser
from pyxlsnap.errors import PyxlsnapError
from pyxlsnap.results import Recovered
from pyxlsnap.serialize import error_to_plain
from tests.unit.support.errors import any_error
from tests.unit.support.results import CLONED, PLAN, REVERTED, SNAPSHOT

SCHEMA = Draft202012Validator(schema())
COMMANDS = tuple(commands(build_parser()))
RESULTS: dict[str, list[Any]] = {
    "snapshot-create": [SNAPSHOT, PLAN],
    "snapshot-revert": [REVERTED, replace(PLAN, operation="revert", seconds_suspended=None)],
    "snapshot-clone": [CLONED, replace(PLAN, operation="clone", seconds_suspended=None)],
    "snapshot-recover": [
        Recovered((), rolled_back=True),
        Recovered(("done",), rolled_back=False, reverted=REVERTED),
    ],
}
CASES = [(command, result) for command, results in RESULTS.items() for result in results]


def document(command: str, **content: Any) -> dict[str, Any]:
    found = json.loads(app._document(command, **content))
    assert isinstance(found, dict)
    return found


def test_it_is_a_schema_and_knows_every_command() -> None:
    Draft202012Validator.check_schema(SCHEMA.schema)
    assert set(RESULTS) == set(COMMANDS)


@pytest.mark.parametrize(("command", "result"), CASES)
def test_a_result(command: str, result: Any) -> None:
    SCHEMA.validate(document(command, exit_code=0, result=asdict(result)))


@pytest.mark.parametrize(("command", "result"), CASES)
def test_a_result_with_a_member_more_or_less(command: str, result: Any) -> None:
    values = asdict(result)
    for wrong in (
        values | {"more": 1},
        *({k: v for k, v in values.items() if k != f.name} for f in fields(result)),
        *(values | {f.name: [[]]} for f in fields(result)),
    ):
        assert not SCHEMA.is_valid(document(command, exit_code=0, result=wrong))


@given(any_error(), st.sampled_from([*COMMANDS, ""]))
def test_an_error(error: PyxlsnapError, command: str) -> None:
    values = error_to_plain(error)
    code = error.exit_code
    SCHEMA.validate(document(command, exit_code=code, error=values))
    for name in values:
        less = {k: v for k, v in values.items() if k != name}
        assert not SCHEMA.is_valid(document(command, exit_code=code, error=less))
    assert not SCHEMA.is_valid(document(command, exit_code=code, error=values | {"more": 1}))
    assert not SCHEMA.is_valid(document(command, exit_code=0, error=values))


def test_a_document_has_a_result_or_an_error() -> None:
    result, error = asdict(SNAPSHOT), error_to_plain(PyxlsnapError("x"))
    create = "snapshot-create"
    assert not SCHEMA.is_valid(document(create, exit_code=0))
    assert not SCHEMA.is_valid(document(create, exit_code=0, result=result, error=error))
    assert not SCHEMA.is_valid(document("snapshot-revert", exit_code=0, result=result))
    assert not SCHEMA.is_valid(document(create, exit_code=1, result=result))
    assert not SCHEMA.is_valid({**document(create, exit_code=0, result=result), "pyxlsnap": 2})
