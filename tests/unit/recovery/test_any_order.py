"""Snapshots, reverts, failures, kills and recoveries in any order: nothing is ever lost.

Whenever nothing is in flight there is one domain, it runs, its memory and its disks are of one
moment, and files and disk snapshots are those of the snapshots that were reported, no more and no
less.
"""

import errno
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyxlsnap import cfgfile
from pyxlsnap.create import entry as create_entry
from pyxlsnap.create.sequence import Creation
from pyxlsnap.delete.sequence import Deletion
from pyxlsnap.errors import (
    DiskError,
    GuestTimeout,
    NeedsAttention,
    OperationFailed,
    PyxlsnapError,
    Refused,
    XenError,
)
from pyxlsnap.journal import Journal
from pyxlsnap.model import DomainConfig, SnapshotConfig
from pyxlsnap.recovery import finish_revert, undo_create
from pyxlsnap.revert import sequence as revert_sequence
from pyxlsnap.revert.plan import RevertPlan
from pyxlsnap.revert.sequence import Reversion
from tests.unit.support import operations
from tests.unit.support.entries import killed_revert
from tests.unit.support.faults import FailsAtStep, kill, run_until
from tests.unit.support.guest import FakeGuest
from tests.unit.support.operations import plan_create, plan_delete, plan_revert
from tests.unit.support.values import UUID
from tests.unit.support.world import make_world

VDEVS = ("xvda", "xvdb")
CREATE = [name for name, _ in Creation.__new__(Creation).steps()]
REVERT = [name for name, _ in Reversion.__new__(Reversion).steps()]
DELETE = [name for name, _ in Deletion.__new__(Deletion).steps()]
FAULTS: dict[str, Callable[[], BaseException]] = {
    "error": lambda: XenError("no", rc=-3, operation="some call"),
    "time-out": lambda: GuestTimeout("no answer", rc=-8, operation="some call"),
    "full": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "disk": lambda: DiskError("no", vdev="xvda"),
    "bug": lambda: RuntimeError("a bug"),
    "ctrl-c": KeyboardInterrupt,
}
OF_DISKS_IN_CREATE = ("prepare", "create", "commit", "finish", "undo", "settle")
IN_CREATE = [
    "suspend",
    "resume",
    "config",
    *(f"{w} {v}" for w in OF_DISKS_IN_CREATE for v in VDEVS),
]
OF_DISKS_IN_REVERT = ("ready", "revert", "drop")
IN_REVERT = [
    *("destroy", "wait_gone", "restore", "unpause"),
    *(f"{w} {v}" for w in OF_DISKS_IN_REVERT for v in VDEVS),
]
IN_DELETE = [f"{w} {v}" for w in ("free", "delete") for v in VDEVS]
WHEN = st.booleans()


class FaultyCreation(FailsAtStep, Creation):
    """Fails at one of its steps."""


class FaultyReversion(FailsAtStep, Reversion):
    """Fails at one of its steps."""


class FaultyDeletion(FailsAtStep, Deletion):
    """Fails at one of its steps."""


class Killed(BaseException):
    """The process is killed here: nothing is undone."""


@dataclass(frozen=True)
class Taken:
    """A snapshot that was reported as taken."""

    name: str
    cfg: Path
    memory: Path
    moment: str


class AnyOrder(RuleBasedStateMachine):
    """See the top of this file."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self._patches = pytest.MonkeyPatch()
        self.world = make_world(Path(self._directory.name) / "world", self._patches)
        self.world.guest(*(self.world.image(vdev, "moment 0") for vdev in VDEVS))
        self.guest.memory = "moment 0"
        self.images = set((self.world.root / "images").iterdir())
        self.moment = 0
        self.count = 0
        self.taken: list[Taken] = []
        #: how to finish what was killed or has failed half-way; None: nothing is in flight
        self.finish: Callable[[], object] | None = None
        #: what the finish brings back, if it is a revert
        self.going_back_to: Taken | None = None
        #: the domains that ran when the host crashed
        self.crashed: list[DomainConfig] = []
        self.boots = 0
        for module in (create_entry, undo_create, finish_revert, revert_sequence):
            self._patches.setattr(module, "boot_id", lambda: f"boot {self.boots}")

    def teardown(self) -> None:
        self._patches.undo()
        self._directory.cleanup()

    @property
    def guest(self) -> FakeGuest:
        (found,) = [g for g in self.world.host.guests if g.exists and g.uuid == UUID]
        return found

    @rule()
    def time_passes(self) -> None:
        """The guest changes its memory and its disks, if it runs."""
        there = [g for g in self.world.host.guests if g.exists and g.runs]
        self.moment += 1
        for guest in there:
            guest.memory = f"moment {self.moment}"
            for vdev in VDEVS:
                self.world.storage.content[vdev] = guest.memory

    # Taking snapshots

    @initialize(beside=st.sets(st.sampled_from(VDEVS)))
    def some_disks_are_beside_the_memory(self, beside: set[str]) -> None:
        self.world.beside = beside

    def _wanted(self) -> SnapshotConfig:
        self.count += 1
        return SnapshotConfig(name=f"s-{self.count}")

    def _create(self) -> None:
        moment = self.guest.memory
        made = operations.create(self.world.host, "vm1", self._wanted())
        self.taken.append(Taken(made.name, Path(made.cfgfile), Path(made.memory_path), moment))

    @precondition(lambda self: self.finish is None)
    @rule()
    def create(self) -> None:
        self._create()

    @precondition(lambda self: self.finish is None)
    @rule(verb=st.sampled_from(IN_CREATE), after=WHEN, fault=st.sampled_from(sorted(FAULTS)))
    def create_with_a_fault(self, verb: str, after: bool, fault: str) -> None:
        before = self.world.photo()
        self.world.fail(verb, FAULTS[fault](), after=after)
        try:
            self._create()
        except NeedsAttention as e:
            self.world.faults.clear()
            self.finish = self._recover
            if "snapshot-revert" in e.finish:
                self._bring_back(e)
        except (OperationFailed, Refused):
            assert self.world.photo() == before
        except (OSError, RuntimeError, PyxlsnapError, KeyboardInterrupt):
            assert verb == "config"  # while it was planned
            assert self.world.photo() == before
        finally:
            self.world.faults.clear()

    def _bring_back(self, error: NeedsAttention) -> None:
        """The guest could not be resumed: what was written is its only copy."""
        assert self.guest.suspended
        cfg = Path(error.finish.split()[3])
        wanted = cfgfile.read(cfg)
        assert wanted.name
        assert wanted.memory_path
        moment = self.guest.memory
        made = Taken(wanted.name, cfg, Path(wanted.memory_path), moment)
        self.going_back_to = made
        if wanted.disks:
            self.taken.append(made)
            self.finish = lambda: self._revert(made)
        else:
            self.finish = lambda: self._resume_by_hand(made)

    def _resume_by_hand(self, made: Taken) -> None:
        """The memory file's disks are those of the instant; the person has another way, too."""
        operations.revert(self.world.host, UUID, cfgfile.read(made.cfg), made.cfg, force=True)
        made.cfg.unlink()
        made.memory.unlink()
        for key in [k for k in self.world.storage.snapshots if k[1].startswith(made.name)]:
            del self.world.storage.snapshots[key]

    @precondition(lambda self: self.finish is None)
    @rule(
        step=st.sampled_from(CREATE),
        when=st.sampled_from(["before", "after"]),
        fault=st.sampled_from(sorted(FAULTS)),
    )
    def create_with_a_fault_at_a_step(self, step: str, when: str, fault: str) -> None:
        before = self.world.photo()
        plan = plan_create(self.world.host, self.guest, self._wanted())
        creation = FaultyCreation(plan)
        creation.at, creation.when, creation.fault = step, when, self._raising(fault)
        with pytest.raises(OperationFailed) as caught:
            creation.run()
        assert not isinstance(caught.value, NeedsAttention)
        assert self.world.photo() == before

    @precondition(lambda self: self.finish is None)
    @rule(step=st.sampled_from(CREATE[:-1]), crash=st.booleans())
    def create_that_is_killed(self, step: str, crash: bool) -> None:
        plan = plan_create(self.world.host, self.guest, self._wanted())
        kill(Creation(plan), step)
        self._killed(self._recover, crash)

    @precondition(lambda self: self.finish is None)
    @rule(verb=st.sampled_from(IN_CREATE), after=WHEN, crash=st.booleans())
    def create_that_is_killed_in_a_step(self, verb: str, after: bool, crash: bool) -> None:
        plan = plan_create(self.world.host, self.guest, self._wanted())
        self.world.fail(verb, Killed(), after=after)
        try:
            kill(Creation(plan), CREATE[-2])
        except Killed:
            pass
        finally:
            self.world.faults.clear()
        self._killed(self._recover, crash)

    def _raising(self, fault: str) -> Callable[[], None]:
        def fail() -> None:
            raise FAULTS[fault]()

        return fail

    def _killed(self, finish: Callable[[], object], crash: bool) -> None:
        """The process is dead; in a crash so is everything else, and who boots is the disks."""
        self.finish = finish
        if crash:
            self.boots += 1
            self.crashed = [g.configuration for g in self.world.host.guests if g.exists]
            for guest in self.world.host.guests:
                guest.exists = False

    def _ask_and_revert(self, to: Taken) -> None:
        """A recovery leaves to the person what may have been worked on since."""
        try:
            operations.recover(self.world.host, None)
        except NeedsAttention:
            pass  # (Where the domain runs again, it is left alone.)
        self._revert(to)

    def _start_what_crashed(self) -> None:
        """As xendomains does, after the recovery; skip domains that were restored already."""
        for config in self.crashed:
            if not any(g.exists for g in self.world.host.guests):
                self.world.host.start(config).memory = self.world.storage.content[VDEVS[0]]
        self.crashed = []

    # Going back

    def _revert(self, to: Taken) -> None:
        operations.revert(self.world.host, UUID, cfgfile.read(to.cfg), to.cfg)

    @precondition(lambda self: self.finish is None and self.taken)
    @rule(data=st.data())
    def revert(self, data: st.DataObject) -> None:
        to = data.draw(st.sampled_from(self.taken))
        self._revert(to)
        assert self.guest.memory == to.moment

    @precondition(lambda self: self.finish is None and self.taken)
    @rule(
        data=st.data(),
        verb=st.sampled_from(IN_REVERT),
        after=WHEN,
        fault=st.sampled_from(sorted(FAULTS)),
    )
    def revert_with_a_fault(self, data: st.DataObject, verb: str, after: bool, fault: str) -> None:
        to = data.draw(st.sampled_from(self.taken))
        before, moment = self.world.photo(), self.guest.memory
        self.world.fail(verb, FAULTS[fault](), after=after)
        try:
            self._revert(to)
            moment = to.moment
        except NeedsAttention:
            self._goes_back(to, data)
            return
        except OperationFailed:
            assert self.world.photo() == before
        finally:
            self.world.faults.clear()
        assert self.guest.memory == moment
        if verb.startswith("drop"):  # a warning has said it
            self.world.storage.snapshots = {
                k: v for k, v in self.world.storage.snapshots.items() if not k[1].endswith("revert")
            }

    @precondition(lambda self: self.finish is None and self.taken)
    @rule(
        data=st.data(),
        step=st.sampled_from(REVERT),
        when=st.sampled_from(["before", "after"]),
        fault=st.sampled_from(sorted(FAULTS)),
    )
    def revert_with_a_fault_at_a_step(
        self, data: st.DataObject, step: str, when: str, fault: str
    ) -> None:
        to = data.draw(st.sampled_from(self.taken))
        before = self.world.photo()
        reversion = FaultyReversion(self.world.host, self._plan(to))
        reversion.at, reversion.when, reversion.fault = step, when, self._raising(fault)
        with pytest.raises(OperationFailed) as caught:
            reversion.run()
        if isinstance(caught.value, NeedsAttention):
            self._goes_back(to, data)
        else:
            assert self.world.photo() == before

    @precondition(lambda self: self.finish is None and self.taken)
    @rule(data=st.data(), step=st.sampled_from(REVERT), crash=st.booleans())
    def revert_that_is_killed(self, data: st.DataObject, step: str, crash: bool) -> None:
        to = data.draw(st.sampled_from(self.taken))
        before = self.world.photo()
        run_until(Reversion(self.world.host, self._plan(to)).steps(), step)
        if REVERT.index(step) < REVERT.index("journal"):
            assert self.world.photo() == before
        else:
            self._goes_back(to, data, crash=crash)

    @precondition(lambda self: self.finish is None and self.taken)
    @rule(data=st.data(), verb=st.sampled_from(IN_REVERT), after=WHEN, crash=st.booleans())
    def revert_that_is_killed_in_a_step(
        self, data: st.DataObject, verb: str, after: bool, crash: bool
    ) -> None:
        to = data.draw(st.sampled_from(self.taken))
        self.world.fail(verb, Killed(), after=after)
        try:
            run_until(Reversion(self.world.host, self._plan(to)).steps(), "")
        except Killed:
            pass
        finally:
            self.world.faults.clear()
        self._goes_back(to, data, crash=crash)

    def _plan(self, to: Taken) -> RevertPlan:
        return plan_revert(self.world.host, "vm1", cfgfile.read(to.cfg), to.cfg)

    def _goes_back(self, to: Taken, data: st.DataObject, *, crash: bool = False) -> None:
        """It is finished by a recovery, or by the same command.

        A recovery leaves a domain as it is that was not touched, or that has been restored already.
        """
        entry = killed_revert()
        recovers = data.draw(st.booleans())
        self._killed(self._recover if recovers else lambda: self._revert(to), crash)
        untouched = any(g.runs and g.domid == entry.domid for g in self.world.host.guests)
        goes = entry.destroy_begun and entry.restored_domid is None and not untouched
        self.going_back_to = to if goes or not recovers else None
        if recovers and (entry.user_informed or (entry.restored_domid is not None and crash)):
            self.finish = lambda: self._ask_and_revert(to)

    # Deleting

    def _deleted(self, one: Taken, *, crash: bool = False) -> None:
        """It was cut off: either it is whole, or what is left is deleted later."""
        if one.cfg.exists():
            assert one.memory.exists()
            assert all((vdev, one.name) in self.world.storage.snapshots for vdev in VDEVS)
        else:
            self.taken.remove(one)
        self._killed(self._recover, crash)

    @precondition(lambda self: self.finish is None and self.taken)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.taken))
        operations.delete(self.world.host, one.cfg)
        self.taken.remove(one)

    @precondition(lambda self: self.finish is None and self.taken)
    @rule(
        data=st.data(),
        step=st.sampled_from(DELETE),
        when=st.sampled_from(["before", "after"]),
        fault=st.sampled_from(sorted(FAULTS)),
        again=st.booleans(),
    )
    def delete_with_a_fault_at_a_step(
        self, data: st.DataObject, step: str, when: str, fault: str, again: bool
    ) -> None:
        one = data.draw(st.sampled_from(self.taken))
        before = self.world.photo()
        deletion = FaultyDeletion(plan_delete(self.world.host, one.cfg))
        deletion.at, deletion.when, deletion.fault = step, when, self._raising(fault)
        with pytest.raises(OperationFailed) as caught:
            deletion.run()
        if not isinstance(caught.value, NeedsAttention):
            assert self.world.photo() == before
            return
        self._deleted(one)
        if again:
            self.finish = lambda: operations.delete(self.world.host, one.cfg)

    @precondition(lambda self: self.finish is None and self.taken)
    @rule(data=st.data(), step=st.sampled_from(DELETE), crash=st.booleans())
    def delete_that_is_killed(self, data: st.DataObject, step: str, crash: bool) -> None:
        one = data.draw(st.sampled_from(self.taken))
        run_until(Deletion(plan_delete(self.world.host, one.cfg)).steps(), step)
        self._deleted(one, crash=crash)

    @precondition(lambda self: self.finish is None and self.taken)
    @rule(data=st.data(), verb=st.sampled_from(IN_DELETE), after=WHEN, crash=st.booleans())
    def delete_that_is_killed_in_a_step(
        self, data: st.DataObject, verb: str, after: bool, crash: bool
    ) -> None:
        one = data.draw(st.sampled_from(self.taken))
        self.world.fail(verb, Killed(), after=after)
        with pytest.raises(Killed):
            run_until(Deletion(plan_delete(self.world.host, one.cfg)).steps(), "")
        self.world.faults.clear()
        self._deleted(one, crash=crash)

    # Finishing

    def _recover(self) -> None:
        operations.recover(self.world.host, None)
        self._start_what_crashed()

    @precondition(lambda self: self.finish is not None and not self.crashed)
    @rule()
    def nothing_else_is_done_before_it_is_finished(self) -> None:
        if Journal(UUID).read() is not None and self.going_back_to is None:
            with pytest.raises(Refused, match="snapshot-recover"):
                self._create()

    @precondition(lambda self: self.finish is not None)
    @rule()
    def finish_it(self) -> None:
        assert self.finish
        self.finish()
        if self.going_back_to:
            assert self.guest.memory == self.going_back_to.moment
        self.finish = self.going_back_to = None

    @invariant()
    def all_is_well(self) -> None:
        if self.finish is not None:
            return
        assert self.guest.runs
        assert set(self.world.storage.content.values()) == {self.guest.memory}
        assert Journal(UUID).read() is None
        assert self.world.storage.snapshots == {
            (vdev, taken.name): taken.moment for taken in self.taken for vdev in VDEVS
        }
        files = {p for p in self.world.directory.rglob("*") if p.is_file()}
        assert files == {p for taken in self.taken for p in (taken.cfg, taken.memory)}
        assert set((self.world.root / "images").iterdir()) == self.images


def settings_for(examples: int) -> settings:
    return settings(
        max_examples=examples, stateful_step_count=15, suppress_health_check=[HealthCheck.too_slow]
    )


class ForLong(AnyOrder):
    """The same, for `make soak`."""


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings_for(30)

TestForLong = pytest.mark.soak(ForLong.TestCase)
TestForLong.settings = settings_for(600)
