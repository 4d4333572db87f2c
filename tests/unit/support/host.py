"""The host of the small world, typed against :class:`pyxlsnap.guest.protocols.Host`."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pyxlsnap import paths
from pyxlsnap.errors import (
    DomainNotFound,
    XenError,
)
from pyxlsnap.guest.protocols import Host
from pyxlsnap.memory import walk
from pyxlsnap.model import DomainConfig, DomainInfo
from tests.unit.support.guest import FakeGuest, memory_of
from tests.unit.support.values import GIB_KB

if TYPE_CHECKING:
    from tests.unit.support.world import World


class FakeChanges:
    """The events of the watched domains, in order."""

    def __init__(self, changes: list[Callable[[], object]]) -> None:
        self._changes = changes

    def wait(self) -> None:
        assert self._changes, "it would wait for ever"
        self._changes.pop(0)()

    def wake(self) -> bool:
        return True


class FakeHost:
    """The host, with dom0 and whatever is started."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._domid = 0
        self.guests: list[FakeGuest] = []
        #: what happens, in turn, while somebody watches the domains
        self.changes: list[Callable[[], object]] = []
        self.version = (4, 17)
        self.command_line = "dom0_mem=4G,max:4G"
        self.shadow_paging = True
        self.cpupools = {"": frozenset(range(4)), "Pool-0": frozenset(range(4))}
        self.autoballoon_setting = "auto"
        #: where libxl's QEMU is; "": nobody knows
        self.device_model_path = ""
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

    def xl_lock(self) -> Path:
        return paths.XL_LOCK

    def device_model(self) -> str:
        return self.device_model_path

    def places(self) -> paths.Places:
        root, scripts = self._world.root, paths.XEN_SCRIPTS
        return paths.Places(
            state=str(root / "state"),
            logs=str(paths.XEN_LOGS),
            save_helper=str(root / "libxl-save-helper"),
            scripts=str(scripts) if scripts.exists() else "",
        )

    def has_console_daemon(self) -> bool:
        return not (self._world.root / "no xenconsoled").exists()

    def pool_cpus(self, pool: str) -> frozenset[int] | None:
        return self.cpupools.get(pool)

    def has_shadow_paging(self) -> bool:
        return self.shadow_paging

    def free_memory_kb(self) -> int:
        return self.free_kb

    def needed_memory_kb(self, config: DomainConfig) -> int:
        target_kb = config.section("b_info").get("target_memkb", 0)
        if not isinstance(target_kb, int):
            raise XenError("not a number", rc=-6, operation="libxl_domain_config_from_json")
        return max(self.needed_kb, target_kb)

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

    def list_guests(self) -> list[FakeGuest]:
        with self._world.doing("domains"):
            return self._there()

    def find(self, domain: str) -> FakeGuest:
        if guest := self.find_if_there(domain):
            return guest
        raise DomainNotFound.among(domain, [g.name for g in self._there()])

    def find_if_there(self, domain: str) -> FakeGuest | None:
        with self._world.doing("find"):
            known = [g for g in self._there() if domain in (g.name, g.uuid, str(g.domid))]
        return next(iter(known), None)

    def restore(self, config: DomainConfig, fd: int) -> FakeGuest:
        before = list(self.guests)
        try:
            return self._restored(config, fd)
        except BaseException:  # the real one removes what it has made
            for guest in self.guests:
                guest.exists &= guest in before
            raise

    def _restored(self, config: DomainConfig, fd: int) -> FakeGuest:
        with self._world.doing("restore"):
            if any(g.name == config.name or g.uuid == config.uuid for g in self._there()):
                raise XenError("name or uuid in use", rc=-3, operation="restore")
            memory = memory_of(os.pread(fd, 4096, os.lseek(fd, 0, os.SEEK_CUR)))
            with os.fdopen(os.dup(fd), "rb") as stream:
                held_kb = walk(stream, "restored").memory_kb
            guest = self.start(config)
            if held_kb > guest.target_kb + 1024:
                guest.exists = False
                raise XenError("no room for its pages", rc=-3, operation="restore")
            guest.memory_kb = held_kb
            guest.memory = memory
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
    def watching(self) -> Iterator[FakeChanges]:
        yield FakeChanges(self.changes)

    def abort(self) -> bool:
        return True

    def _there(self) -> list[FakeGuest]:
        return [g for g in self.guests if g.exists]


if TYPE_CHECKING:

    def _host(fake: FakeHost) -> Host:
        return fake
