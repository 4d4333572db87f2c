"""One undo for many disks: each is tried, and one error has all that failed."""

import logging
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap.disks.undo import LeftOver, Undo, undo_each
from pyxlsnap.errors import DiskError, PyxlsnapError, QmpError

VDEVS = st.sampled_from(["xvda", "xvdb", "xvdc"])
#: by disk; why its undo fails, or "" if it does not
OUTCOMES = st.lists(st.tuples(VDEVS, st.sampled_from(["", "no room", "it hangs"])), max_size=6)


def undo(vdev: str, why: str, called: list[str]) -> Undo:
    def undoing() -> list[str]:
        called.append(vdev)
        if why:
            raise DiskError(f"{why} {len(called)}", vdev=vdev)
        return [f"removed {len(called)} of {vdev}"]

    return undoing


def failing(error: BaseException) -> Undo:
    def undoing() -> list[str]:
        raise error

    return undoing


def failure(*errors: BaseException) -> PyxlsnapError:
    with pytest.raises(PyxlsnapError) as caught:
        undo_each(map(failing, errors))
    return caught.value


def test_what_only_a_person_can_delete_stays_that() -> None:
    left = [LeftOver("no", vdev=v, finish=f"rm {v}") for v in ("xvda", "xvdb")]
    both = failure(*left)
    assert isinstance(both, LeftOver)
    assert (str(both), both.finish) == ("xvda: no; xvdb: no", "rm xvda; rm xvdb")
    assert not isinstance(failure(*left, DiskError("no", vdev="xvdc")), LeftOver)


def doing(line: str) -> Callable[[], list[str]]:
    return lambda: [line]


@given(OUTCOMES)
def test_each_is_tried_and_each_failure_is_shown(outcomes: list[tuple[str, str]]) -> None:
    called: list[str] = []
    undos = [undo(vdev, why, called) for vdev, why in outcomes]
    failed = [vdev for vdev, why in outcomes if why]
    if not failed:
        expected = [f"removed {i} of {vdev}" for i, (vdev, _) in enumerate(outcomes, 1)]
        assert undo_each(undos) == expected
        return
    with pytest.raises(DiskError) as caught:
        undo_each(undos)
    assert called == [vdev for vdev, _ in outcomes]
    assert caught.value.vdev == ", ".join(dict.fromkeys(failed))
    said = str(caught.value)
    assert [said.count(f"{vdev}: ") for vdev in set(failed)] == [1] * len(set(failed))
    for number, (_, why) in enumerate(outcomes, 1):
        assert f"{why} {number}" in said or not why


def test_nothing_to_undo_is_no_failure() -> None:
    assert undo_each([]) == []


def test_one_message_has_the_text_of_each_disk() -> None:
    a, b = DiskError("no room", vdev="xvda"), DiskError("it hangs", vdev="xvdb")
    assert str(failure(a, b, a)) == "xvda: no room; no room; xvdb: it hangs"


def test_a_single_failure_stays_as_it_is() -> None:
    error = QmpError("gone", command="transaction")
    assert failure(error) is error


def test_a_failure_that_is_no_disks_is_shown_beside_the_disks() -> None:
    error = failure(QmpError("gone", command="x"), DiskError("no room", vdev="xvda"))
    assert type(error) is PyxlsnapError
    assert str(error) == "xvda: no room; gone"


def test_what_the_others_undid_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pyxlsnap"), pytest.raises(DiskError):
        undo_each([doing("removed one"), failing(DiskError("no", vdev="xvda")), doing("and two")])
    assert caplog.messages == ["removed one", "and two"]


def test_an_interrupt_ends_it() -> None:
    called: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        undo_each([failing(KeyboardInterrupt()), undo("xvdb", "", called)])
    assert called == []


@pytest.mark.parametrize("error", [OSError(11, "no process"), KeyError("node"), StopIteration()])
def test_a_failure_of_another_kind_stops_no_other_disk(error: Exception) -> None:
    called: list[str] = []
    undos = [failing(error), undo("xvdb", "no room", called), undo("xvdc", "", called)]
    with pytest.raises(PyxlsnapError) as caught:
        undo_each(undos)
    assert called == ["xvdb", "xvdc"]
    for part in (type(error).__name__, "xvdb: no room"):
        assert part in str(caught.value)
