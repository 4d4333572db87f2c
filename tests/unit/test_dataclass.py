"""Classes made quickly behave as those of :mod:`dataclasses`, which serve as the example."""

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from dataclasses import field
from typing import Any

import pytest

from pyxlsnap import dataclass as module


def _class(make: Callable[..., Any], **options: bool) -> Any:
    class Value:
        """Has a field of every kind."""

        a: int
        b: str = field(repr=False)
        c: tuple[int, ...] = ()
        d: dict[str, int] = field(default_factory=dict, compare=False)

    return make(**options)(Value)


FROZEN = {"frozen": True, "slots": True}
OPTIONS = [{}, {"slots": True}, FROZEN, {**FROZEN, "kw_only": True}]


@pytest.fixture(params=OPTIONS, ids=str)
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A class of ours, and the same of the standard library."""
    ours = _class(module.dataclass, **request.param)
    return ours, _class(dataclasses.dataclass, **request.param)


def _outcome(of: Callable[[], Any]) -> Any:
    try:
        return of()
    except Exception as e:
        return type(e)


GIVEN: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1, "x"), {}),
    ((1,), {"b": "x"}),
    ((), {"b": "x", "a": 1, "c": (2,), "d": {"y": 1}}),
    ((1, "x", (2,), {"y": 1}), {}),
    ((), {}),
    ((1,), {}),
    ((1, "x"), {"a": 2}),
    ((1, "x"), {"other": 2}),
    ((1, "x", (), {}, 5), {}),
]


@pytest.mark.parametrize(("args", "named"), GIVEN)
def test_values_are_made_shown_and_refused_alike(
    both: tuple[Any, Any], args: tuple[Any, ...], named: dict[str, Any]
) -> None:
    ours, example = (_outcome(lambda cls=cls: cls(*args, **named)) for cls in both)  # type: ignore[misc]
    if isinstance(example, type):
        assert ours is example
        return
    assert repr(ours) == repr(example)
    assert dataclasses.asdict(ours) == dataclasses.asdict(example)
    assert dataclasses.replace(ours, a=9) != ours
    assert dataclasses.replace(ours, a=9).a == 9


def test_values_are_compared_and_hashed_alike(both: tuple[Any, Any]) -> None:
    for cls in both:
        one = cls(a=1, b="x", d={"y": 1})
        assert one == cls(a=1, b="x")
        assert one != cls(a=2, b="x")
        assert one != (1, "x", ())
    ours, example = (_outcome(lambda cls=cls: hash(cls(a=1, b="x"))) for cls in both)  # type: ignore[misc]
    assert ours == example


CHANGES: list[Callable[[Any], None]] = [
    lambda value: setattr(value, "a", 2),
    lambda value: delattr(value, "a"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_frozen_value_cannot_be_changed(
    both: tuple[Any, Any], change: Callable[[Any], None]
) -> None:
    ours, example = (_outcome(lambda cls=cls: change(cls(a=1, b="x"))) for cls in both)  # type: ignore[misc]
    assert ours is example


def test_their_parameters_are_told_alike(both: tuple[Any, Any]) -> None:
    ours, example = (inspect.signature(cls) for cls in both)
    assert str(ours.replace(return_annotation=None)) == str(example)


@module.dataclass(frozen=True, slots=True)
class Known:
    """At the top level, as pickle needs it."""

    a: int
    b: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.a < 0:
            raise ValueError("below zero")


def test_a_frozen_value_is_copied_and_pickled() -> None:
    value = Known(1, (2,))
    assert copy.copy(value) == copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == value


def test_a_class_may_check_its_values() -> None:
    with pytest.raises(ValueError, match="below"):
        Known(-1)


def test_the_options_that_are_not_known_are_refused() -> None:
    with pytest.raises(TypeError):
        _class(module.dataclass, order=True, eq=True)
