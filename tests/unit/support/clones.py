"""A domain with a snapshot in the small world, and clones of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast
from uuid import uuid4

from pyxlsnap import cfgfile
from pyxlsnap.cancel import Cancel
from pyxlsnap.clone import operation
from pyxlsnap.clone.plan import ClonePlan, make_plan
from pyxlsnap.clone.sequence import Cloning
from pyxlsnap.clone_file import find_clone
from pyxlsnap.create.sequence import Creation
from pyxlsnap.model import DomainConfig, SnapshotConfig
from pyxlsnap.request import Callbacks, CloneRequest
from pyxlsnap.results import Cloned, Plan
from tests.unit.support.guest import FakeGuest
from tests.unit.support.operations import plan_create
from tests.unit.support.values import UUID
from tests.unit.support.world import World

SNAPSHOT = "snap"
CLONE = "vm1-a"
CLONE_UUID = UUID.replace("8", "5")


class Origin:
    """A domain with a snapshot of two disks; it runs on."""

    def __init__(
        self,
        world: World,
        *,
        paused: bool = False,
        nics: Sequence[dict[str, Any]] = (),
        emulated: Mapping[str, object] = MappingProxyType({}),
        **config: Any,
    ) -> None:
        self.world = world
        self.guest = world.guest(world.image("xvda"), world.image("xvdb"), **config)
        if nics or emulated:
            values = json.loads(self.guest.configuration.json)
            values["nics"] = list(nics)
            values["b_info"]["type.hvm"] |= emulated
            self.guest.configuration = DomainConfig.parse(json.dumps(values))
        self.guest.memory = "then"
        self.guest.paused = paused
        made = plan_create(world.host, self.guest, SnapshotConfig(name=SNAPSHOT))
        Creation(made).run()
        self.memory_path, self.cfg = made.memory_path, made.cfgfile
        self.guest.memory = "since"
        world.events.clear()
        self.before = world.photo()

    def request(self, name: str = CLONE, **words: Any) -> CloneRequest:
        config = cfgfile.read(self.cfg)
        return CloneRequest(domain=name, cfgfile=str(self.cfg), config=config, **words)

    def plan(self, name: str = CLONE, **words: Any) -> ClonePlan:
        old = find_clone(name)
        uuid = old.uuid if old else CLONE_UUID if name == CLONE else str(uuid4())
        return make_plan(self.world.host, self.request(name, **words), uuid, old, Cancel())

    def clone(self, name: str = CLONE, *, cancel: Cancel | None = None, **words: Any) -> Cloned:
        callbacks = Callbacks(start_monitor=lambda _: None)
        return operation.clone(self.world.host, self.request(name, **words), callbacks, cancel)

    def preview(self, name: str = CLONE, *, cancel: Cancel | None = None, **words: Any) -> Plan:
        request = self.request(name, **words)
        return operation.preview(self.world.host, request, Callbacks(), cancel)

    def children(self) -> set[str]:
        """The names of the disks of clones that are there."""
        there = (self.world.root / "images").glob("xvd?.*")
        return {path.name for path in there if path.suffix != ".qcow2"}

    def find(self, name: str = CLONE) -> FakeGuest | None:
        """The clone's domain."""
        found = [g for g in self.world.host.guests if g.exists and g.name == name]
        return found[0] if found else None

    def assert_as_before(self) -> None:
        assert self.guest.exists
        assert self.world.photo() == self.before
        assert self.find() is None


def clone_steps(*, replaces: bool) -> tuple[str, ...]:
    """The names of the steps of a clone, as the code has them."""
    cloning = Cloning.__new__(Cloning)
    cloning._plan = cast(ClonePlan, SimpleNamespace(old=True if replaces else None))
    return tuple(name for name, _ in cloning.steps())


def files(directory: Path) -> set[str]:
    """The names of the files in a directory, without locks."""
    return {path.name for path in directory.iterdir() if path.suffix not in (".lock", ".clone")}
