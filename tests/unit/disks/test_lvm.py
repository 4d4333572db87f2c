"""LVM volumes, with a small LVM in memory in the place of its commands.

The real one is in the lab (tests/lab/scripts/lvm_check.py).
"""

import itertools
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap import paths
from pyxlsnap.disks.lvm import base, commands, names
from pyxlsnap.disks.lvm.thick import LvmThick, copy_differences, needed
from pyxlsnap.disks.lvm.thin import LvmThin
from pyxlsnap.disks.protocol import DiskStrategy, DiskTask
from pyxlsnap.errors import AlreadyExists, DiskError, PyxlsnapError, Refused
from pyxlsnap.model import KEPT_SUFFIX, Disk, DiskRequest

VG = "vg-0"
MIB = 2**20
EXTENT = 4 * MIB
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
            "lv_kernel_major": "253" if self.active else "-1",
            "lv_kernel_minor": str(self.minor) if self.active else "-1",
        }


class FakeLvm:
    """One volume group, with /dev and /sys of its own; made for :func:`commands.execute`."""

    def __init__(self, root: Path) -> None:
        self.root, self.dev, self.block = root, root / "dev", root / "sys/dev/block"
        self.lvs: dict[str, Lv] = {}
        self.free = 100 * MIB
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

    def data(self, name: str) -> Path:
        return self.root / "data" / str(self.lvs[name].minor)

    def path(self, name: str) -> Path:
        return self.dev / VG / name

    def device_number(self, path: str) -> tuple[int, int] | None:
        real = Path(path).resolve()
        return (253, int(real.name)) if real.exists() else None

    def links(self) -> None:
        """What udev and the kernel do: each active volume has a path, and a name in /sys."""
        wanted = {lv.name: self.data(lv.name) for lv in self.lvs.values() if lv.active}
        for name in self._linked.keys() - wanted.keys():
            self.path(name).unlink()
        for name, data in wanted.items():
            if self._linked.get(name) == data:
                continue
            self.path(name).unlink(missing_ok=True)
            self.path(name).symlink_to(data)
            dm = self.block / f"253:{data.name}" / "dm" / "name"
            dm.write_text(names.mapped_name(VG, name) + "\n")
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
        return {"vg": [{"vg_free": str(self.free), "vg_extent_size": str(EXTENT)}]}

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
    monkeypatch.setattr(base, "_CLOSED_S", 0.0)


def populate(fake: FakeLvm) -> None:
    fake.add("pool", "thin,pool", data="6.25", metadata="11.23")
    for name in ("thin-a", "thin-b"):
        fake.add(name, "thin,sparse", content(1), tags=["owner"])
    for name in ("thick-a", "thick-b"):
        fake.add(name, "linear", content(1), tags=["owner"])


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLvm:
    found = FakeLvm(tmp_path)
    populate(found)
    install(found, monkeypatch)
    return found


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def strategy(
    fake: FakeLvm, kind: str, name: str = "snap", *, lvs: str = "ab", to: str = "", form: str = ""
) -> DiskStrategy:
    """The strategy for the volumes of a kind, as xvda and xvdb."""
    disks = [
        (
            Disk(f"xvd{x}", str(fake.path(f"{kind}-{x}")), "raw"),
            DiskRequest(f"xvd{x}", to, form),
        )
        for x in lvs
    ]
    made: DiskStrategy = KINDS[kind](disks, DiskTask(name))
    return made


def create(fake: FakeLvm, kind: str, name: str = "snap") -> DiskStrategy:
    one = strategy(fake, kind, name)
    one.check_create(1)
    one.prepare()
    one.create()
    one.finish_create()
    one.settle()
    return one


def revert(fake: FakeLvm, kind: str, name: str = "snap") -> list[str]:
    one = strategy(fake, kind, name)
    one.check_revert()
    one.revert()
    return one.finish_revert(2)


def write(fake: FakeLvm, kind: str, data: bytes) -> None:
    for x in "ab":
        fake.path(f"{kind}-{x}").write_bytes(data)


def contents(fake: FakeLvm, kind: str) -> list[bytes]:
    return [fake.path(f"{kind}-{x}").read_bytes() for x in "ab"]


class TestNames:
    names = st.from_regex(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,12}", fullmatch=True)

    @given(names, names)
    def test_the_kernels_name_leads_back_to_the_volume(self, vg: str, lv: str) -> None:
        mapped = names.mapped_name(vg, lv)
        assert names._split(mapped) == (vg, lv)
        assert names._split(f"{mapped}-real") is None  # a part of it

    @given(names, names)
    def test_both_forms_of_a_path_name_the_volume(self, vg: str, lv: str) -> None:
        here = names._by_form(Path("/dev/mapper") / names.mapped_name(vg, lv))
        assert here == (vg, lv)
        if vg not in (*names._NOT_GROUPS, ".", "..") and lv not in (".", ".."):
            assert names._by_form(Path("/dev") / vg / lv) == (vg, lv)

    @given(st.text("ab0@:+_.-", min_size=1, max_size=20), names)
    def test_a_name_is_refused_or_fits_lvm(self, name: str, lv: str) -> None:
        disk = Disk("xvda", f"/dev/vg/{lv}", "raw")
        try:
            found = names.place(disk, DiskRequest("xvda"), name)
        except Refused:
            return
        for made in (found.snapshot, found.kept, found.fresh):
            assert names._NAME.fullmatch(made)
            assert len(names.mapped_name("vg", made)) <= 122
        assert found.kept.endswith(KEPT_SUFFIX)
        assert found.fresh.endswith(KEPT_SUFFIX)
        assert len({found.lv, found.snapshot, found.kept, found.fresh}) == 4

    @pytest.mark.parametrize("bad", ["a@b", "a:b"])
    def test_what_lvm_does_not_allow_is_refused_in_one_line(self, bad: str, fake: FakeLvm) -> None:
        with pytest.raises(Refused, match=rf"'{bad}': LVM allows no '{bad[1]}'.*xvda.*choose"):
            strategy(fake, "thin", bad)

    def test_a_name_that_gets_too_long_is_refused(self, fake: FakeLvm) -> None:
        with pytest.raises(Refused, match=r"xvda: .* shorter name"):
            strategy(fake, "thin", "x" * 100)

    def test_a_name_that_lvm_reserves_is_refused(self, fake: FakeLvm) -> None:
        with pytest.raises(Refused, match="reserves"):
            strategy(fake, "thin", "my_tmeta")
        strategy(fake, "thin", "my_volume")

    def test_an_external_name_is_taken_in_the_same_group(self, fake: FakeLvm) -> None:
        one = strategy(fake, "thin", lvs="a", to=str(fake.path("mine")), form="raw")
        one.check_create(1)
        one.create()
        assert fake.lvs["mine"].origin == "thin-a"

    @pytest.mark.parametrize(
        ("to", "form", "words"),
        [
            ("/dev/other/name", "", "cannot be a snapshot of a volume of vg-0.*',,xvda'"),
            ("/srv/file.img", "raw", "cannot be a snapshot of a volume of vg-0"),
            ("DEV/thin-a", "", "cannot be a snapshot"),
            ("DEV/a b", "", "cannot be a snapshot"),
            ("DEV/x.pre-revert", "", "deleted after a revert"),
            ("DEV/snapshot1", "", "reserves"),
            ("DEV/name", "qcow2", "raw, not qcow2"),
        ],
    )
    def test_other_external_requests_are_refused(
        self, fake: FakeLvm, to: str, form: str, words: str
    ) -> None:
        with pytest.raises(Refused, match=words):
            strategy(fake, "thin", lvs="a", to=to.replace("DEV", f"{fake.dev}/{VG}"), form=form)


class TestWhichVolume:
    def test_a_volume_and_its_kind_are_known(self, fake: FakeLvm) -> None:
        for name, thin in (("thin-a", True), ("thick-a", False)):
            assert commands.is_lvm(str(fake.path(name)))
            assert commands.is_thin(str(fake.path(name))) == thin

    def test_a_link_to_a_volume_is_followed(self, fake: FakeLvm, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(fake.path("thin-a"))
        assert names.names_of(str(link)) == (VG, "thin-a")
        assert names.stays_valid(str(link), VG, "thin-a")

    def test_a_missing_one_counts_if_its_group_is_there(self, fake: FakeLvm) -> None:
        assert commands.is_lvm(str(fake.path("gone")))
        assert commands.is_thin(str(fake.path("gone")))
        assert not commands.is_lvm(f"{fake.dev}/elsewhere/gone")
        assert not commands.is_lvm("/srv/vg/file.img")

    def test_another_block_device_is_none(self, fake: FakeLvm, tmp_path: Path) -> None:
        (tmp_path / "7").touch()
        assert not commands.is_lvm(str(tmp_path / "7"))
        assert names.names_of(str(tmp_path / "7")) is None
        with pytest.raises(Refused, match="is no LVM volume"):
            LvmThin(
                [(Disk("xvda", str(tmp_path / "7"), "raw"), DiskRequest("xvda"))], DiskTask("x")
            )

    def test_a_path_that_would_not_lead_to_the_disk_after_a_revert_is_refused(
        self, fake: FakeLvm
    ) -> None:
        target = str(fake.data("thin-a"))  # as /dev/dm-3
        one = LvmThin([(Disk("xvda", target, "raw"), DiskRequest("xvda"))], DiskTask("x"))
        with pytest.raises(Refused, match="would not lead to the disk after a revert"):
            one.check_create(1)


class TestCreate:
    def test_all_disks_have_the_snapshot_by_one_command_each(
        self, fake: FakeLvm, kind: str
    ) -> None:
        one = strategy(fake, kind)
        one.check_create(1)
        before = len(fake.log)
        one.create()
        made = [fake.lvs[f"{kind}-{x}-snap"] for x in "ab"]
        assert [c[0] for c in fake.log[before:]] == ["lvcreate", "lvcreate"]
        assert [lv.origin for lv in made] == [f"{kind}-a", f"{kind}-b"]
        assert [lv.active for lv in made] == [kind == "thick"] * 2
        assert all("pyxlsnap" in lv.tags for lv in made)
        assert one.vdevs == ("xvda", "xvdb")
        assert one.expected_seconds() > 0

    def test_the_check_changes_nothing(self, fake: FakeLvm, kind: str) -> None:
        strategy(fake, kind).check_create(1)
        assert {command[0] for command in fake.log} <= {"lvs", "vgs"}

    def test_a_name_that_is_taken_is_refused(self, fake: FakeLvm, kind: str) -> None:
        create(fake, kind)
        with pytest.raises(AlreadyExists, match=f"{VG}/{kind}-a-snap exists") as e:
            strategy(fake, kind).check_create(1)
        assert e.value.where == "xvda"

    def test_undo_removes_what_was_made_and_nothing_else(self, fake: FakeLvm, kind: str) -> None:
        before = list(fake.lvs)
        one = create(fake, kind)
        assert one.undo_create() == [f"removed the volume {VG}/{kind}-{x}-snap" for x in "ab"]
        assert list(fake.lvs) == before
        assert one.undo_create() == []

    def test_before_anything_was_made_undo_asks_nobody(self, fake: FakeLvm, kind: str) -> None:
        one = strategy(fake, kind)
        one.settle()
        assert one.undo_create() == []
        assert fake.log == []

    def test_a_name_taken_meanwhile_stays_its_owners(self, fake: FakeLvm, kind: str) -> None:
        one = strategy(fake, kind)
        one.check_create(1)
        fake.add(f"{kind}-b-snap", "linear")
        with pytest.raises(DiskError, match=r"xvdb: lvcreate failed: .*already exists") as e:
            one.create()
        assert e.value.vdev == "xvdb"
        assert "WARNING" not in str(e.value)
        assert one.undo_create() == [f"removed the volume {VG}/{kind}-a-snap"]
        assert f"{kind}-b-snap" in fake.lvs

    def test_another_process_can_undo(self, fake: FakeLvm, kind: str) -> None:
        before = list(fake.lvs)
        one = create(fake, kind)
        assert {key.split()[0] for key in one.state()} == {"xvda", "xvdb"}
        other = strategy(fake, kind)
        assert other.undo_create() == []
        other.adopt_create(1, began=time.time(), state=one.state())
        assert len(other.undo_create()) == 2
        assert list(fake.lvs) == before

    def test_what_cannot_be_removed_is_told_and_the_others_are_done(
        self, fake: FakeLvm, kind: str
    ) -> None:
        one = create(fake, kind)
        fake.lvs[f"{kind}-a-snap"].open = True
        with pytest.raises(DiskError, match="in use") as e:
            one.undo_create()
        assert e.value.vdev == "xvda"
        assert f"{kind}-b-snap" not in fake.lvs

    def test_a_suspended_origin_is_woken_up(self, fake: FakeLvm, kind: str) -> None:
        one = create(fake, kind)
        fake.lvs[f"{kind}-b"].suspended = True
        with pytest.raises(DiskError, match=rf"suspended.*lvchange --refresh {VG}/{kind}-b"):
            one.undo_create()
        one.settle()
        assert not fake.lvs[f"{kind}-b"].suspended
        assert one.undo_create() == []

    def test_artefacts_say_what_they_take_and_how_to_delete_them(
        self, fake: FakeLvm, kind: str
    ) -> None:
        first, _ = create(fake, kind).artefacts("domain")
        assert first.kind == "disk snapshot"
        assert f"{VG}/{kind}-a-snap (xvda; " in first.where
        assert "8 MiB" in first.where
        assert first.delete == f"lvremove {VG}/{kind}-a-snap"

    @pytest.mark.parametrize("killed", ["before", "after"])
    def test_whatever_command_it_dies_at_another_process_undoes_it(
        self, kind: str, killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for fake, fault in at_every_command(tmp_path, monkeypatch, killed):
            before = list(fake.lvs)
            one = strategy(fake, kind)
            with fault:
                one.check_create(1)
                one.create()
            other = strategy(fake, kind)
            other.adopt_create(1, began=0.0, state=one.state())
            other.settle()
            other.undo_create()
            assert list(fake.lvs) == before


class TestRoom:
    @pytest.mark.parametrize("what", ["data", "metadata"])
    def test_a_full_pool_is_refused(self, fake: FakeLvm, what: str) -> None:
        setattr(fake.lvs["pool"], what, "95.01")
        with pytest.raises(Refused, match=rf"xvda: .* {VG}/pool .* {what} space 95.01 % full"):
            strategy(fake, "thin").check_create(1)

    @pytest.mark.parametrize("health", ["metadata_read_only", "failed", "out_of_data"])
    def test_a_pool_that_is_not_well_is_refused(self, fake: FakeLvm, health: str) -> None:
        fake.lvs["pool"].health = health
        with pytest.raises(Refused, match=f"not well .{health}"):
            strategy(fake, "thin").check_create(1)

    def test_the_group_must_have_room_for_all_disks(self, fake: FakeLvm) -> None:
        fake.free = 2 * needed(8 * MIB, EXTENT)
        strategy(fake, "thick").check_create(1)
        fake.free -= EXTENT
        with pytest.raises(
            Refused, match=rf"xvda, xvdb: the volume group {VG} has 20 MiB free.*takes 24 MiB"
        ):
            strategy(fake, "thick").check_create(1)
        assert "lvcreate" not in [command[0] for command in fake.log]

    @given(st.integers(1, 2**24), st.integers(0, 8))
    def test_every_chunk_of_the_origin_has_room(self, chunks: int, power: int) -> None:
        extent = MIB << power
        need = needed(chunks * 4096, extent)
        # a header, then areas of one chunk of metadata and 256 of data; the last is not full
        assert need >= (1 + chunks + math.ceil((chunks + 1) / 256)) * 4096
        assert need % extent == 0
        assert need < chunks * 4096 * 257 / 256 + 3 * 4096 + extent

    def test_a_volume_of_another_kind_is_refused(self, fake: FakeLvm, kind: str) -> None:
        other = "thick" if kind == "thin" else "thin"
        disk = Disk("xvda", str(fake.path(f"{other}-a")), "raw")
        with pytest.raises(Refused, match=r"xvda: .* (no|a) thin volume"):
            KINDS[kind]([(disk, DiskRequest("xvda"))], DiskTask("x")).check_create(1)

    def test_a_merge_under_way_is_refused(self, fake: FakeLvm, kind: str) -> None:
        fake.lvs[f"{kind}-b"].merging = True
        with pytest.raises(Refused, match=f"xvdb: .*merged into {VG}/{kind}-b"):
            strategy(fake, kind).check_create(1)

    def test_a_thick_snapshot_of_a_thick_snapshot_is_refused(self, fake: FakeLvm) -> None:
        fake.lvs["thick-b"].origin = "thick-a"
        with pytest.raises(Refused, match=f"xvdb: .* is a snapshot of {VG}/thick-a"):
            strategy(fake, "thick").check_create(1)

    def test_lvm_that_does_not_answer_is_a_refusal(
        self, fake: FakeLvm, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing(command: list[str], timeout_s: float) -> tuple[int, str, str]:
            raise FileNotFoundError(command[0])

        monkeypatch.setattr(commands, "execute", missing)
        with pytest.raises(Refused, match="lvs is missing: install lvm2"):
            strategy(fake, kind).check_create(1)
        with pytest.raises(Refused, match="lvs is missing: install lvm2"):
            strategy(fake, kind).check_revert()


class TestRevert:
    def test_again_and_again_in_any_order(self, fake: FakeLvm, kind: str) -> None:
        for seed, name in ((10, "one"), (20, "two")):
            write(fake, kind, content(seed))
            create(fake, kind, name)
        volumes = sorted(fake.lvs)
        for turn, name in enumerate(("one", "one", "two", "one", "two")):
            write(fake, kind, content(100 + turn))
            assert revert(fake, kind, name) == []
            assert contents(fake, kind) == [content(10 if name == "one" else 20)] * 2
            assert sorted(fake.lvs) == volumes
            assert fake.lvs[f"{kind}-a"].tags == ["owner"]

    def test_what_is_replaced_is_kept_until_the_end(self, fake: FakeLvm) -> None:
        create(fake, "thin")
        write(fake, "thin", content(7))
        one = strategy(fake, "thin")
        one.check_revert()
        one.revert()
        assert fake.path(f"thin-a.snap{KEPT_SUFFIX}").read_bytes() == content(7)
        one.finish_revert(2)
        assert not [name for name in fake.lvs if name.endswith(KEPT_SUFFIX)]

    def test_what_cannot_be_dropped_is_told(self, fake: FakeLvm) -> None:
        create(fake, "thin")
        one = strategy(fake, "thin")
        one.revert()
        fake.lvs[f"thin-a.snap{KEPT_SUFFIX}"].open = True
        (line,) = one.finish_revert(2)
        assert f"{VG}/thin-a.snap{KEPT_SUFFIX} (the disk before the revert)" in line
        assert f"thin-b.snap{KEPT_SUFFIX}" not in fake.lvs

    def test_the_owners_snapshots_of_the_old_disk_do_not_go_with_it(self, fake: FakeLvm) -> None:
        create(fake, "thin")
        one = strategy(fake, "thin")
        one.revert()
        fake.add("owners", "linear", origin=f"thin-a.snap{KEPT_SUFFIX}")
        fake.lvs[f"thin-a.snap{KEPT_SUFFIX}"].layout = "linear"
        (line,) = one.finish_revert(2)
        assert "has snapshots of its own" in line
        assert "owners" in fake.lvs

    def test_inactive_volumes_are_activated(self, fake: FakeLvm, kind: str) -> None:
        create(fake, kind)
        for lv in fake.lvs.values():
            lv.active = False
        fake.links()
        assert commands.is_lvm(str(fake.path(f"{kind}-a")))
        revert(fake, kind)
        assert contents(fake, kind) == [content(1)] * 2

    def test_nothing_is_written_while_a_disk_is_open(self, fake: FakeLvm, kind: str) -> None:
        create(fake, kind)
        fake.lvs[f"{kind}-b"].open = True
        before = len(fake.log)
        with pytest.raises(DiskError, match=f"xvdb: {VG}/{kind}-b is still open"):
            strategy(fake, kind).revert()
        assert {command[0] for command in fake.log[before:]} == {"lvs"}

    def test_a_snapshot_that_is_not_there_is_refused(self, fake: FakeLvm, kind: str) -> None:
        with pytest.raises(Refused, match=f"xvda: there is no volume {VG}/{kind}-a-snap"):
            strategy(fake, kind).check_revert()

    def test_something_else_of_that_name_is_refused(self, fake: FakeLvm, kind: str) -> None:
        fake.add(f"{kind}-a-snap", fake.lvs[f"{kind}-a"].layout)
        with pytest.raises(Refused, match=f"xvda: {VG}/{kind}-a-snap is n"):
            strategy(fake, kind).check_revert()

    def test_a_thick_snapshot_that_overflowed_is_refused(self, fake: FakeLvm) -> None:
        create(fake, "thick")
        fake.lvs["thick-b-snap"].invalid = True
        with pytest.raises(Refused, match=f"xvdb: {VG}/thick-b-snap is invalid"):
            strategy(fake, "thick").check_revert()
        with pytest.raises(DiskError, match="invalid"):
            strategy(fake, "thick").revert()

    def test_a_strangers_volume_under_our_name_is_left_alone(self, fake: FakeLvm) -> None:
        create(fake, "thin")
        fake.add(f"thin-a.snap.new{KEPT_SUFFIX}", "linear")
        with pytest.raises(Refused, match="is in the way"):
            strategy(fake, "thin").check_revert()
        with pytest.raises(DiskError, match="is in the way"):
            strategy(fake, "thin").revert()

    def test_a_path_that_udev_does_not_make_is_told(
        self, fake: FakeLvm, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create(fake, "thin")
        monkeypatch.setattr(commands, "device_number", lambda path: None)
        with pytest.raises(DiskError, match="does not lead to the volume"):
            strategy(fake, "thin").revert()

    @pytest.mark.parametrize("killed", ["before", "after"])
    def test_whatever_command_it_dies_at_a_second_run_ends_well(
        self, kind: str, killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for fake, fault in at_every_command(tmp_path, monkeypatch, killed):
            create(fake, kind)
            volumes = sorted(fake.lvs)
            write(fake, kind, content(9))
            with fault:
                revert(fake, kind)
            if kind == "thin":
                self.nothing_is_lost(fake)
            assert all(commands.is_lvm(str(fake.path(f"{kind}-{x}"))) for x in "ab")
            assert all(
                commands.is_thin(str(fake.path(f"{kind}-{x}"))) == (kind == "thin") for x in "ab"
            )
            assert revert(fake, kind) == []
            assert contents(fake, kind) == [content(1)] * 2
            assert sorted(fake.lvs) == volumes
            assert fake.lvs[f"{kind}-b"].tags == ["owner"]

    def nothing_is_lost(self, fake: FakeLvm) -> None:
        """Until it is finished, each disk's old state is under one name or the other."""
        finishing = any(command[0] == "lvremove" for command in fake.log)
        for x in "ab":
            kept = fake.lvs.get(f"thin-{x}.snap{KEPT_SUFFIX}") or fake.lvs[f"thin-{x}"]
            assert finishing or fake.data(kept.name).read_bytes() == content(9)


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


class TestCopy:
    @given(st.lists(st.booleans(), max_size=600), st.integers(0, 4095))
    def test_no_more_than_differs_is_written(self, same: list[bool], rest: int) -> None:
        old = b"".join(bytes([1]) * 4096 for _ in same) + bytes(rest)
        new = b"".join(bytes([1 if s else 2]) * 4096 for s in same) + bytes(rest)
        with tempfile.TemporaryDirectory() as directory:
            source, target = Path(directory, "source"), Path(directory, "target")
            source.write_bytes(old)
            target.write_bytes(new)
            assert copy_differences(source, target) == same.count(False) * 4096
            assert target.read_bytes() == old

    def test_a_device_that_fails_is_a_disk_error(self, fake: FakeLvm) -> None:
        create(fake, "thick")
        fake.data("thick-a-snap").unlink()
        fake.data("thick-a-snap").mkdir()
        with pytest.raises(
            DiskError, match=f"xvda: copying {VG}/thick-a-snap to .*run the command"
        ):
            strategy(fake, "thick").revert()


class TestExecute:
    """The one function that the fake stands for, with real commands."""

    def test_the_environment_is_lvms_and_the_input_is_empty(self) -> None:
        script = "env; cat; echo complaint >&2; exit 3"
        status, out, err = commands.execute(["sh", "-c", script], 10.0)
        assert (status, err) == (3, "complaint\n")
        assert {"LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1"} <= set(out.splitlines())

    def test_a_daemon_that_keeps_the_output_open_is_not_waited_for(self) -> None:
        began = time.monotonic()
        assert commands.execute(["sh", "-c", "sleep 5 & echo done"], 4.0)[1] == "done\n"
        assert time.monotonic() - began < 3

    def test_what_takes_too_long_is_asked_to_stop(self) -> None:
        began = time.monotonic()
        with pytest.raises(subprocess.TimeoutExpired):
            commands.execute(["sleep", "30"], 0.1)
        assert time.monotonic() - began < 5

    def test_what_does_not_stop_is_never_killed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(commands, "_STOPPING_S", 0.2)
        script = "trap '' TERM; echo $$ >$0; sleep 1; echo survived >>$0"
        with pytest.raises(subprocess.TimeoutExpired):
            commands.execute(["sh", "-c", script, str(tmp_path / "mark")], 0.3)
        time.sleep(1.5)
        assert "survived" in (tmp_path / "mark").read_text()

    def test_failures_are_disk_errors_of_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(commands, "_ROOT_PATH", "/nonexistent")
        with pytest.raises(DiskError, match="xvda: lvs is missing: install lvm2"):
            commands.volumes("xvda", "vg")

        def late(command: list[str], timeout_s: float) -> tuple[int, str, str]:
            raise subprocess.TimeoutExpired(command, timeout_s)

        monkeypatch.setattr(commands, "execute", late)
        with pytest.raises(DiskError, match="xvda: lvs vg did not end in 120 s"):
            commands.volumes("xvda", "vg")

        monkeypatch.setattr(commands, "execute", lambda command, timeout_s: (0, "garbage", ""))
        with pytest.raises(PyxlsnapError, match="xvda: lvs said what it never says: 'garbage'"):
            commands.volumes("xvda", "vg")
