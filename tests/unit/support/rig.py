"""The devices of a guest on a fake host: a real QEMU and loop devices that outlive a process.

libxl would start and end them; here the events of the fake host do (:func:`on_real_storage`).
"""

import json
import os
import shutil
import signal
import subprocess
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.disks import in_use, registry
from pyxlsnap.disks.served import _device_id
from pyxlsnap.errors import QmpError, XenError
from pyxlsnap.guest import dom0_memory
from pyxlsnap.linux.processes import Process
from pyxlsnap.model import Disk
from tests.unit.support.patches import LastingPatch
from tests.unit.support.qemu import Qemu
from tests.unit.support.values import GIB_KB, UUID
from tests.unit.support.world import CHOOSERS, World

#: what the package sees of /sys
SYS = "sys"
_STATE, _EVENTS = "rig.json", "events"
_PATIENCE_S = 2.0


@dataclass
class Rig:
    """What serves the guest's disks at present."""

    here: Path
    disks: list[Disk]
    domid: int = 0
    #: the QEMU's; 0: it does not run
    pid: int = 0
    #: the loop device over each raw file
    loops: dict[str, str] = field(default_factory=dict)
    #: in the process that started it
    _qemu: Qemu | None = None

    @classmethod
    def load(cls, here: Path) -> "Rig":
        """As the process before has left it."""
        values = json.loads((here / _STATE).read_text())
        disks = [Disk(**disk) for disk in values["disks"]]
        return cls(here, disks, values["domid"], values["pid"], values["loops"])

    def _save(self) -> None:
        disks = [asdict(disk) for disk in self.disks]
        values = {"disks": disks, "domid": self.domid, "pid": self.pid, "loops": self.loops}
        (self.here / _STATE).write_text(json.dumps(values))

    def write(self, pattern: int) -> None:
        """What the guest writes to each disk."""
        assert self._qemu
        for disk in self.disks:
            if disk.format == "qcow2":
                self._qemu.write(disk.vdev, pattern)
                continue
            with open(disk.target, "r+b") as file:
                file.write(bytes([pattern]) * (64 << 10))
                os.fsync(file.fileno())

    def forget_events(self) -> None:
        """Begin with an empty list."""
        (self.here / _EVENTS).write_text("")

    @property
    def events(self) -> list[str]:
        """What the fake host was told in all processes."""
        return (self.here / _EVENTS).read_text().split("\n")[:-1]

    def runs(self) -> bool:
        """Whether all that serves the disks is there."""
        loops = (Path("/sys/block", Path(device).name, "loop") for device in self.loops.values())
        with Process(self.pid) as qemu:
            return bool(self.pid) and not qemu.ended(within_s=0) and all(p.exists() for p in loops)

    def start(self, domid: int) -> None:
        """Serve the disks as they are now.

        :raises XenError: a disk cannot be opened.
        """
        self.domid = domid
        images = {d.vdev: d.target for d in self.disks if d.format == "qcow2"}
        with (self.here / "qemu.log").open("ab") as log:
            qemu = self._qemu = Qemu(self.here, images, domid=domid, output=log.fileno())
        self.pid = qemu.pid
        self._save()
        try:
            qemu.has_opened()
            for disk in self.disks:
                if disk.format == "raw" and not Path(disk.target).is_block_device():
                    self.loops[disk.vdev] = _losetup("--find", "--show", disk.target)
                self._have_backend(disk, Path(self.loops.get(disk.vdev, disk.target)))
        except (QmpError, OSError, subprocess.CalledProcessError) as e:
            why = (self.here / "qemu.log").read_text()
            raise XenError(f"a disk could not be attached: {e}: {why}", operation="restore") from e
        finally:
            self._save()

    def _have_backend(self, disk: Disk, device: Path) -> None:
        """Let blkback have a block device, as far as /sys tells."""
        if not self._backends.exists():
            self._backends.mkdir(parents=True)
            for name in ("block", "class", "dev"):
                (self.here / SYS / name).symlink_to(f"/sys/{name}")
        if device.is_block_device():
            number = device.stat().st_rdev
            backend = self._backends / f"vbd-{self.domid}-{_device_id(disk.vdev)}"
            backend.mkdir()
            text = f"{os.major(number):x}:{os.minor(number):x}\n"
            (backend / "physical_device").write_text(text)

    @property
    def _backends(self) -> Path:
        return self.here / SYS / "bus/xen-backend/devices"

    def stop(self) -> None:
        """End what serves the disks."""
        with Process(self.pid) as qemu:
            if self.pid:
                os.kill(self.pid, signal.SIGTERM)  # it flushes what it has
                assert qemu.ended(within_s=20)
        for device in self.loops.values():
            _losetup("--detach", device)
        for backend in self._backends.iterdir():
            shutil.rmtree(backend)
        self.pid, self.loops = 0, {}
        for name in (f"qmp-libxenstat-{self.domid}", "qmp-of-the-test"):
            (self.here / name).unlink(missing_ok=True)
        self._save()

    def on_event(self, world: World, verb: str) -> None:
        """Do what libxl would do with a domain's devices."""
        with (self.here / _EVENTS).open("a") as events:
            events.write(f"{verb}\n")
        guests = [g for g in world.host.guests if g.uuid == UUID]
        if verb == "destroy" and not any(g.exists for g in guests):
            self.stop()
        elif verb == "restore":
            self.start(guests[-1].domid)
            guests[-1].device_model = self.pid


def _losetup(*words: str) -> str:
    done = subprocess.run(["losetup", *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def on_storage(world: World) -> None:
    """A scene of :mod:`.hosted`: the disks are real; whoever is restored gets no QEMU."""
    on_real_storage(world)
    world.on_event = lambda _: None


def on_real_host(world: World) -> None:
    """A scene of :mod:`.hosted`: besides, the host has no more than what a revert needs."""
    on_real_storage(world)
    host = world.host
    host.device_model_path = str(device_model(world.root.parent))
    host.autoballoon_setting = "on"  # xl would use its lock, and dom0 has nothing to give
    host.dom0_kb = host.dom0_target_kb = dom0_memory._DOM0_LEAST_KB
    taken_kb = sum(guest.memory_kb for guest in host.guests if guest.exists)
    host.free_kb = max(0, GIB_KB - taken_kb)
    dom0_memory.LOCK_S = dom0_memory.OURS_S = _PATIENCE_S


def device_model(here: Path) -> Path:
    """The program of the QEMU that libxl would start."""
    return here / "qemu-system-xen"


def on_real_storage(world: World) -> None:
    """A scene of :mod:`.hosted`: the disks are real, and the package handles them itself."""
    here = world.root.parent
    rig = Rig.load(here)
    patch = LastingPatch()
    for module in CHOOSERS:
        patch.setattr(module, "strategies", registry.strategies)
    paths.QEMU_SOCKETS, paths.SYS = here, here / SYS
    in_use._UNUSED_S = _PATIENCE_S
    for guest in world.host.guests:
        if guest.exists and guest.uuid == UUID:
            guest.device_model = rig.pid
    world.on_event = partial(rig.on_event, world)
