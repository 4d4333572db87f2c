"""Every class of errors, errors of every class, and what a refusal says."""

import inspect
from collections.abc import Callable

import pytest
from hypothesis import strategies as st

from pyxlsnap import errors
from pyxlsnap.errors import PyxlsnapError, Refused

CLASSES = [
    c
    for _, c in inspect.getmembers(errors, inspect.isclass)
    if issubclass(c, PyxlsnapError) and c.__module__ == errors.__name__
]
_TEXT = st.text(max_size=20)
_LINES = st.lists(_TEXT, max_size=3).map(tuple)
_VALUES: dict[str, st.SearchStrategy[object]] = {
    "rc": st.none() | st.integers(-100, 0),
    "refused": st.booleans(),
    "log": _LINES,
    "reasons": _LINES,
    "undone": _LINES,
    "left": _LINES,
    "nearest": _LINES,
}


@st.composite
def any_error(draw: st.DrawFn) -> PyxlsnapError:
    cls = draw(st.sampled_from(CLASSES))
    parameters = list(inspect.signature(cls).parameters)[1:]
    return cls(draw(_TEXT), **{p: draw(_VALUES.get(p, _TEXT)) for p in parameters})


def refusal(check: Callable[[], object]) -> str:
    """The one line with which a check refuses."""
    with pytest.raises(Refused) as caught:
        check()
    assert "\n" not in str(caught.value)
    return str(caught.value)
