"""The errors: what may be caught as what, and the way from worker to caller."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given

import pyxlsnap
from pyxlsnap import errors
from pyxlsnap.errors import PyxlsnapError
from pyxlsnap.serialize import error_from_plain, error_to_plain
from tests.unit.support.errors import CLASSES, any_error

EXIT_CODES = {
    "PyxlsnapError": 1,
    "UsageError": 2,
    "ConfigError": 2,
    "Refused": 3,
    "XenUnavailable": 3,
    "DomainNotFound": 3,
    "AlreadyExists": 3,
    "Busy": 3,
    "BadMemoryFile": 3,
    "Risky": 5,
    "XenError": 1,
    "GuestTimeout": 1,
    "Aborted": 1,
    "QmpError": 1,
    "DiskError": 1,
    "ClosedError": 1,
    "ForkedError": 1,
    "WorkerDied": 1,
    "OperationFailed": 1,
    "Interrupted": 130,
    "GuestEnded": 1,
    "NeedsAttention": 4,
}


def attributes(error: PyxlsnapError) -> Iterator[tuple[str, object]]:
    for name in sorted(vars(error)):
        yield name, getattr(error, name)


@given(any_error())
def test_every_error_survives_as_plain_values(error: PyxlsnapError) -> None:
    there = error_from_plain(json.loads(json.dumps(error_to_plain(error))))
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert list(attributes(there)) == list(attributes(error))
    assert there.args == (error.message,)
    with pytest.raises(type(error)):
        raise there


def test_an_unknown_class_becomes_the_base() -> None:
    error = error_from_plain({"class": "FromTheFuture", "message": "m", "more": [1]})
    assert type(error) is PyxlsnapError
    assert (str(error), vars(error)["more"]) == ("m", (1,))


def test_every_class_has_its_documented_exit_code() -> None:
    assert {c.__name__: c.exit_code for c in CLASSES} == EXIT_CODES


@pytest.mark.parametrize(
    ("name", "bases"),
    [
        ("UsageError", [ValueError]),
        ("ConfigError", [errors.UsageError]),
        ("DomainNotFound", [errors.Refused, LookupError]),
        ("GuestTimeout", [errors.XenError, TimeoutError]),
        ("Aborted", [errors.XenError]),
        ("Interrupted", [errors.OperationFailed]),
        ("GuestEnded", [errors.OperationFailed]),
        ("NeedsAttention", [errors.OperationFailed]),
    ],
)
def test_may_be_caught_as(name: str, bases: list[type]) -> None:
    assert all(issubclass(getattr(errors, name), base) for base in bases)


def test_nothing_that_changed_something_is_a_refusal() -> None:
    refusals = {c.__name__ for c in CLASSES if issubclass(c, errors.Refused)}
    assert refusals == {n for n, code in EXIT_CODES.items() if code == 3}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_error_is_public_and_in_the_tree_of_the_docstring(cls: type[PyxlsnapError]) -> None:
    assert cls.__name__ in pyxlsnap.__all__
    assert getattr(pyxlsnap, cls.__name__) is cls
    assert errors.__doc__
    assert cls.__name__ in errors.__doc__


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.ConfigError("bad", file="a.cfg"), "a.cfg: bad"),
        (errors.ConfigError("bad", file="a.cfg", item="name"), "a.cfg: name: bad"),
        (errors.BadMemoryFile("truncated", path="/m"), "/m: truncated"),
        (errors.DiskError("full", vdev="xvda"), "xvda: full"),
        (errors.GuestTimeout("late", rc=-9, operation="x"), "late"),
    ],
)
def test_the_message_names_the_place(error: PyxlsnapError, text: str) -> None:
    assert str(error) == text
