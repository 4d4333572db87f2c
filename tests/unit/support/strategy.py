"""Disks of the small world, typed against :class:`pyxlsnap.disks.protocol.DiskStrategy`."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pyxlsnap.disks.abilities import BesideStrategy, DeletingStrategy, PreparingStrategy
from pyxlsnap.disks.protocol import DiskTask
from pyxlsnap.errors import (
    AlreadyExists,
    DiskError,
    Refused,
)
from pyxlsnap.results import Artefact

if TYPE_CHECKING:
    from tests.unit.support.world import World


class FakeStrategy:
    """Disks whose snapshots are kept in the world's storage."""

    kind = "fake"

    def __init__(self, world: "World", vdevs: tuple[str, ...], task: DiskTask) -> None:
        self._world = world
        self._storage = world.storage
        self.vdevs = vdevs
        self.task = task
        self._name = task.name
        self._waiting = task.waiting
        self._kept = {v for v in vdevs if f"{v} kept" in (task.finishes or {})}
        self._made: list[tuple[str, str]] = []
        killed = task.prepared if task.prepared is not None else task.finishes
        self._readied = {v for v in vdevs if f"{v} fake" in (killed or {})}
        self._reached = True

    def check_create(self, domid: int) -> None:
        with self._world.doing("check_create"):
            self._refuse_taken()

    def expected_seconds(self) -> float:
        return self._world.expected_seconds

    def state(self) -> dict[str, str]:
        fake = {f"{vdev} fake": self._name for vdev in self.vdevs}
        return fake | {f"{vdev} kept": "" for vdev in self._kept}

    def prepare(self) -> None:
        with self._world.doing(f"prepare {self.vdevs[0]}"):
            for vdev in self.vdevs:
                self._storage.snapshots[vdev, f"{self._name}.prepared"] = ""
                self._made.append((vdev, f"{self._name}.prepared"))

    def finish_create(self) -> None:
        with self._world.doing(f"finish {self.vdevs[0]}"):
            pass

    def settle(self) -> None:
        with self._world.doing(f"settle {self.vdevs[0]}"):
            self._world.in_settle(self._waiting)
            self._storage.unsettled -= set(self.vdevs)

    def create(self) -> None:
        with self._world.doing(f"create {self.vdevs[0]}"):
            try:
                self._refuse_taken()
            except AlreadyExists as e:  # the storage says so, not our check
                raise DiskError(e.message, vdev=e.where) from e
            self._storage.unsettled |= set(self.vdevs)
            for vdev in self.vdevs:
                self._storage.snapshots[vdev, self._name] = self._storage.content[vdev]
                del self._storage.snapshots[vdev, f"{self._name}.prepared"]
            self._made = [(vdev, self._name) for vdev in self.vdevs]
            with self._world.doing(f"commit {self.vdevs[0]}"):
                self._storage.unsettled -= set(self.vdevs)

    def undo_create(self) -> list[str]:
        with self._world.doing(f"undo {self.vdevs[0]}"):
            if not self._reached:
                raise DiskError("not reached", vdev=self.vdevs[0])
            undone = [f"deleted {name} of {vdev}" for vdev, name in self._made]
            for key in self._made:
                del self._storage.snapshots[key]
            self._made.clear()
            return undone

    def adopt_create(self, domid: int | None, *, began: float, state: Mapping[str, str]) -> None:
        assert self.state().items() <= state.items()
        self._reached = False
        with self._world.doing(f"adopt {self.vdevs[0]}"):
            ours = [(v, n) for v in self.vdevs for n in (self._name, f"{self._name}.prepared")]
            self._made = [key for key in ours if key in self._storage.snapshots]
            self._reached = True

    def artefacts(self, domain: str) -> list[Artefact]:
        return [Artefact("disk snapshot", f"{n} in {v}", f"delete {n}") for v, n in self._made]

    def check_revert(self) -> None:
        with self._world.doing("check_revert"):
            missing = [v for v in self.vdevs if (v, self._name) not in self._storage.snapshots]
            if missing:
                raise Refused(f"{', '.join(missing)} has no disk snapshot {self._name!r}")
            for vdev in self.vdevs:
                if vdev not in self._kept and self._kept_key(vdev) in self._storage.snapshots:
                    raise Refused(f"{vdev} has {self._kept_key(vdev)[1]!r} already")
                if vdev not in self._readied and self._ready_key(vdev) in self._storage.snapshots:
                    raise Refused(f"{vdev} has {self._ready_key(vdev)[1]!r} already")
            self._kept = set(self.vdevs)

    def prepare_revert(self, check: Callable[[], None]) -> None:
        check()
        self._readied = set(self.vdevs)
        with self._world.doing(f"ready {self.vdevs[0]}"):
            for vdev in self.vdevs:
                self._storage.snapshots[self._ready_key(vdev)] = ""

    def undo_prepared(self) -> None:
        with self._world.doing(f"unready {self.vdevs[0]}"):
            for vdev in self._readied:
                self._storage.snapshots.pop(self._ready_key(vdev), None)

    def _ready_key(self, vdev: str) -> tuple[str, str]:
        return (vdev, f"{self._name}.ready")

    def _kept_key(self, vdev: str) -> tuple[str, str]:
        return (vdev, f"{self._name}.pre-revert")

    def revert(self) -> None:
        with self._world.doing(f"revert {self.vdevs[0]}"):
            for vdev in self.vdevs:
                kept = self._kept_key(vdev)
                self._storage.snapshots.setdefault(kept, self._storage.content[vdev])
                self._storage.content[vdev] = self._storage.snapshots[vdev, self._name]
                self._storage.snapshots.pop(self._ready_key(vdev), None)

    def finish_revert(self, domid: int) -> list[str]:
        with self._world.doing(f"drop {self.vdevs[0]}"):
            for vdev in self._kept:
                self._storage.snapshots.pop(self._kept_key(vdev), None)
            return []

    def check_delete(self, domid: int | None) -> None:
        with self._world.doing("check_delete"):
            pass

    def prepare_delete(self) -> list[str]:
        with self._world.doing(f"free {self.vdevs[0]}"):
            return []

    def delete(self) -> list[str]:
        with self._world.doing(f"delete {self.vdevs[0]}"):
            there = [(v, self._name) for v in self.vdevs]
            gone = [key for key in there if self._storage.snapshots.pop(key, None) is not None]
            return [f"deleted {name} of {vdev}" for vdev, name in gone]

    def _refuse_taken(self) -> None:
        for vdev in self.vdevs:
            if (vdev, self._name) in self._storage.snapshots:
                raise AlreadyExists(f"{vdev} has {self._name!r} already", where=vdev)

    def close(self) -> None:
        self._world.events.append(f"close {self.vdevs[0]}")


class FakeBeside(FakeStrategy):
    """Disks whose snapshots are taken beside the memory."""

    def beside(self) -> tuple[str, ...]:
        return self.vdevs

    def create_beside(self) -> None:
        super().create()

    def create(self) -> None:
        raise AssertionError("nothing is left to be taken")


if TYPE_CHECKING:

    def _beside(fake: FakeBeside) -> BesideStrategy:
        return fake

    def _strategy(fake: FakeStrategy) -> DeletingStrategy:
        return fake

    def _preparing(fake: FakeStrategy) -> PreparingStrategy:
        return fake
