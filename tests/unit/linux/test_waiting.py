"""Waiting for a condition."""

import time

import pytest

from pyxlsnap.linux.waiting import remaining, until


@pytest.mark.parametrize("asked", [1, 2, 5])
def test_a_condition_that_comes_to_hold(asked: int) -> None:
    answers = iter([False] * (asked - 1) + [True])
    assert until(lambda: next(answers), within_s=60, poll_s=0.001)
    assert not list(answers)


def test_a_condition_that_never_holds_is_asked_until_the_end() -> None:
    asked: list[float] = []
    begun = time.monotonic()

    def never() -> bool:
        asked.append(time.monotonic())
        return False

    assert not until(never, within_s=0.1, poll_s=0.01)
    assert time.monotonic() - begun >= 0.1
    assert asked[-1] - begun >= 0.1  # the last question comes at the end, not before
    assert len(asked) > 2


def test_no_time_is_one_question() -> None:
    answers = iter([False])
    assert not until(lambda: next(answers), within_s=0, poll_s=60)


def test_a_poll_longer_than_the_limit_does_not_prolong_the_wait() -> None:
    begun = time.monotonic()
    assert not until(lambda: False, within_s=0.05, poll_s=60)
    assert time.monotonic() - begun < 30


def test_what_the_condition_raises_ends_the_wait() -> None:
    def fails() -> bool:
        raise LookupError

    with pytest.raises(LookupError):
        until(fails, within_s=60, poll_s=60)


def test_what_remains_is_what_was_found_last() -> None:
    found = iter([["a", "b"], ["b"], []])
    assert remaining(lambda: next(found), within_s=60, poll_s=0) == []
    assert next(found, None) is None
    found = iter([["a", "b"], ["b"]])
    assert remaining(lambda: next(found, ["b"]), within_s=0.05, poll_s=0.01) == ["b"]
    assert remaining(lambda: iter(["a"]), within_s=0, poll_s=1) == ["a"]
