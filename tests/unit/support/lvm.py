"""A small LVM in memory, in the place of its commands; and strategies for its volumes.

The real one is in the lab (tests/lab/scripts/lvm_check.py).
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pyxlsnap import paths
from pyxlsnap.disks import in_use
from pyxlsnap.disks.lvm import commands, names
from pyxlsnap.disks.lvm.thick import LvmThick
from pyxlsnap.disks.lvm.thin import LvmThin
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.model import Disk, DiskRequest

VG = "vg-0"
MIB = 2**20
EXTENT = 4 * MIB
#: by what the fake's volumes are named after
KINDS: dict[str, type[LvmThin] | type[LvmThick]] = {"thin": LvmThin, "thick": LvmThick}


class Killed(BaseException):
    """The process is gone: no ``except`` of ours runs."""


@dataclass
class Lv:
    """A volume of the fake; its data are a file, named after its device number."""

    name: str
    minor: int
    layout: str = "linear"
    size: int = 8 * MIB
    origin: str = ""
    tags: list[str] = field(default_factory=list)
    active: bool = True
    open: bool = False
    suspended: bool = False
    merging: bool = False
    read_only: bool = False
    invalid: bool = False
    data: str = ""
    metadata: str = ""
    health: str = ""

    def row(self, lvs: list["Lv"]) -> dict[str, str]:
        thick = "thin" not in self.layout
        roles = ["public"]
        if any(other.origin == self.name for other in lvs):
            roles += ["origin", "thickorigin" if thick else "thinorigin"]
        if self.origin:
            roles += ["snapshot", "thicksnapshot" if thick else "thinsnapshot"]

        def flag(value: bool) -> str:
            return str(int(value)) if self.active else "-1"

        return {
            "lv_name": self.name,
            "lv_uuid": f"uuid-{self.minor}",
            "lv_size": str(self.size),
            "lv_layout": self.layout,
            "lv_role": ",".join(roles),
            "origin": self.origin,
            "pool_lv": "pool" if self.layout == "thin,sparse" else "",
            "lv_tags": ",".join(self.tags),
            "lv_device_open": flag(self.open),
            "lv_suspended": flag(self.suspended),
            "lv_merging": str(int(self.merging)),
            "lv_snapshot_invalid": flag(self.invalid),
            "data_percent": self.data,
            "metadata_percent": self.metadata,
            "lv_health_status": self.health,
            "lv_check_needed": "-1",
            "lv_permissions": "read-only" if self.read_only else "writeable",
            "lv_kernel_major": "253" if self.active else "-1",
            "lv_kernel_minor": str(self.minor) if self.active else "-1",
        }


class FakeLvm:
    """One volume group, with /dev and /sys of its own; made for :func:`commands.execute`."""

    def __init__(self, root: Path) -> None:
        self.root, self.dev, self.block = root, root / "dev", root / "sys/dev/block"
        self.lvs: dict[str, Lv] = {}
        self.free = 100 * MIB
        self.attr, self.missing = "wz--n-", 0
        self.log: list[list[str]] = []
        #: called with each command before and after it takes effect
        self.hook: Callable[[str, list[str]], None] = lambda when, command: None
        self._minors = itertools.count(1)
        self._linked: dict[str, Path] = {}
        (self.dev / VG).mkdir(parents=True)
        (root / "data").mkdir()

    def add(self, name: str, layout: str, content: bytes = b"", **options: object) -> Lv:
        lv = Lv(name, next(self._minors), layout)
        for key, value in options.items():
            setattr(lv, key, value)
        self.lvs[name] = lv
        self.data(name).write_bytes(content)
        dm = self.block / f"253:{lv.minor}" / "dm"
        dm.mkdir(parents=True)
        (dm / "uuid").write_text("LVM-x\n")
        self.links()
        return lv

    def renumber(self, name: str) -> None:
        """Deactivate a volume and activate it again, as another device."""
        content = self.data(name).read_bytes()
        old = self.lvs.pop(name)
        added = self.add(name, old.layout, content)
        added.origin, added.tags = old.origin, old.tags

    def data(self, name: str) -> Path:
        return self.root / "data" / str(self.lvs[name].minor)

    def path(self, name: str) -> Path:
        return self.dev / VG / name

    def device_number(self, path: str) -> tuple[int, int] | None:
        real = Path(path).resolve()
        return (253, int(real.name)) if real.exists() else None

    def links(self) -> None:
        """Do the work of udev and the kernel: each active volume gets a path and a name in /sys."""
        wanted = {lv.name: self.data(lv.name) for lv in self.lvs.values() if lv.active}
        for name in self._linked.keys() - wanted.keys():
            self.path(name).unlink()
        for name, data in wanted.items():
            dm = self.block / f"253:{data.name}" / "dm"
            (dm / "suspended").write_text(f"{int(self.lvs[name].suspended)}\n")
            if self._linked.get(name) == data:
                continue
            self.path(name).unlink(missing_ok=True)
            self.path(name).symlink_to(data)
            (dm / "name").write_text(names.mapped_name(VG, name) + "\n")
        self._linked = wanted

    # the commands

    def execute(self, command: list[str], timeout_s: float) -> tuple[int, str, str]:
        self.log.append(command)
        self.hook("before", command)
        result = getattr(self, f"_{command[0]}")(command[1:])
        self.links()
        self.hook("after", command)
        if isinstance(result, str):
            return 5, "", f"  WARNING: whatever\n  {result}\n"
        return 0, json.dumps({"report": [result]}) if result else "", ""

    def _lvs(self, words: list[str]) -> dict[str, list[dict[str, str]]] | str:
        if words[-1] != VG:
            return f'Volume group "{words[-1]}" not found'
        lvs = list(self.lvs.values())
        return {"lv": [lv.row(lvs) for lv in lvs]}

    def _vgs(self, words: list[str]) -> dict[str, list[dict[str, str]]]:
        row = {"vg_free": str(self.free), "vg_extent_size": str(EXTENT)}
        return {"vg": [row | {"vg_attr": self.attr, "vg_missing_pv_count": str(self.missing)}]}

    def _lvcreate(self, words: list[str]) -> str | None:
        name, origin = words[words.index("-n") + 1], self.lvs[words[-1].removeprefix(f"{VG}/")]
        if name in self.lvs:
            return f'Logical Volume "{name}" already exists in volume group "{VG}"'
        if origin.layout == "linear":
            assert words[words.index("-l") + 1] == "100%ORIGIN"
        lv = self.add(name, origin.layout, self.data(origin.name).read_bytes())
        lv.origin, lv.active = origin.name, "-an" not in words
        lv.tags = [b for a, b in itertools.pairwise(words) if a == "--addtag"]
        return None

    def _lvremove(self, words: list[str]) -> str | None:
        name = words[-1].removeprefix(f"{VG}/")
        if self.lvs[name].open:
            return f"Logical volume {words[-1]} in use."
        del self.lvs[name]
        for lv in list(self.lvs.values()):
            if lv.origin == name and lv.layout == "linear":
                del self.lvs[lv.name]
            elif lv.origin == name:
                lv.origin = ""
        return None

    def _lvrename(self, words: list[str]) -> str | None:
        _, old, new = words
        if new in self.lvs:
            return f'Logical Volume "{new}" already exists'
        lv = self.lvs[new] = self.lvs.pop(old)
        lv.name = new
        for other in self.lvs.values():
            other.origin = new if other.origin == old else other.origin
        return None

    def _lvchange(self, words: list[str]) -> str | None:
        lv = self.lvs[words[-1].removeprefix(f"{VG}/")]
        if "--refresh" in words:
            lv.suspended = False
        else:
            lv.active = True
            for other in self.lvs.values():
                other.active = other.active or other.origin == lv.name
        return None


def content(seed: int, size: int = 48 * 1024) -> bytes:
    return bytes((seed + i // 4096) % 256 for i in range(0, size, 4096)) * 4096


def install(fake: FakeLvm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "execute", fake.execute)
    monkeypatch.setattr(commands, "device_number", fake.device_number)
    monkeypatch.setattr(names, "device_number", fake.device_number)
    monkeypatch.setattr(paths, "DEV", fake.dev)
    monkeypatch.setattr(paths, "SYS", fake.root / "sys")
    monkeypatch.setattr(commands, "_PATH_S", 0.0)
    monkeypatch.setattr(in_use, "_UNUSED_S", 0.0)


def populate(fake: FakeLvm) -> None:
    fake.add("pool", "thin,pool", data="6.25", metadata="11.23")
    for name in ("thin-a", "thin-b"):
        fake.add(name, "thin,sparse", content(1), tags=["owner"])
    for name in ("thick-a", "thick-b"):
        fake.add(name, "linear", content(1), tags=["owner"])


def strategy(
    fake: FakeLvm,
    kind: str,
    name: str = "snap",
    *,
    lvs: str = "ab",
    to: str = "",
    form: str = "",
    finishes: Mapping[str, str] | None = None,
    prepared: Mapping[str, str] | None = None,
    check: Callable[[], None] = lambda: None,
    waiting: Callable[[str], None] = lambda _: None,
) -> DiskStrategy:
    """The strategy for the volumes of a kind, as xvda and xvdb."""
    disks = [
        (
            Disk(f"xvd{x}", str(fake.path(f"{kind}-{x}")), "raw"),
            DiskRequest(f"xvd{x}", to, form),
        )
        for x in lvs
    ]
    task = DiskTask(name, finishes=finishes, prepared=prepared, check=check, waiting=waiting)
    made: DiskStrategy = KINDS[kind](disks, task)
    return made


def create(fake: FakeLvm, kind: str, name: str = "snap") -> DiskStrategy:
    one = strategy(fake, kind, name)
    one.check_create(1)
    one.prepare()
    one.create()
    one.finish_create()
    one.settle()
    return one


def revert(
    fake: FakeLvm, kind: str, name: str = "snap", *, finishes: Mapping[str, str] | None = None
) -> list[str]:
    one = strategy(fake, kind, name, finishes=finishes)
    one.check_revert()
    one.revert()
    return one.finish_revert(2)


def write(fake: FakeLvm, kind: str, data: bytes) -> None:
    for x in "ab":
        fake.path(f"{kind}-{x}").write_bytes(data)


def contents(fake: FakeLvm, kind: str) -> list[bytes]:
    return [fake.path(f"{kind}-{x}").read_bytes() for x in "ab"]


def at_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> Iterator[tuple[FakeLvm, "Fault"]]:
    """A new LVM each time, and what kills at its first, second, … command, until none is left."""
    for number in itertools.count():
        fake = FakeLvm(tmp_path / f"{when}-{number}")
        populate(fake)
        install(fake, monkeypatch)
        fault = Fault(fake, when, number)
        yield fake, fault
        if not fault.struck:
            assert number > 2
            return


class Fault:
    """Kills what runs inside at the command of that number."""

    def __init__(self, fake: FakeLvm, when: str, number: int) -> None:
        self.fake, self.when, self.number, self.struck = fake, when, number, False

    def __enter__(self) -> None:
        self.fake.hook = self.count

    def count(self, when: str, command: list[str]) -> None:
        if when == self.when:
            self.struck = self.number == 0
            self.number -= 1
            if self.struck:
                raise Killed

    def __exit__(self, kind: type[BaseException] | None, _: object, __: object) -> bool:
        self.fake.hook = lambda when, command: None
        return kind is Killed
