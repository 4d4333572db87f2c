"""Work on several disks at once."""

import threading
from functools import partial

import pytest

from pyxlsnap.disks.side_by_side import grouped, side_by_side


class Postponed(BaseException):
    """Not an Exception, as that of a recovery whose turn is over."""


def test_works_are_done_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=20)
    side_by_side([both.wait, both.wait])
    assert not both.broken


def test_all_are_done_however_many_there_are() -> None:
    done: list[int] = []
    side_by_side([partial(done.append, number) for number in range(50)])
    assert sorted(done) == list(range(50))


def test_a_single_work_is_done_on_this_thread() -> None:
    threads: list[threading.Thread] = []
    side_by_side([lambda: threads.append(threading.current_thread())])
    assert threads == [threading.current_thread()]


@pytest.mark.parametrize("kind", [OSError, Postponed])
def test_a_failure_is_raised_when_the_others_have_ended(kind: type[BaseException]) -> None:
    both, failed, done = threading.Barrier(2, timeout=20), threading.Event(), threading.Event()

    def fails() -> None:
        both.wait()
        failed.set()
        raise kind("no")

    def goes_on() -> None:
        both.wait()
        assert failed.wait(20)
        done.set()

    with pytest.raises(kind, match="no"):
        side_by_side([fails, goes_on])
    assert done.is_set()


def test_the_other_failures_are_notes() -> None:
    both = threading.Barrier(2, timeout=20)

    def fails(word: str) -> None:
        both.wait()
        raise OSError(word)

    with pytest.raises(OSError, match=r"one|two") as caught:
        side_by_side([partial(fails, "one"), partial(fails, "two")])
    assert {str(caught.value), *caught.value.__notes__} == {"one", "two"}


def test_what_has_not_begun_is_not_begun_after_a_failure() -> None:
    begun: list[int] = []
    together = threading.Barrier(4, timeout=20)

    def work(number: int) -> None:
        begun.append(number)
        together.wait()
        raise OSError(str(number))

    with pytest.raises(OSError, match=r"\d"):
        side_by_side([partial(work, number) for number in range(9)])
    assert sorted(begun) == [0, 1, 2, 3]


class TestGroups:
    def test_items_of_one_key_are_done_in_their_order_on_one_thread(self) -> None:
        done: list[tuple[int, threading.Thread]] = []
        grouped(range(8), lambda _: "", lambda n: done.append((n, threading.current_thread())))
        assert [number for number, _ in done] == list(range(8))
        assert len({thread for _, thread in done}) == 1

    def test_groups_are_done_at_the_same_time(self) -> None:
        both = threading.Barrier(2, timeout=20)
        grouped(["a1", "b1", "a2", "b2"], lambda item: item[0], lambda _: both.wait())
        assert not both.broken

    def test_what_follows_a_failure_in_its_group_is_not_begun(self) -> None:
        done: list[int] = []

        def work(number: int) -> None:
            done.append(number)
            raise OSError(str(number))

        with pytest.raises(OSError, match="0"):
            grouped(range(3), lambda _: "", work)
        assert done == [0]


def test_a_note_of_a_note_is_not_lost() -> None:
    """The works of one kind of storage are side by side, and so are the kinds."""
    all_begun = threading.Barrier(3, timeout=20)

    def fails(word: str) -> None:
        all_begun.wait()
        raise OSError(word)

    def kind() -> None:
        side_by_side([partial(fails, "two"), partial(fails, "three")])

    with pytest.raises(OSError, match=r"one|two|three") as caught:
        side_by_side([partial(fails, "one"), kind])
    assert {str(caught.value), *caught.value.__notes__} == {"one", "two", "three"}


@pytest.mark.parametrize("given", [0, 1])
def test_too_few_threads_do_all_works(given: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left, start = [None] * given, threading.Thread.start

    def start_if_left(thread: threading.Thread) -> None:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_left)
    done: list[int] = []
    side_by_side([partial(done.append, number) for number in range(9)])
    assert sorted(done) == list(range(9))
    assert not [t for t in threading.enumerate() if t.name == "pyxlsnap-disk"]
