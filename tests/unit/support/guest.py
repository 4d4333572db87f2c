"""A guest of the small world, typed against :class:`pyxlsnap.guest.protocols.Guest`."""

import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pyxlsnap.errors import (
    Aborted,
    DomainNotFound,
    GuestTimeout,
    XenError,
)
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.model import Disk, DomainConfig, DomainInfo
from pyxlsnap.results import OnProgress, Progress
from pyxlsnap.xen.domain import REQUEST_S, SETTLE_S
from tests.unit.support import streams
from tests.unit.support.values import BRIDGE, OTHER_UUID, UUID

if TYPE_CHECKING:
    from tests.unit.support.world import World


def write_all(fd: int, data: bytes) -> None:
    """As libxl writes a stream: a full disk is an error, not less data."""
    with os.fdopen(os.dup(fd), "wb", buffering=0) as file:
        while data:
            data = data[file.write(data) :]


def config_of(
    *disks: Disk,
    name: str = "vm1",
    uuid: str = UUID,
    kind: str = "hvm",
    kernel: str = "",
    target_kb: int = 1024,
    **more: object,
) -> DomainConfig:
    """A configuration as libxl writes it."""
    text = config_json(
        *disks, name=name, uuid=uuid, kind=kind, kernel=kernel, target_kb=target_kb, **more
    )
    return DomainConfig.parse(text)


def config_json(
    *disks: Disk,
    name: str = "vm1",
    uuid: str = UUID,
    kind: str = "hvm",
    kernel: str = "",
    target_kb: int = 1024,
    **more: object,
) -> str:
    """The same as text, whatever is in it."""
    values: dict[str, object] = {
        "c_info": {"type": kind, "name": name, "uuid": uuid, "driver_domain": "False"},
        "b_info": {
            "max_vcpus": 2,
            "max_memkb": 64 * 1024,
            "target_memkb": target_kb,
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
        "nics": [{"devid": 0, "bridge": BRIDGE}],
        **more,
    }
    return json.dumps(values)


#: what a fake guest has in its memory is in such a record
_MEMORY = 0x80FA4E00
_MEMORY_AT = len(streams.LIBXL_HEADER + streams.LIBXC_CONTEXT) + 24 + 16


def with_memory(stream: bytes, memory: str) -> bytes:
    """A stream with what a fake guest has in its memory."""
    held = streams.record(_MEMORY, memory.encode())
    return stream[:_MEMORY_AT] + held + stream[_MEMORY_AT:]


def memory_of(stream: bytes) -> str:
    """What a fake guest had in its memory."""
    kind, length = struct.unpack_from("<2I", stream, _MEMORY_AT)
    begin = _MEMORY_AT + 8
    return stream[begin : begin + length].decode() if kind == _MEMORY else ""


class FakeGuest:
    """A domain. It starts out running."""

    def __init__(self, world: "World", domid: int, config: DomainConfig) -> None:
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
        #: processor time that it has used
        self.cpu_seconds = 1000.0
        self.requested = False
        #: it answers a suspend request when it runs
        self.answers = True
        self.shutdown_reason = ""
        self.memory_kb = 1024
        #: what it holds in its memory
        self.memory = ""
        #: seconds after a failed suspend at which the guest suspends all the same
        self.suspends_late_s: float | None = None
        self.resumes = 0
        self.aborts = 0
        self.frontends: list[dict[str, int]] = [{"vbd/51712": 4, "vif/0": 4}]
        #: changes of devices that left all as it was
        self.brief_changes = 0
        self.device_model: int | None = None
        self.says_it_takes_requests = True
        self.stub_domain = False
        self.stream = streams.hvm_stream()
        self.while_suspending: Callable[[], None] = lambda: None
        #: called when it is suspended, and a part of its memory is still to be written
        self.while_suspended: Callable[[], None] = lambda: None
        #: libxl's report of the suspend comes, and is not lost
        self.reports_suspend = True
        #: the name that it has now, if it was renamed
        self.present = ""
        #: disks that were attached meanwhile
        self.attached: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} (domid {self.domid})"

    @property
    def target_kb(self) -> int:
        """Its memory target: libxl's configuration of a domain has the present one."""
        return int(self.configuration.section("b_info").get("target_memkb", 32 * 1024))

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
                cpu_seconds=self.cpu_seconds if self.has_run else 0.0,
            )

    def check_same(self, *, dying: bool = False) -> DomainInfo:
        info = self.info()
        if info.dying and not dying:
            raise DomainNotFound(f"domain {self} is gone", domain=self.uuid)
        return info

    def present_name(self) -> str:
        return self.present or self.name

    def present_info(self) -> DomainInfo | None:
        there = [g for g in self._world.host.guests if g.exists and g.uuid == self.uuid]
        return there[0].info() if there else None

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
            stream = with_memory(self.stream, self.memory)
            half, aborts = len(stream) // 2, self.aborts
            self.write(fd, stream[:half], aborts)
            report(Progress("memory", 1, 2))
            self.while_suspending()
            self.suspended = True
            if self.reports_suspend:
                report(Progress("domain now suspended"))
            self.while_suspended()
            self.write(fd, stream[half:], aborts)

    def write(self, fd: int, data: bytes, aborts: int) -> None:
        """As libxl writes: it looks for an abort again and again."""
        for at in range(0, len(data), 1 << 16):
            if self.aborts != aborts:
                raise Aborted("aborted", rc=-22, operation="libxl_domain_suspend")
            write_all(fd, data[at : at + (1 << 16)])

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
        """Do nothing with a request while the guest is paused. (An abort does not withdraw it.)"""
        aborts, end = self.aborts, time.monotonic() + 60
        self.requested = True
        while (self.paused or not self.answers) and self.aborts == aborts:
            time.sleep(0.001)
            if time.monotonic() >= end:
                raise GuestTimeout("no answer", rc=-8, operation="libxl_domain_suspend")
        if self.aborts != aborts:
            raise Aborted("aborted", rc=-22, operation="libxl_domain_suspend")
        self.requested = False

    def ensure_running(
        self, *, settle_s: float = SETTLE_S, request_s: float = REQUEST_S, paused: bool = False
    ) -> bool:
        if paused:
            return self._ensure_paused(settle_s)
        if self.suspends_late_s is not None and not self.check_same().shutdown:
            if self.suspends_late_s > max(settle_s, request_s):
                raise GuestTimeout("may yet suspend", rc=-8, operation="libxl_domain_suspend")
            self.time_passes()
        if (info := self.check_same()).suspended:
            self.resume(paused=paused)
        return info.suspended

    def _ensure_paused(self, settle_s: float) -> bool:
        suspended = self.pause_again(settle_s=settle_s)
        if suspended:
            self.paused = False
            self.resume(paused=True)
        return suspended

    def pause_again(self, *, settle_s: float = SETTLE_S) -> bool:
        late_s = self.suspends_late_s
        running = not (self.withdraw_suspend() or self.check_same().paused)
        if running and late_s is not None and late_s <= settle_s:
            self.time_passes()
        info = self.check_same()
        if not (info.shutdown or info.paused):
            self.pause()
        return info.suspended

    def withdraw_suspend(self) -> bool:
        with self._world.doing("withdraw"):
            stood, self.requested = self.requested, False
            if stood:
                self.suspends_late_s = None
            return stood

    @contextmanager
    def on_its_own(self) -> Iterator["FakeGuest"]:
        yield self

    @contextmanager
    def watching_devices(self) -> Iterator["FakeDevices"]:
        yield FakeDevices(self._world, self)

    def suspend_requested(self) -> bool:
        return self.requested

    def pause(self) -> None:
        with self._world.doing("pause"):
            self.paused = True

    def unpause(self) -> None:
        with self._world.doing("unpause"):
            self.paused = self.paused_twice
            self.has_run = True

    def lower_memory_target(self, by_kb: int) -> None:
        with self._world.doing("lower_memory_target"):
            assert by_kb > 0
            values = json.loads(self.configuration.json)
            values["b_info"]["target_memkb"] -= by_kb
            self.configuration = DomainConfig.parse(json.dumps(values))

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

    def takes_requests(self) -> bool:
        return self.says_it_takes_requests

    def frontend_states(self) -> dict[str, int]:
        with self._world.doing("frontend_states"):
            return self.frontends.pop(0) if len(self.frontends) > 1 else self.frontends[0]

    def disk_targets(self) -> tuple[str, ...]:
        with self._world.doing("disk_targets"):
            if not self.exists:  # (it is asked by its domid)
                return ()
            there = tuple(d.target for d in self.configuration.disks if d.target)
            return there + self.attached

    def nics(self) -> tuple[tuple[str, str], ...]:
        found = self.configuration.devices("nics")
        return tuple((str(n.get("mac", "")), str(n.get("bridge", ""))) for n in found)


class FakeDevices:
    """xenstore's reports of changes of a guest's devices."""

    def __init__(self, world: "World", guest: FakeGuest) -> None:
        self._world, self._guest = world, guest
        self._seen = self._present()

    def _present(self) -> tuple[object, ...]:
        guest = self._guest
        disks = [d.target for d in guest.configuration.disks]
        states = dict(guest.frontends[0])
        return guest.exists, states, disks, guest.attached, guest.brief_changes

    def changed(self) -> bool:
        with self._world.doing("devices changed"):
            return self.reported()

    def reported(self) -> bool:
        seen, self._seen = self._seen, self._present()
        return self._seen != seen


if TYPE_CHECKING:

    def _guest(fake: FakeGuest) -> Guest:
        return fake
