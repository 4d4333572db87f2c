"""A small world to run the sequences in: a host, its guests, their disks, and a clock for faults.

Typed against :mod:`pyxlsnap.guest.protocols`, so that mypy notices when they drift apart.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, cast

import pytest

import pyxlsnap.create.feasibility
import pyxlsnap.create.plan
import pyxlsnap.monitor.actions
import pyxlsnap.monitor.xl
import pyxlsnap.recovery.finish_revert
import pyxlsnap.recovery.undo_create
import pyxlsnap.revert.plan
from pyxlsnap import paths
from pyxlsnap.disks.protocol import DiskStrategy, DiskTask
from pyxlsnap.errors import (
    Aborted,
    AlreadyExists,
    DiskError,
    DomainNotFound,
    GuestTimeout,
    Refused,
    XenError,
)
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.memory import walk
from pyxlsnap.model import Disk, DiskRequest, DomainConfig, DomainInfo
from pyxlsnap.results import Artefact, OnProgress, Progress, Step
from pyxlsnap.xen.domain import REQUEST_S, SETTLE_S
from tests.unit.support import streams

UUID = "8a1f0c3e-0000-4000-8000-00000000c0de"
OTHER_UUID = "8a1f0c3e-0000-4000-8000-00000000beef"
GIB_KB = 1 << 20

on_xen = pytest.mark.skipif(Path("/proc/xen/privcmd").exists(), reason="there is a Xen here")


def open_descriptors() -> int:
    """How many descriptors this process has, give or take the one that looks."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def eventually(true: Callable[[], bool]) -> bool:
    """Whether something comes true in the next seconds."""
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def write_all(fd: int, data: bytes) -> None:
    """As libxl writes a stream: a full disk is an error, not less data."""
    with os.fdopen(os.dup(fd), "wb", buffering=0) as file:
        while data:
            data = data[file.write(data) :]


@dataclass(frozen=True)
class Photo:
    """What is there at one instant: files, and disk snapshots as (vdev, name)."""

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
        self.on_event: Callable[[str], None] = lambda _: None
        #: the content of memory files, by inode
        self.memories: dict[int, str] = {}
        #: what each disk strategy says
        self.expected_seconds = 0.0
        self.directory = root / "snapshots"
        for name in ("run", "journals", "images", "dumps", "logs"):
            (root / name).mkdir(exist_ok=True)
        self.kernel = root / "images" / "vmlinuz"
        self.kernel.touch()

    def fail(self, verb: str, error: BaseException, *, after: bool = False) -> None:
        """Let every call of a verb fail, before or after it has done its work."""
        self.faults[verb, "after" if after else "before"] = error

    @contextmanager
    def doing(self, verb: str) -> Iterator[None]:
        if error := self.faults.get((verb, "before")):
            raise error
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
        return Disk(vdev, str(target), "qcow2", "qdisk")

    def guest(
        self, *disks: Disk, name: str = "vm1", uuid: str = UUID, kind: str = "hvm"
    ) -> "FakeGuest":
        """Start a guest."""
        config = config_of(*disks, name=name, uuid=uuid, kind=kind, kernel=str(self.kernel))
        return self.host.start(config)

    def strategies(
        self,
        disks: Sequence[tuple[Disk, DiskRequest]],
        task: DiskTask,
        recorded: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[DiskStrategy, ...]:
        """In the place of the registry's :func:`strategies`: one strategy for each disk."""
        assert set(recorded.values()) <= {FakeStrategy.kind}
        return tuple(FakeStrategy(self, (disk.vdev,), task.name) for disk, _ in disks)


def config_of(
    *disks: Disk,
    name: str = "vm1",
    uuid: str = UUID,
    kind: str = "hvm",
    kernel: str = "",
    **more: object,
) -> DomainConfig:
    """A configuration as libxl writes it."""
    text = config_json(*disks, name=name, uuid=uuid, kind=kind, kernel=kernel, **more)
    return DomainConfig.parse(text)


def config_json(
    *disks: Disk,
    name: str = "vm1",
    uuid: str = UUID,
    kind: str = "hvm",
    kernel: str = "",
    **more: object,
) -> str:
    """The same as text, whatever is in it."""
    values: dict[str, object] = {
        "c_info": {"type": kind, "name": name, "uuid": uuid, "driver_domain": "False"},
        "b_info": {
            "max_vcpus": 2,
            "kernel": kernel,
            "nested_hvm": "False",
            "device_model_stubdomain": "False",
            "type.hvm": {"nested_hvm": "<default>"},
        },
        "disks": [
            {
                "vdev": d.vdev,
                "pdev_path": d.target,
                "format": d.format,
                "backend": d.backend,
                "readwrite": int(d.readwrite),
                "is_cdrom": int(d.cdrom),
            }
            for d in disks
        ],
        "nics": [{"devid": 0, "bridge": "lo"}],
        **more,
    }
    return json.dumps(values)


class FakeGuest:
    """A domain. It starts out running."""

    def __init__(self, world: World, domid: int, config: DomainConfig) -> None:
        self._world = world
        self.domid = domid
        self.uuid = config.uuid
        self.name = config.name
        self.configuration = config
        self.exists = True
        self.suspended = False
        self.dying = False
        self.paused = False
        self.paused_twice = False
        self.has_run = True
        self.requested = False
        self.shutdown_reason = ""
        self.memory_kb = 1024
        #: what it holds in its memory
        self.memory = ""
        #: seconds after a failed suspend at which the guest suspends all the same
        self.suspends_late_s: float | None = None
        self.resumes = 0
        self.aborts = 0
        self.frontends: list[dict[str, int]] = [{"vbd/51712": 4, "vif/0": 4}]
        self.device_model: int | None = None
        self.stub_domain = False
        self.stream = streams.hvm_stream()
        self.while_suspending: Callable[[], None] = lambda: None
        #: the name that it has now, if it was renamed
        self.present = ""
        #: disks that were attached meanwhile
        self.attached: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} (domid {self.domid})"

    @property
    def runs(self) -> bool:
        return self.exists and not (
            self.suspended or self.paused or self.dying or self.shutdown_reason
        )

    def time_passes(self) -> None:
        """A late suspend comes."""
        if self.suspends_late_s is not None and self.exists:
            self.suspended, self.suspends_late_s = True, None

    def info(self) -> DomainInfo:
        with self._world.doing("info"):
            if not self.exists:
                raise DomainNotFound(f"there is no domain {self}", domain=str(self))
            reason = "suspend" if self.suspended else self.shutdown_reason
            return DomainInfo(
                domid=self.domid,
                uuid=self.uuid,
                paused=self.paused,
                shutdown=bool(reason),
                shutdown_reason=reason,
                dying=self.dying,
                memory_kb=self.memory_kb,
                has_run=self.has_run,
            )

    def check_same(self, *, dying: bool = False) -> DomainInfo:
        info = self.info()
        if info.dying and not dying:
            raise DomainNotFound(f"domain {self} is gone", domain=self.uuid)
        return info

    def present_name(self) -> str:
        return self.present or self.name

    def config(self) -> DomainConfig:
        with self._world.doing("config"):
            return self.configuration.with_name(self.name)

    def suspend(self, fd: int, *, live: bool, on_progress: OnProgress | None = None) -> None:
        with self._world.doing("suspend"):
            if self.paused:
                self._wait_unpaused()
            if not self.runs:
                raise XenError(f"{self} does not run", rc=-3, operation="libxl_domain_suspend")
            report = on_progress or (lambda _: None)
            half = len(self.stream) // 2
            write_all(fd, self.stream[:half])
            report(Progress("memory", 1, 2))
            self.while_suspending()
            write_all(fd, self.stream[half:])
            self._world.memories[os.fstat(fd).st_ino] = self.memory
            report(Progress("domain now suspended"))
            self.suspended = True

    def resume(self, *, paused: bool = False) -> None:
        with self._world.doing("resume"):
            self.check_same()
            assert not self.paused
            self.paused = paused
            if not self.suspended:
                raise XenError("not suspended", rc=-3, operation="libxl_domain_resume")
            assert not self._world.storage.unsettled, "it would write where nobody looks"
            self._world.at_resume = self._world.photo()
            self.suspended = False
            self.resumes += 1

    def _wait_unpaused(self) -> None:
        """What a paused guest does with a request that stands: nothing."""
        aborts, end = self.aborts, time.monotonic() + 5
        self.requested = True
        while self.paused and self.aborts == aborts and time.monotonic() < end:
            time.sleep(0.001)
        self.requested = False
        if self.aborts != aborts:
            raise Aborted("aborted", rc=-22, operation="libxl_domain_suspend")

    def ensure_running(
        self, *, settle_s: float = SETTLE_S, request_s: float = REQUEST_S, paused: bool = False
    ) -> bool:
        if self.suspends_late_s is not None:
            if self.suspends_late_s > max(settle_s, request_s):
                raise GuestTimeout("may yet suspend", rc=-8, operation="libxl_domain_suspend")
            self.time_passes()
        if self.check_same().suspended:
            self.resume(paused=paused)
            return True
        self.paused = paused
        return False

    @contextmanager
    def on_its_own(self) -> Iterator["FakeGuest"]:
        yield self

    def suspend_requested(self) -> bool:
        return self.requested

    def pause(self) -> None:
        with self._world.doing("pause"):
            self.paused = True

    def unpause(self) -> None:
        with self._world.doing("unpause"):
            self.paused = self.paused_twice
            self.has_run = True

    def destroy(self) -> None:
        with self._world.doing("destroy"):
            self.info()
            self.exists = False

    def core_dump(self, path: str) -> None:
        with self._world.doing("core_dump"):
            Path(path).touch(exist_ok=False)

    def preserve(self, config: DomainConfig, suffix: str) -> None:
        with self._world.doing("preserve"):
            assert self.shutdown_reason
            self.name, self.uuid = config.name + suffix, OTHER_UUID

    def soft_reset(self, config: DomainConfig) -> None:
        with self._world.doing("soft_reset"):
            assert self.shutdown_reason == "soft_reset"
            self.shutdown_reason, self.paused = "", True

    def wait_gone(self, *, timeout_s: float) -> None:
        with self._world.doing("wait_gone"):
            assert not self.exists

    def abort(self) -> bool:
        self.aborts += 1
        return True

    def device_model_pid(self) -> int | None:
        return self.device_model

    def is_stub_domain(self) -> bool:
        return self.stub_domain

    def frontend_states(self) -> dict[str, int]:
        return self.frontends.pop(0) if len(self.frontends) > 1 else self.frontends[0]

    def disk_targets(self) -> tuple[str, ...]:
        with self._world.doing("disk_targets"):
            there = tuple(d.target for d in self.configuration.disks if d.target)
            return there + self.attached


class FakeChanges:
    """What happens to the domains while somebody watches them, one thing after the other."""

    def __init__(self, changes: list[Callable[[], object]]) -> None:
        self._changes = changes

    def wait(self) -> None:
        assert self._changes, "it would wait for ever"
        self._changes.pop(0)()

    def wake(self) -> bool:
        return True


class FakeHost:
    """The host, with dom0 and whatever is started."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._domid = 0
        self.guests: list[FakeGuest] = []
        #: what happens, in turn, while somebody watches the domains
        self.changes: list[Callable[[], object]] = []
        self.version = (4, 17)
        self.command_line = "dom0_mem=4G,max:4G"
        self.shadow_paging = True
        self.autoballoon_setting = "auto"
        self.free_kb = GIB_KB
        self.needed_kb = 1024
        self.shrunk_kb: list[int] = []
        self.dom0_kb = self.dom0_target_kb = 4 * GIB_KB
        #: what dom0 does not give back, whatever its target
        self.dom0_holds_kb = 0
        #: seconds for which dom0's memory stands still before it comes down
        self.dom0_stalls_s = 5
        #: called each time that dom0 has been waited for
        self.after_dom0: Callable[[], None] = lambda: None

    def start(self, config: DomainConfig) -> FakeGuest:
        self._domid += 1
        guest = FakeGuest(self._world, self._domid, config)
        self.guests.append(guest)
        return guest

    def xen_version(self) -> tuple[int, int]:
        return self.version

    def xen_command_line(self) -> str:
        return self.command_line

    def autoballoon(self) -> str:
        return self.autoballoon_setting

    def has_shadow_paging(self) -> bool:
        return self.shadow_paging

    def free_memory_kb(self) -> int:
        return self.free_kb

    def needed_memory_kb(self, config: DomainConfig) -> int:
        return self.needed_kb

    def shrink_dom0(self, by_kb: int) -> None:
        """The target is another number than the memory: that comes down while it is waited for."""
        target = max(0, self.dom0_target_kb - by_kb)
        if target < 128 * 1024:
            raise XenError("below the minimum", rc=-6, operation="libxl_set_memory_target")
        self.shrunk_kb.append(by_kb)
        self.dom0_target_kb = target

    def wait_for_dom0(self, *, stalled_s: int) -> bool:
        if stalled_s > self.dom0_stalls_s:
            given = max(0, self.dom0_kb - max(self.dom0_target_kb, self.dom0_holds_kb))
            self.dom0_kb -= given
            self.free_kb += given
        self.after_dom0()
        return self.dom0_kb <= self.dom0_target_kb

    def domains(self) -> list[DomainInfo]:
        uuid = "0" * 8 + "-0000-0000-0000-" + "0" * 12
        dom0 = DomainInfo(0, uuid, False, False, "", False, self.dom0_kb)
        with self._world.doing("domains"):
            return [dom0, *(g.info() for g in self._there())]

    def find(self, domain: str) -> FakeGuest:
        with self._world.doing("find"):
            for guest in self._there():
                if domain in (guest.name, guest.uuid, str(guest.domid)):
                    return guest
            raise DomainNotFound.among(domain, [g.name for g in self._there()])

    def restore(self, config: DomainConfig, fd: int) -> FakeGuest:
        with self._world.doing("restore"):
            if any(g.name == config.name or g.uuid == config.uuid for g in self._there()):
                raise XenError("name or uuid in use", rc=-3, operation="restore")
            with os.fdopen(os.dup(fd), "rb") as stream:
                walk(stream, "restored")
            guest = self.start(config)
            guest.memory = self._world.memories.get(os.fstat(fd).st_ino, "")
            guest.paused, guest.has_run = True, False
        return guest

    def create(self, config: DomainConfig) -> FakeGuest:
        with self._world.doing("create"):
            if any(g.name == config.name or g.uuid == config.uuid for g in self._there()):
                raise XenError("name or uuid in use", rc=-3, operation="create")
            guest = self.start(config)
            guest.paused = True
        return guest

    @contextmanager
    def watching(self) -> Iterator["FakeChanges"]:
        yield FakeChanges(self.changes)

    def abort(self) -> bool:
        return True

    def _there(self) -> list[FakeGuest]:
        return [g for g in self.guests if g.exists]


class FakeStrategy:
    """Disks whose snapshots are kept in the world's storage."""

    kind = "fake"

    def __init__(self, world: World, vdevs: tuple[str, ...], name: str) -> None:
        self._world = world
        self._storage = world.storage
        self.vdevs = vdevs
        self._name = name
        self._made: list[tuple[str, str]] = []
        self._reached = True

    def check_create(self, domid: int) -> None:
        with self._world.doing("check_create"):
            self._refuse_taken()

    def expected_seconds(self) -> float:
        return self._world.expected_seconds

    def state(self) -> dict[str, str]:
        return {f"{vdev} fake": self._name for vdev in self.vdevs}

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

    def adopt_create(self, domid: int, *, began: float, state: Mapping[str, str]) -> None:
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

    def revert(self) -> None:
        with self._world.doing(f"revert {self.vdevs[0]}"):
            for vdev in self.vdevs:
                kept = (vdev, f"{self._name}.pre-revert")
                self._storage.snapshots.setdefault(kept, self._storage.content[vdev])
                self._storage.content[vdev] = self._storage.snapshots[vdev, self._name]

    def finish_revert(self, domid: int) -> list[str]:
        with self._world.doing(f"drop {self.vdevs[0]}"):
            for vdev in self.vdevs:
                self._storage.snapshots.pop((vdev, f"{self._name}.pre-revert"), None)
            return []

    def _refuse_taken(self) -> None:
        for vdev in self.vdevs:
            if (vdev, self._name) in self._storage.snapshots:
                raise AlreadyExists(f"{vdev} has {self._name!r} already", where=vdev)

    def close(self) -> None:
        self._world.events.append(f"close {self.vdevs[0]}")


class Stepwise(Protocol):
    """What create and revert have in common."""

    def steps(self) -> list[Step]: ...


def run_until(steps: list[Step], last: str) -> None:
    """Do the steps up to that one: what follows is never done, as by a process that was killed."""
    for name, do in steps:
        do()
        if name == last:
            return


class FailsAtStep:
    """Put before a sequence's class: it fails at one of its steps."""

    at = ""
    when = ""
    fault: Callable[[], None] = staticmethod(lambda: None)

    def steps(self) -> list[Step]:
        sequence = cast(Stepwise, super())
        return [
            (name, self._faulty(do) if name == self.at else do) for name, do in sequence.steps()
        ]

    def _faulty(self, do: Callable[[], None]) -> Callable[[], None]:
        def step() -> None:
            if self.when == "after":
                do()
            self.fault()
            if self.when == "before":
                do()

        return step


if TYPE_CHECKING:

    def _guest(fake: FakeGuest) -> Guest:
        return fake

    def _host(fake: FakeHost) -> Host:
        return fake

    def _strategy(fake: FakeStrategy) -> DiskStrategy:
        return fake


# What the package knows of the machine's directories, and what is chosen for a kind of storage.
PLACES = {
    "LOCKS": "run",
    "JOURNALS": "journals",
    "LIBVIRT_DOMAINS": "libvirt",
    "SNAPSHOTS": "snapshots",
    "DUMPS": "dumps",
    "XEN_LOGS": "logs",
    "XL_LOCK": "run/xl.lock",
}
CHOOSERS = (
    pyxlsnap.create.plan,
    pyxlsnap.revert.plan,
    pyxlsnap.recovery.undo_create,
    pyxlsnap.recovery.finish_revert,
    pyxlsnap.create.feasibility,
)


def make_world(root: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An empty world; the package's directories and disk strategies are its own."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no disk is waited for
    root.mkdir(exist_ok=True)
    found = World(root)
    for name, place in PLACES.items():
        monkeypatch.setattr(paths, name, root / place)
    for module in CHOOSERS:
        monkeypatch.setattr(module, "strategies", found.strategies)
    return found
