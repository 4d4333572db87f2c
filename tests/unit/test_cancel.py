"""The token: set before, during and after a call."""

import threading
import time
from contextlib import ExitStack

import pytest

from pyxlsnap.cancel import Cancel, Cancelled


class Call:
    """A long call that takes an abort only at the n-th try, as libxl before it has begun."""

    def __init__(self, *, taken_at: int = 1) -> None:
        self.tries = 0
        self.aborted = threading.Event()
        self._taken_at = taken_at

    def abort(self) -> bool:
        self.tries += 1
        if self.tries >= self._taken_at:
            self.aborted.set()
        return self.aborted.is_set()


def test_a_new_token_is_not_set() -> None:
    cancel = Cancel()
    cancel.check()
    assert not cancel.is_set()


def test_once_set_it_stays_set() -> None:
    cancel = Cancel()
    cancel.set()
    cancel.set()
    assert cancel.is_set()
    with pytest.raises(Cancelled):
        cancel.check()


def test_set_beforehand_the_call_is_not_made() -> None:
    cancel, call = Cancel(), Call()
    cancel.set()
    with pytest.raises(Cancelled), cancel.armed(call.abort):
        pytest.fail("the call was made")
    assert call.tries == 0


def test_set_during_the_call_aborts_it() -> None:
    cancel, call = Cancel(), Call()
    with cancel.armed(call.abort):
        threading.Thread(target=cancel.set).start()
        assert call.aborted.wait(5)
    assert call.tries == 1


def test_an_abort_is_repeated_until_it_is_taken() -> None:
    cancel, call = Cancel(), Call(taken_at=3)
    with cancel.armed(call.abort):
        setter = threading.Thread(target=cancel.set)
        setter.start()
        assert call.aborted.wait(5)
    setter.join(5)
    assert not setter.is_alive()
    assert call.tries == 3


def test_one_token_of_several_calls_aborts_each_of_them_once() -> None:
    cancel, calls, over = Cancel(), [Call(), Call(taken_at=3), Call()], Call()
    with ExitStack() as stack:
        for call in calls:
            stack.enter_context(cancel.armed(call.abort))
        with cancel.armed(over.abort):
            pass
        cancel.set()
    assert [call.tries for call in calls] == [1, 3, 1]
    assert over.tries == 0


def test_an_abort_that_is_never_taken_ends_with_the_call() -> None:
    cancel, call = Cancel(), Call(taken_at=1_000_000)
    with cancel.armed(call.abort):
        setter = threading.Thread(target=cancel.set)
        setter.start()
        while call.tries < 2:
            time.sleep(0.01)
    setter.join(5)
    assert not setter.is_alive()


def test_set_after_the_call_aborts_nothing() -> None:
    cancel, call = Cancel(), Call()
    with cancel.armed(call.abort):
        pass
    cancel.set()
    assert call.tries == 0


def test_a_call_that_fails_is_disarmed_too() -> None:
    cancel, call = Cancel(), Call()
    with pytest.raises(RuntimeError), cancel.armed(call.abort):
        raise RuntimeError
    cancel.set()
    assert call.tries == 0


def test_no_strategy_swallows_it() -> None:
    assert not issubclass(Cancelled, Exception)


def test_an_abort_never_reaches_the_call_after_the_one_that_was_armed() -> None:
    """The next one may be the resume: the end of the armed call waits for an abort under way."""
    cancel, aborting, ended = Cancel(), threading.Event(), threading.Event()

    def abort() -> bool:
        aborting.set()
        assert not ended.wait(0.2)
        return True

    setter = threading.Thread(target=cancel.set)
    with cancel.armed(abort):
        setter.start()
        assert aborting.wait(10)
    ended.set()
    setter.join()
