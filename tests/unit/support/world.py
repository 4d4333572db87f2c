"""A small world to run the sequences in: a host, its guests, their disks, and faults."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pyxlsnap.clone.plan
import pyxlsnap.clone.removal
import pyxlsnap.create.ended
import pyxlsnap.create.feasibility
import pyxlsnap.create.plan
import pyxlsnap.delete.plan
import pyxlsnap.guest.gone
import pyxlsnap.recovery.finish_revert
import pyxlsnap.recovery.undo_create
import pyxlsnap.revert.plan
import pyxlsnap.revert.ready
from pyxlsnap import paths
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.model import Disk, DiskRequest
from tests.unit.support.guest import FakeGuest, config_of
from tests.unit.support.host import FakeHost
from tests.unit.support.patches import Patch
from tests.unit.support.strategy import FakeBeside, FakeStrategy
from tests.unit.support.values import BRIDGE, UUID


@dataclass(frozen=True)
class Photo:
    """The state at one instant: files, and disk snapshots as (vdev, name)."""

    files: frozenset[Path]
    disk_snapshots: frozenset[tuple[str, str]]


@dataclass
class Storage:
    """The content of each disk now, and in each of its disk snapshots."""

    content: dict[str, str] = field(default_factory=dict)
    snapshots: dict[tuple[str, str], str] = field(default_factory=dict)
    #: disks whose guest must not run: their create was cut off in the middle
    unsettled: set[str] = field(default_factory=set)


class World:
    """Everything below one directory, and what happened there in its order."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events: list[str] = []
        self.faults: dict[tuple[str, str], BaseException] = {}
        self.storage = Storage()
        self.host = FakeHost(self)
        #: what was there when a suspended guest was last resumed
        self.at_resume: Photo | None = None
        self.on_begin: Callable[[str], None] = lambda _: None
        self.on_event: Callable[[str], None] = lambda _: None
        #: the disks whose snapshots are taken beside the memory
        self.beside: set[str] = set()
        #: what each disk strategy says
        self.expected_seconds = 0.0
        #: what each disk strategy does in its settle, with its task's ``waiting``
        self.in_settle: Callable[[Callable[[str], None]], None] = lambda _: None
        self.directory = root / "snapshots"
        self.kernel = root / "images" / "vmlinuz"
        if not (root / "images").exists():  # (else another process has made all)
            self._fill()

    def _fill(self) -> None:
        for name in ("run", "journals", "images", "dumps", "logs", "state"):
            (self.root / name).mkdir(exist_ok=True)
        (self.root / "net" / BRIDGE / "bridge").mkdir(parents=True)
        (self.root / "libxl-save-helper").touch(0o755)
        self.kernel.touch()

    def fail(self, verb: str, error: BaseException, *, after: bool = False) -> None:
        """Let every call of a verb fail, before or after it has done its work."""
        self.faults[verb, "after" if after else "before"] = error

    @contextmanager
    def doing(self, verb: str) -> Iterator[None]:
        if error := self.faults.get((verb, "before")):
            raise error
        self.on_begin(verb)
        yield
        self.events.append(verb)
        self.on_event(verb)
        if error := self.faults.get((verb, "after")):
            raise error

    def photo(self) -> Photo:
        files = frozenset(p for p in self.root.rglob("*") if p.suffix != ".lock")
        return Photo(files, frozenset(self.storage.snapshots))

    def image(self, vdev: str, content: str = "before") -> Disk:
        """A disk with something on it."""
        target = self.root / "images" / f"{vdev}.qcow2"
        target.touch()
        self.storage.content[vdev] = content
        return Disk(vdev, str(target), "qcow2")

    def guest(
        self,
        *disks: Disk,
        name: str = "vm1",
        uuid: str = UUID,
        kind: str = "hvm",
        target_kb: int = 1024,
    ) -> "FakeGuest":
        """Start a guest."""
        kernel = str(self.kernel)
        config = config_of(
            *disks, name=name, uuid=uuid, kind=kind, kernel=kernel, target_kb=target_kb
        )
        return self.host.start(config)

    def strategies(
        self,
        disks: Sequence[tuple[Disk, DiskRequest]],
        task: DiskTask,
        recorded: Mapping[str, str] = MappingProxyType({}),
        *,
        trusted: bool = False,
    ) -> tuple[DiskStrategy, ...]:
        """In the place of the registry's :func:`strategies`: one strategy for each disk."""
        assert set(recorded.values()) <= {FakeStrategy.kind}
        kinds = [FakeBeside if d.vdev in self.beside else FakeStrategy for d, _ in disks]
        return tuple(k(self, (d.vdev,), task) for k, (d, _) in zip(kinds, disks, strict=True))


# What the package knows of the machine's directories, and what is chosen for a kind of storage.
PLACES = {
    "LOCKS": "run",
    "JOURNALS": "journals",
    "LIBVIRT_DOMAINS": "libvirt",
    "SNAPSHOTS": "snapshots",
    "DUMPS": "dumps",
    "XEN_LOGS": "logs",
    "XL_LOCK": "run/xl.lock",
    "NETWORK": "net",
    "XEN_SCRIPTS": "scripts",
    "SCRIPT_LOCKS": "run/hotplug",
}
CHOOSERS = (
    pyxlsnap.clone.plan,
    pyxlsnap.clone.removal,
    pyxlsnap.create.ended,
    pyxlsnap.create.plan,
    pyxlsnap.delete.plan,
    pyxlsnap.revert.plan,
    pyxlsnap.revert.ready,
    pyxlsnap.recovery.undo_create,
    pyxlsnap.recovery.finish_revert,
    pyxlsnap.create.feasibility,
)


def make_world(root: Path, patch: Patch) -> World:
    """An empty world; the package's directories and disk strategies are its own."""
    patch.setattr(os, "fsync", lambda _: None)  # no disk is waited for
    patch.setattr(pyxlsnap.guest.gone, "_DESTROY_S", 0.0)
    root.mkdir(exist_ok=True)
    found = World(root)
    for name, place in PLACES.items():
        patch.setattr(paths, name, root / place)
    for module in CHOOSERS:
        patch.setattr(module, "strategies", found.strategies)
    return found
