"""An operation that must wait goes on when its caller ends the wait."""

import threading
from collections.abc import Callable
from functools import partial

import pytest

from pyxlsnap import api
from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import Busy, NeedsAttention
from pyxlsnap.hooks import Hooks
from pyxlsnap.linux.locks import DomainLock
from tests.unit.support.scenarios import waits
from tests.unit.support.standin import StandIn
from tests.unit.support.standin_site import Call
from tests.unit.support.values import UUID
from tests.unit.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("nothing_is_left_at_last")


@pytest.fixture
def nothing_is_left_at_last(nothing_is_left: None, worker: StandIn) -> None:
    """What goes on ends before it is looked whether anything is left."""


def locked(worker: StandIn) -> bool:
    try:
        DomainLock(UUID, domain="vm1", directory=worker.here / "run").release()
    except Busy:
        return True
    return False


@pytest.mark.parametrize(
    ("operation", "scenarios"),
    [
        (api.create_snapshot, {"create": waits.create}),
        (api.recover, {"recover": waits.recovery}),
        (api.create_snapshot, {"create": waits.dies, "recover": waits.recovery}),
        (api.create_snapshot, {"create": waits.dies_when_cancelled, "recover": waits.recovery}),
    ],
    ids=["create", "recovery", "supervisor's recovery", "the same, cancelled before that"],
)
def test_the_caller_returns_at_once_and_the_work_is_done_later(
    worker: StandIn,
    operation: Callable[..., object],
    scenarios: dict[str, Callable[[Call], object]],
) -> None:
    worker.set(**scenarios)  # type: ignore[arg-type]
    cancel = Cancel()
    timer = threading.Thread(target=partial(cancel_when_it_waits, worker, cancel))
    timer.start()
    before = threading.active_count()
    with pytest.raises(NeedsAttention, match="it waits") as caught:
        operation("vm1", cancel=cancel)
    timer.join()
    assert caught.value.finish == "do so"
    assert not (worker.here / "done").exists()
    assert locked(worker)
    (worker.here / "go on").touch()
    assert eventually(lambda: not locked(worker))
    assert (worker.here / "done").exists()
    assert eventually(lambda: threading.active_count() < before)


def test_the_hook_after_the_resume_is_not_called_while_the_guest_is_suspended(
    worker: StandIn,
) -> None:
    worker.set(create=waits.asked)
    cancel, called = Cancel(), list[str]()
    hooks = Hooks(
        before_suspend=lambda _: called.append("freeze"),
        after_resume=lambda _: called.append("thaw"),
    )
    timer = threading.Thread(target=partial(cancel_when_it_waits, worker, cancel))
    timer.start()
    before = threading.active_count()
    with pytest.raises(NeedsAttention, match="it waits") as caught:
        api.create_snapshot("vm1", cancel=cancel, hooks=hooks)
    timer.join()
    assert called == ["freeze"]
    assert caught.value.left == (
        "the hook after_resume is still to be called, when vm1 runs again",
    )
    (worker.here / "go on").touch()
    assert eventually(lambda: not locked(worker))
    assert eventually(lambda: threading.active_count() < before)


def cancel_when_it_waits(worker: StandIn, cancel: Cancel) -> None:
    assert eventually((worker.here / "waiting").exists)
    cancel.set()
