"""Clones made, replaced, deleted, killed and recovered in any order: each is whole, or gone.

Whenever nothing is in flight, the files beside the disks are those of the clones that are there, no
more and no less; the snapshot is as it was; and the original can be reverted.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyxlsnap import cfgfile
from pyxlsnap.clone import delete as deletion
from pyxlsnap.clone import sequence
from pyxlsnap.clone.delete import delete_clone
from pyxlsnap.clone.sequence import Cloning
from pyxlsnap.clone_file import find_clone
from pyxlsnap.errors import NeedsAttention, OperationFailed, PyxlsnapError, Refused, XenError
from pyxlsnap.journal import unfinished
from pyxlsnap.recovery import finish_clone
from pyxlsnap.request import Callbacks, DeleteCloneRequest
from tests.unit.support import operations
from tests.unit.support.clones import Origin, clone_steps
from tests.unit.support.faults import run_until
from tests.unit.support.values import UUID
from tests.unit.support.world import World, make_world

NAMES = ("vm1-a", "vm1-b")
STEPS = clone_steps(replaces=True)
CLONES = st.sampled_from(NAMES)


class Killed(BaseException):
    """The process is killed here: nothing is undone."""


def killed_at(world: World, number: int, do: Callable[[], object]) -> bool:
    """Do something that is killed at its ``number``-th event; false if there were fewer."""
    seen = 0

    def count(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            raise Killed

    world.on_event = count
    try:
        do()
    except Killed:
        return True
    finally:
        world.on_event = lambda _: None
    return False


def recover(world: World, domain: str | None = None) -> None:
    operations.recover(world.host, domain, start_monitor=lambda _: None)


@pytest.mark.parametrize("replaces", [False, True])
def test_a_clone_that_is_killed_at_any_event_is_cloned_or_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    for number in range(1, 1000):
        origin = Origin(make_world(tmp_path / str(number), monkeypatch))
        if replaces:
            origin.clone()
        old, before = origin.find(), origin.world.photo()
        steps = Cloning(origin.world.host, origin.plan(replace=replaces)).steps()
        if not killed_at(origin.world, number, partial(run_until, steps, "")):
            assert number > 8
            return
        recover(origin.world)
        found = origin.find()
        assert bool(found) is bool(find_clone("vm1-a"))
        assert len(origin.children()) == (2 if found else 0)
        assert origin.world.photo().disk_snapshots == before.disk_snapshots
        if found is old:
            assert origin.world.photo() == before
        elif found:
            assert found.memory == "then"
        assert unfinished() == []
    raise AssertionError("it never ended")


def test_a_delete_of_a_clone_that_is_killed_at_any_event_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 1000):
        origin = Origin(make_world(tmp_path / str(number), monkeypatch))
        origin.clone()
        request = DeleteCloneRequest(domain="vm1-a")
        delete = partial(delete_clone, origin.world.host, request, Callbacks())
        if not killed_at(origin.world, number, delete):
            assert number > 4
            return
        begun = unfinished() != []
        recover(origin.world)
        assert (origin.find() is None) is begun
        if begun:
            origin.assert_as_before()
    raise AssertionError("it never ended")


class AnyOrder(RuleBasedStateMachine):
    """See the top of this file."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self._patches = pytest.MonkeyPatch()
        self.world = make_world(Path(self._directory.name) / "world", self._patches)
        self.origin = Origin(self.world)
        self.boots = 0
        for module in (sequence, deletion, finish_clone):
            self._patches.setattr(module, "boot_id", lambda: f"boot {self.boots}")
        #: the clones that were reported, each with whether its domain is there
        self.there: dict[str, bool] = {}
        #: the clone whose operation was killed, and whether an older one may be there yet
        self.in_flight: str | None = None

    def teardown(self) -> None:
        self._patches.undo()
        self._directory.cleanup()

    @precondition(lambda self: self.in_flight is None)
    @rule(name=CLONES)
    def make(self, name: str) -> None:
        if name in self.there:
            with pytest.raises(Refused):
                self.origin.clone(name)
        made = self.origin.clone(name, replace=True)
        assert made.replaced is (name in self.there)
        self.there[name] = True

    @precondition(lambda self: self.in_flight is None)
    @rule(name=CLONES, verb=st.sampled_from(["clone xvdb", "destroy", "restore", "unpause"]))
    def make_with_a_fault(self, name: str, verb: str) -> None:
        there = self.there.get(name)
        self.world.fail(verb, XenError("no", rc=-3, operation=verb))
        try:
            self.origin.clone(name, replace=True)
            self.there[name] = True  # (there was nothing to destroy)
        except NeedsAttention:
            assert there is not None
            self.world.faults.clear()
            if find_clone(name) and verb == "destroy":
                recover(self.world)
            self.there.pop(name)
        except OperationFailed:
            assert there is None or verb == "clone xvdb"
        finally:
            self.world.faults.clear()

    @precondition(lambda self: self.in_flight is None)
    @rule(name=CLONES, step=st.sampled_from(STEPS), crash=st.booleans())
    def make_that_is_killed(self, name: str, step: str, crash: bool) -> None:
        cloning = Cloning(self.world.host, self.origin.plan(name, replace=True))
        run_until(cloning.steps(), step)
        self._killed(name, crash)

    @precondition(lambda self: self.in_flight is None)
    @rule(name=CLONES, number=st.integers(1, 40), crash=st.booleans())
    def make_that_is_killed_in_a_step(self, name: str, number: int, crash: bool) -> None:
        cloning = Cloning(self.world.host, self.origin.plan(name, replace=True))
        killed_at(self.world, number, lambda: run_until(cloning.steps(), ""))
        self._killed(name, crash)

    @precondition(lambda self: self.in_flight is None and self.there)
    @rule(data=st.data(), number=st.integers(0, 12), crash=st.booleans())
    def delete(self, data: st.DataObject, number: int, crash: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.there)))

        def delete_it() -> None:
            delete_clone(self.world.host, DeleteCloneRequest(domain=name), Callbacks())

        if killed_at(self.world, number, delete_it):
            self._killed(name, crash)
        else:
            del self.there[name]

    def _killed(self, name: str, crash: bool) -> None:
        self.in_flight = name
        if crash:
            self._crash()

    def _crash(self) -> None:
        self.boots += 1
        config = self.origin.guest.configuration
        for guest in self.world.host.guests:
            guest.exists = False
        self.there = dict.fromkeys(self.there, False)
        self.origin.guest = self.world.host.start(config)
        self.origin.guest.memory = "since"

    @precondition(lambda self: self.in_flight is None)
    @rule()
    def crash(self) -> None:
        self._crash()

    @precondition(lambda self: self.in_flight is not None)
    @rule()
    def recover(self) -> None:
        name = self.in_flight
        assert name
        if unfinished():
            with pytest.raises(PyxlsnapError, match="snapshot-recover"):
                self.origin.clone(name, replace=True)
        recover(self.world)
        if find_clone(name):
            self.there[name] = self.origin.find(name) is not None
        else:
            self.there.pop(name, None)
        self.in_flight = None

    @rule()
    def revert_the_original(self) -> None:
        """Also while a clone is half made."""
        cfg = self.origin.cfg
        operations.revert(self.world.host, UUID, cfgfile.read(cfg), cfg)
        self.origin.guest = self.world.host.find(UUID)
        assert self.origin.guest.memory == "then"
        self.origin.guest.memory = "since"

    @invariant()
    def each_clone_is_whole_or_gone(self) -> None:
        if self.in_flight is not None:
            return
        assert unfinished() == []
        files = set()
        for name in NAMES:
            entry, guest = find_clone(name), self.origin.find(name)
            assert (entry is not None) is (name in self.there)
            assert (guest is not None) is self.there.get(name, False)
            files |= {Path(child.target).name for child in entry.children} if entry else set()
            if guest and entry:
                assert (guest.uuid, guest.memory) == (entry.uuid, "then")
                assert set(guest.disk_targets()) == {child.target for child in entry.children}
        assert self.origin.children() == files
        assert self.world.photo().disk_snapshots == self.origin.before.disk_snapshots


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=15,
    stateful_step_count=10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
