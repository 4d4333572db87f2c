"""A guest off Xen, with a disk of each kind and a snapshot of them, for the list of conditions."""

import os
import shlex
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyxlsnap import paths
from pyxlsnap.disks import registry
from pyxlsnap.model import KEPT_SUFFIX, Disk, DiskRequest, SnapshotConfig
from tests.rehearsal.condition import Condition, filled_in
from tests.unit.support import operations
from tests.unit.support.guest import FakeGuest, config_of
from tests.unit.support.hosted import Hosted
from tests.unit.support.loop_files import looped
from tests.unit.support.qemu import SIZE, qemu_img, whole, write
from tests.unit.support.rig import SYS, Rig, device_model, on_real_host, on_storage
from tests.unit.support.values import BRIDGE, OTHER_UUID, UUID
from tests.unit.support.world import CHOOSERS

NAME = "snap"
#: what is on each disk when the snapshot is taken
FIRST = bytes([1]) * (64 << 10) + bytes(SIZE - (64 << 10))
#: the guest is touched by these
_TOUCHES = {"destroy", "pause", "unpause", "suspend", "resume", "restore"}


class Stage:
    """One guest, ``vm1``, which has run on since its snapshot, and what was done to it.

    :param here: for the host.
    :param place: for the disks: on a filesystem that shares blocks between files.
    """

    def __init__(self, here: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._here, self._place = here, place
        self._undo = ExitStack()
        self._hosted = Hosted(here, monkeypatch)
        self.world = self._hosted.world
        for module in CHOOSERS:
            monkeypatch.setattr(module, "strategies", registry.strategies)
        monkeypatch.setattr(paths, "QEMU_SOCKETS", here)
        monkeypatch.setattr(paths, "SYS", here / SYS)
        self.names: dict[str, str] = {"spare": str(place / "spare"), "name": NAME}
        self.names.update(dir=str(place), filler=str(place / "filler"))
        disks = [*self._images(), self._raw(), self._block()]
        rig = Rig(here, disks)
        guest = self.world.guest(*disks)
        rig.start(guest.domid)
        guest.device_model = rig.pid
        self._take(disks)
        rig.write(2)
        self.names.update(domain=guest.name, uuid=UUID, pid=str(rig.pid))
        self.names["other"] = self.world.guest(name="vm2", uuid=OTHER_UUID).name
        self.names["lock"] = str(paths.LOCKS / f"{UUID}.lock")
        self._have_toolstack()
        self._host()

    def _have_toolstack(self) -> None:
        """What libxl has beside the guest."""
        scripts, root = paths.XEN_SCRIPTS, self.world.root
        for directory in (scripts, paths.SCRIPT_LOCKS):
            directory.mkdir()
        for script in ("block", "vif-bridge"):
            (scripts / script).touch(0o755)
        (scripts / "hotplugpath.sh").write_text(f'bindir="{scripts}"\n')
        for tool in ("xenstore-read", "xenstore-write"):
            (scripts / tool).touch(0o755)
        places = self.world.host.places()
        self.names.update(state=places.state, logs=places.logs, helper=places.save_helper)
        self.names.update(scripts=places.scripts, no_console=str(root / "no xenconsoled"))
        self.names["script_lock"] = str(paths.SCRIPT_LOCKS / "block")

    def close(self) -> None:
        self.rig.stop()
        self._undo.close()

    @property
    def rig(self) -> Rig:
        return Rig.load(self._here)

    # what is there

    def _images(self) -> list[Disk]:
        disks = []
        for vdev, name in (("xvda", "internal"), ("xvdb", "external")):
            bottom, base, top = (self._place / f"{name} {n}.qcow2" for n in ("0", "1", "2"))
            qemu_img("create", "-q", "-f", "qcow2", str(bottom), str(SIZE))
            write(Disk(vdev, str(bottom), "qcow2"), 1)
            for below, image in ((bottom, base), (base, top)):
                backing = ["-b", str(below), "-F", "qcow2"]
                qemu_img("create", "-q", "-f", "qcow2", *backing, str(image))
            self.names.update({name: str(top), f"{name}_base": str(base)})
            self.names[f"{name}_bottom"] = str(bottom)
            disks.append(Disk(vdev, str(top), "qcow2"))
        return disks

    def _raw(self) -> Disk:
        path = self._place / "raw disk.img"
        path.write_bytes(FIRST)
        self.names["raw"] = str(path)
        return Disk("xvdc", str(path), "raw", "phy")

    def _block(self) -> Disk:
        path = self._here / "plain.img"
        path.write_bytes(FIRST)
        device = self._undo.enter_context(looped(path))
        self.names["block"] = str(device)
        return Disk("xvdd", str(device), "raw", "phy")

    def _take(self, disks: list[Disk]) -> None:
        copies = {
            "frozen": DiskRequest("xvdb", str(self._place / f"frozen.{NAME}"), "qcow2"),
            "raw_copy": DiskRequest("xvdc", f"{self.names['raw']}.{NAME}", "raw"),
            "block_copy": DiskRequest("xvdd", str(self._place / f"block.{NAME}"), "raw"),
        }
        self.names.update({key: request.path for key, request in copies.items()})
        wanted = SnapshotConfig(NAME, disks=self._wanted(copies))
        made = operations.create(self.world.host, UUID, wanted)
        self.names.update(memory=made.memory_path, cfg=str(made.cfgfile))

    def _wanted(self, copies: Mapping[str, DiskRequest]) -> tuple[DiskRequest, ...]:
        return (DiskRequest("xvda"), *copies.values())

    def _host(self) -> None:
        program = device_model(self._here)
        program.write_text("#!/bin/sh\necho QEMU emulator version 99.0.0\n")
        program.chmod(0o755)
        self.names.update(device_model=str(program), bridge=str(paths.NETWORK / BRIDGE))
        self.names["xl_lock"] = str(paths.XL_LOCK)

    # what is done to it

    def do(self, commands: tuple[str, ...]) -> None:
        """Do the commands of a condition."""
        for command in commands:
            words = filled_in(command, self.names)
            if command.startswith("xl "):
                self._xl(*shlex.split(words)[1:])
            else:
                subprocess.run(["sh", "-ec", words], check=True, stdin=subprocess.DEVNULL)

    def _xl(self, verb: str, domain: str, *more: str) -> None:
        guest = self.world.host.find(domain)
        if verb == "rename":
            guest.configuration = guest.configuration.with_name(more[0])
            guest.name = more[0]
        elif verb == "block-attach":
            words = dict(word.split("=", 1) for word in more[0].split(","))
            disk = Disk(words["vdev"], words["target"], words["format"])
            self._give(guest, [*guest.configuration.disks, disk])
        elif verb == "block-detach":
            self._give(guest, [d for d in guest.configuration.disks if d.vdev != more[0]])
        elif verb == "destroy":
            guest.destroy()
            if guest.uuid == UUID:
                self.rig.stop()
        elif verb == "mem-set":
            guest.memory_kb = int(more[0]) << 10
        else:
            getattr(guest, verb)()

    def _give(self, guest: FakeGuest, disks: list[Disk]) -> None:
        guest.configuration = config_of(
            *disks, name=guest.name, uuid=guest.uuid, kernel=str(self.world.kernel)
        )

    def revert(self, condition: Condition, *more: str) -> subprocess.CompletedProcess[str]:
        """Run the command as the condition has it."""
        domain = condition.domain.format(**self.names)
        words = ("snapshot-revert", domain, self.names["cfg"], *condition.options, *more)
        before = filled_in(condition.before, self.names)
        return self._hosted.run(*words, scene=on_real_host, before=before)

    # what it is like afterwards

    def photo(self) -> dict[str, object]:
        """All that a refusal must leave as it is."""
        files = [p for top in (self._place, self.world.root) for p in top.rglob("*")]
        found: dict[str, object] = {
            str(p): (p.lstat().st_ino, p.lstat().st_mode, _content(p))
            for p in files
            if p.suffix != ".lock"
        }
        return found | {"QEMU": self.rig.pid, "it runs": self.rig.runs()}

    def run(self, *words: str, before: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command on this host, whose guests are not served anew."""
        return self._hosted.run(*words, scene=on_storage, before=before)

    def begin(self) -> None:
        """Forget what has happened to the guest so far."""
        self.rig.forget_events()

    def was_touched(self) -> bool:
        """Whether the guest was destroyed, or missed a tick."""
        return not _TOUCHES.isdisjoint(self.rig.events)

    def check_back(self) -> None:
        """The guest and all its disks are those of the snapshot, and nothing is left."""
        (guest,) = [g for g in self.world.host.guests if g.exists and g.uuid == UUID]
        assert guest.runs
        assert self.rig.runs()
        left = [
            p
            for p in self._place.iterdir()
            if p.name.endswith((f"{NAME}{KEPT_SUFFIX}", ".overlay", ".tmp"))
        ]
        assert not left
        assert not list(paths.JOURNALS.iterdir())
        self.rig.stop()
        for disk in self.rig.disks:
            found = whole(disk) if disk.format == "qcow2" else Path(disk.target).read_bytes()
            assert found == FIRST, disk.vdev


class CloneStage(Stage):
    """The same without a snapshot inside an image: no clone is made of that while it is in use."""

    def __init__(self, here: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(here, place, monkeypatch)
        self.names |= {"clone": "c1", "copy": str(place / "own copy.img")}
        for name, below in (("overlay", "frozen"), ("reflink", "raw_copy")):
            self.names[name] = f"{self.names[below]}.c1"

    def _images(self) -> list[Disk]:
        return [disk for disk in super()._images() if disk.vdev == "xvdb"]

    def _wanted(self, copies: Mapping[str, DiskRequest]) -> tuple[DiskRequest, ...]:
        return tuple(copies.values())

    def domains(self) -> dict[str, tuple[int, bool]]:
        """What each domain is, by name."""
        return {g.name: (g.domid, g.runs) for g in self.world.host.guests if g.exists}

    def photo(self) -> dict[str, object]:
        return super().photo() | {"domains": self.domains()}

    def clone(self, condition: Condition, *more: str) -> subprocess.CompletedProcess[str]:
        """Run the command as the condition has it."""
        copy = f"{self.names['copy']},raw,xvdd"
        words = ("snapshot-clone", self.names["cfg"], self.names["clone"], "--disk", copy)
        before = filled_in(condition.before, self.names)
        return self.run(*words, *condition.options, *more, before=before)

    def check_cloned(self) -> None:
        """The clone is there, and its disks have the content of the snapshot."""
        (guest,) = [g for g in self.world.host.guests if g.exists and g.name == "c1"]
        assert guest.runs
        for disk in guest.configuration.disks:
            found = whole(disk) if disk.format == "qcow2" else Path(disk.target).read_bytes()
            assert found == FIRST, disk.vdev
        assert len({disk.target for disk in guest.configuration.disks}) == 3
        assert not [p for p in paths.JOURNALS.iterdir() if p.suffix == ".journal"]


def _content(path: Path) -> bytes:
    if path.is_symlink():
        return os.fsencode(path.readlink())
    return path.read_bytes() if path.is_file() else b""
