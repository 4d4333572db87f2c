"""Many clones through one warm process: each is a clone like any other."""

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pyxlsnap import Cloner
from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import Busy, ClosedError, Interrupted, OperationFailed, Refused, UsageError
from pyxlsnap.hooks import Hooks, Moment
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.model import DiskRequest
from pyxlsnap.results import Progress
from tests.host_state import children
from tests.unit.support.processes import lives
from tests.unit.support.scenarios import ordinary, warm
from tests.unit.support.scenarios.ordinary import CLONED
from tests.unit.support.standin import StandIn
from tests.unit.support.values import UUID
from tests.unit.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("nothing_is_left")


@pytest.fixture
def cfgfile(tmp_path: Path) -> Path:
    path = tmp_path / "snap.cfg"
    path.write_text('name = "snap"\nmemory_path = "/nowhere/snap.save"\n')
    return path


@pytest.fixture
def cloner(worker: StandIn, cfgfile: Path) -> Iterator[Cloner]:
    worker.set(clone=warm.clone_locks_and_ends)
    with Cloner(cfgfile, "c1") as found:
        yield found


def test_all_are_made_by_copies_of_one_process(cloner: Cloner, worker: StandIn) -> None:
    warm_pids: set[int] = set()

    def note(progress: Progress) -> None:
        warm_pids.add(progress.bytes_done)

    for _ in range(5):
        assert cloner.clone(on_progress=note) == CLONED
        lock = DomainLock(UUID, domain="c1", directory=worker.here / "run", wait_s=10)
        lock.release()
    assert warm_pids == set(children())
    assert len(warm_pids) == 1


def test_each_replaces_the_one_before(worker: StandIn, cfgfile: Path) -> None:
    worker.set(clone=warm.clone_says_its_options)
    with Cloner(cfgfile, "c1") as cloner:
        cloner.clone()
    assert ast.literal_eval(worker.said()) == {"uuid": "", "replace": True, "edited": ""}


def test_clones_of_several_names_are_made_at_a_time(worker: StandIn, cfgfile: Path) -> None:
    """Each call waits for the other, and both workers are copies of one process."""
    worker.set(clone=warm.clone_waits_for_the_other)
    copied_from: list[int] = []

    def note(progress: Progress) -> None:
        copied_from.append(progress.bytes_done)

    with Cloner(cfgfile, "c1") as cloner, ThreadPoolExecutor(2) as pool:
        made = [pool.submit(cloner.clone, name, on_progress=note) for name in (None, "c2")]
        assert [one.result(timeout=60).domain for one in made] == ["c1", "c2"]
        assert copied_from == children() * 2


def test_a_cancel_of_one_of_several_leaves_the_others(worker: StandIn, cfgfile: Path) -> None:
    worker.set(clone=warm.clone_c1_waits_for_cancel)
    cancel = Cancel()
    with Cloner(cfgfile, "c1") as cloner, ThreadPoolExecutor(2) as pool:
        one = pool.submit(cloner.clone, cancel=cancel)
        other = pool.submit(cloner.clone, "c2")
        assert eventually(lambda: have_begun(worker, "c1", "c2"))
        cancel.set()
        with pytest.raises(Interrupted):
            one.result(timeout=60)
        assert other.result(timeout=60).domain == "c2"


def test_close_waits_for_none_of_several(worker: StandIn, cfgfile: Path) -> None:
    """Each is made to its end by its own worker."""
    worker.set(clone=warm.clone_waits_for_close)
    with Cloner(cfgfile, "c1") as cloner, ThreadPoolExecutor(2) as pool:
        made = [pool.submit(cloner.clone, name) for name in ("c1", "c2")]
        assert eventually(lambda: have_begun(worker, "c1", "c2"))
        cloner.close()
        assert not any(one.done() for one in made)
        (worker.here / "closed").touch()
        assert [one.result(timeout=60).domain for one in made] == ["c1", "c2"]
        with pytest.raises(ClosedError):
            cloner.clone("c3")


def have_begun(worker: StandIn, *names: str) -> bool:
    """Whether the workers of these clones are at work."""
    return all((worker.here / f"making {name}").exists() for name in names)


def test_one_of_two_calls_for_one_name_is_told_at_once(worker: StandIn, cfgfile: Path) -> None:
    """Else ``edit`` would change what the other call has found, too."""
    worker.set(clone=warm.clone_says_its_options)
    refused: list[Busy] = []

    def edit(_: dict[str, Any]) -> None:
        with pytest.raises(Busy, match=r"^c1: this Cloner is making it") as caught:
            made_by.clone("c1")
        refused.append(caught.value)

    with Cloner(cfgfile, "c1", edit=edit) as made_by:
        assert made_by.clone() == made_by.clone() == CLONED
    assert [error.domain for error in refused] == ["c1", "c1"]


def test_disks_with_paths_are_for_one_name(worker: StandIn, cfgfile: Path) -> None:
    worker.set(clone=warm.clone_says_its_options)
    with Cloner(cfgfile, "c1", disks=[DiskRequest("xvda", "/x/a", "qcow2")]) as cloner:
        with pytest.raises(UsageError, match=r"^c2: the disks of this Cloner are for c1 \(/x/a\)"):
            cloner.clone("c2")
        assert cloner.clone("c1") == CLONED


@pytest.mark.parametrize(("name", "says"), [("", "cannot be that of a clone"), (5, "domain")])
def test_a_wrong_name_is_refused(cloner: Cloner, name: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        cloner.clone(name)
    assert cloner.clone() == CLONED


def test_each_configuration_is_edited(worker: StandIn, cfgfile: Path) -> None:
    """The names of the disks change from one to the next."""
    worker.set(clone=warm.clone_says_its_options)
    seen: list[dict[str, Any]] = []

    def edit(values: dict[str, Any]) -> None:
        seen.append(dict(values))
        values["number"] = len(seen)

    with Cloner(cfgfile, "c1", edit=edit) as cloner:
        (pid,) = children()
        for number in (1, 2):
            cloner.clone()
            edited = f'{{"number": {number}}}'
            wanted = {"uuid": UUID, "replace": True, "edited": edited}
            assert ast.literal_eval(worker.said()) == wanted
        assert children() == [pid]
    assert seen == [{}, {}]


def test_an_edit_that_fails_leaves_the_process_warm(worker: StandIn, cfgfile: Path) -> None:
    def edit(_: dict[str, Any]) -> None:
        raise RuntimeError("a bug of the caller")

    with Cloner(cfgfile, "c1", edit=edit) as cloner:
        before = children()
        with pytest.raises(RuntimeError, match="a bug of the caller"):
            cloner.clone()
        assert children() == before


def test_hooks_are_called(cloner: Cloner) -> None:
    seen: list[Moment] = []
    cloner.clone(hooks=Hooks(after_clone=seen.append))
    assert [moment.domain for moment in seen] == ["c1"]


def test_a_warm_process_that_was_killed_is_replaced(cloner: Cloner) -> None:
    cloner.clone()
    (pid,) = children()
    os.kill(pid, signal.SIGKILL)
    assert cloner.clone() == CLONED
    (other,) = children()
    assert other != pid


def test_a_clone_that_is_killed_is_recovered_from(worker: StandIn, cfgfile: Path) -> None:
    worker.set(clone=warm.clone_dies, recover=ordinary.recovered)
    with Cloner(cfgfile, "c1") as cloner:
        for _ in range(2):
            with pytest.raises(OperationFailed, match="everything is as before"):
                cloner.clone()
            assert (worker.here / "recovered").read_text() == UUID
            (worker.here / "recovered").unlink()


def test_a_cancelled_clone_leaves_the_process_warm(worker: StandIn, cfgfile: Path) -> None:
    worker.set(clone=warm.clone_tells_all_and_rolls_back)
    with Cloner(cfgfile, "c1") as cloner:
        before = children()
        for _ in range(2):
            cancel = Cancel()
            with pytest.raises(Interrupted):
                cloner.clone(cancel=cancel, on_progress=lambda _, cancel=cancel: cancel.set())  # type: ignore[misc]
            (worker.here / "rolled back").unlink()
        assert children() == before


PROGRAM = """
import sys
from pyxlsnap import Cloner
with Cloner(sys.argv[1], "c1") as cloner:
    cloner.clone(on_progress=lambda _: print("begun", flush=True))
"""


def test_all_of_it_ends_when_the_caller_is_killed(worker: StandIn, cfgfile: Path) -> None:
    worker.set(clone=warm.clone_tells_all_and_rolls_back)
    words = [sys.executable, "-c", PROGRAM, str(cfgfile)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout
        assert caller.stdout.readline() == "begun\n"
        caller.kill()
    assert eventually(lambda: (worker.here / "rolled back").exists())
    pids = (worker.here / "pids").read_text().split()
    assert len(pids) == 3
    assert eventually(lambda: not any(lives(int(pid)) for pid in pids))


def test_close_ends_the_process(worker: StandIn, cfgfile: Path) -> None:
    cloner = Cloner(cfgfile, "c1", edit=lambda _: None)
    assert children() == []
    cloner.open()
    assert len(children()) == 1
    cloner.close()
    cloner.close()
    assert children() == []
    for call in (cloner.open, cloner.clone):
        with pytest.raises(ClosedError, match="this Cloner was closed: make another one"):
            call()


def test_of_one_that_was_never_opened(worker: StandIn, cfgfile: Path) -> None:
    Cloner(cfgfile, "c1").close()
    cloner = Cloner(cfgfile, "c1")
    assert cloner.clone() == CLONED  # it is started by the first clone, too
    cloner.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": ".c1"}, "cannot be that of a clone"),
        ({"paused": "yes"}, "paused"),
        ({"running": True, "paused": True}, "exclude each other"),
        ({"bridge": " "}, "the name of the bridge is empty"),
        ({"disks": [DiskRequest("xvda"), DiskRequest("xvda")]}, "names a disk twice"),
    ],
)
def test_a_wrong_value_is_refused_at_once(
    cfgfile: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        Cloner(cfgfile, **{"name": "c1"} | options)


def test_a_process_that_cannot_be_started(cfgfile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    cloner = Cloner(cfgfile, "c1")
    with pytest.raises(Refused, match="the process for clones cannot be started"):
        cloner.open()
    with pytest.raises(Refused, match="the worker process cannot be started"):
        cloner.clone()
