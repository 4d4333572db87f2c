"""Planning a snapshot: what is refused while nothing has been touched, and what is filled in.

The plan of a revert is in test_revert.py.
"""

import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pyxlsnap import cfgfile, paths
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.create import plan as plan_module
from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.create.sequence import Creation
from pyxlsnap.disks.copy.block_device import BlockCopy
from pyxlsnap.disks.copy.raw_file import RawFile
from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.disks.registry import choose, default_request, strategies
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import AlreadyExists, QmpError, Refused, UsageError
from pyxlsnap.model import Disk, DiskRequest, RunState, SnapshotConfig
from tests.unit.support.guest import FakeGuest, config_of
from tests.unit.support.operations import plan_create
from tests.unit.support.values import OTHER_UUID, UUID
from tests.unit.support.world import World


def planned(
    world: World,
    guest: FakeGuest,
    wanted: SnapshotConfig = SnapshotConfig("snap"),  # noqa: B008
    *,
    live: bool = False,
    cancel: Cancel | None = None,
) -> CreatePlan:
    return plan_create(world.host, guest, wanted, live=live, cancel=cancel)


@pytest.fixture
def guest(world: World) -> FakeGuest:
    return world.guest(world.image("xvda"), world.image("xvdb"))


class TestFilledIn:
    def test_name_and_paths(self, world: World, guest: FakeGuest) -> None:
        plan = planned(world, guest, SnapshotConfig())
        assert datetime.strptime(plan.metadata.name, "%Y%m%d-%H%M%S")
        directory = world.directory / UUID
        assert plan.memory_path == directory / f"{plan.metadata.name}.save"
        assert plan.cfgfile == directory / f"{plan.metadata.name}.cfg"

    def test_the_name_says_when(self, world: World, guest: FakeGuest) -> None:
        plan = planned(world, guest, SnapshotConfig())
        made = datetime.strptime(plan.metadata.name, "%Y%m%d-%H%M%S")
        assert made.timestamp() == plan.metadata.created

    def test_every_writable_disk(self, world: World, guest: FakeGuest) -> None:
        plan = planned(world, guest)
        assert plan.metadata.disks == (DiskRequest("xvda"), DiskRequest("xvdb"))
        assert plan.left_out == {}

    def test_disks_that_need_no_snapshot_are_left_out_with_the_reason(self, world: World) -> None:
        guest = world.guest(
            world.image("xvda"),
            Disk("hdc", "/a.iso", "raw", cdrom=True),
            Disk("hdd", "", "empty"),
            Disk("xvdr", "/r.img", "raw", readwrite=False),
        )
        plan = planned(world, guest)
        assert plan.metadata.disks == (DiskRequest("xvda"),)
        assert plan.left_out == {
            "hdc": "a CD-ROM drive",
            "hdd": "an empty drive",
            "xvdr": "read-only",
        }
        assert not [w for w in plan.warnings if "not in the snapshot" in w]

    def test_planning_changes_nothing(self, world: World, guest: FakeGuest) -> None:
        before = world.photo()
        planned(world, guest).close()
        assert world.photo() == before
        assert guest.runs

    def test_the_cfgfile_is_complete(self, world: World, guest: FakeGuest) -> None:
        plan = planned(world, guest, SnapshotConfig("snap", "why"))
        found = cfgfile.parse(plan.places.cfgfile_text.encode(), file="x")
        assert found == SnapshotConfig(
            "snap", "why", str(plan.memory_path), (DiskRequest("xvda"), DiskRequest("xvdb"))
        )


class TestWhatTheCfgfileSays:
    def test_some_of_the_disks(self, world: World, guest: FakeGuest) -> None:
        plan = planned(world, guest, SnapshotConfig("snap", disks=(DiskRequest("xvdb"),)))
        assert [s.vdevs for s in plan.strategies] == [("xvdb",)]
        assert plan.left_out == {"xvda": "not named in the cfgfile"}
        assert (
            "xvda is not in the snapshot: a revert to the snapshot will be risky" in plan.warnings
        )

    def test_no_disks(self, world: World, guest: FakeGuest) -> None:
        plan = planned(world, guest, SnapshotConfig("snap", disks=()))
        assert plan.strategies == ()
        assert set(plan.left_out) == {"xvda", "xvdb"}

    def test_a_memory_path(self, world: World, guest: FakeGuest) -> None:
        path = world.root / "images" / "m"
        plan = planned(world, guest, SnapshotConfig("snap", memory_path=str(path)))
        assert plan.memory_path == path
        assert plan.cfgfile == path.with_name("m.cfg")

    @pytest.mark.parametrize(
        ("memory", "cfg"),
        [
            ("web1.nightly.save", "web1.nightly.cfg"),
            ("web1.nightly", "web1.nightly.cfg"),
            ("web1.cfg", "web1.cfg.cfg"),
            ("web1.save.save", "web1.save.cfg"),
            (".save", ".cfg"),
        ],
    )
    def test_the_cfgfile_is_named_after_the_memory_file(
        self, world: World, guest: FakeGuest, memory: str, cfg: str
    ) -> None:
        path = world.root / "images" / memory
        plan = planned(world, guest, SnapshotConfig("nightly", memory_path=str(path)))
        assert plan.cfgfile == path.with_name(cfg)

    def test_two_guests_can_have_one_name_and_one_directory(self, world: World) -> None:
        for number, name in enumerate(("web1", "db1")):
            uuid = OTHER_UUID if number else UUID
            guest = world.guest(world.image(f"xvd{'ab'[number]}"), name=name, uuid=uuid)
            path = str(world.root / f"{name}.nightly.save")
            Creation(planned(world, guest, SnapshotConfig("nightly", memory_path=path))).run()
        made = {file.name for file in world.root.glob("*.nightly.*")}
        assert made == {
            f"{name}.nightly.{end}" for name in ("web1", "db1") for end in ("save", "cfg")
        }

    def test_a_place_where_others_can_change_the_memory_file(
        self, world: World, guest: FakeGuest, public: Path
    ) -> None:
        """A revert will say so, too; better before."""
        wanted = SnapshotConfig("snap", memory_path=f"{public}/m.save")
        assert planned(world, guest, wanted).warnings == ()
        public.chmod(0o777)
        [line] = planned(world, guest, wanted).warnings
        assert line.endswith(f"will be risky ({public} is writable for everybody)")

    def test_what_a_strategy_says_is_a_warning(
        self, world: World, guest: FakeGuest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        choose_them = vars(plan_module)["strategies"]

        def warned(chosen: Any, task: DiskTask) -> Any:
            task.warn("xvda: it is copied")
            return choose_them(chosen, task)

        monkeypatch.setattr(plan_module, "strategies", warned)
        plan = planned(world, guest)
        assert plan.warnings == plan.summary().warnings == ("xvda: it is copied",)


class TestRefused:
    def refusal(
        self,
        world: World,
        guest: FakeGuest,
        wanted: SnapshotConfig = SnapshotConfig("snap"),  # noqa: B008
        kind: type[Exception] = Refused,
        *,
        live: bool = False,
    ) -> str:
        before = world.photo()
        with pytest.raises(kind) as caught:
            planned(world, guest, wanted, live=live)
        assert "\n" not in str(caught.value)
        assert world.photo() == before
        assert "suspend" not in world.events
        return str(caught.value)

    @pytest.mark.parametrize("name", ["123", "a/b", "-x", "a b"])
    def test_a_bad_name(self, world: World, guest: FakeGuest, name: str) -> None:
        assert name in self.refusal(world, guest, SnapshotConfig(name), UsageError)

    def test_an_unknown_disk(self, world: World, guest: FakeGuest) -> None:
        wanted = SnapshotConfig("snap", disks=(DiskRequest("xvdz"),))
        says = self.refusal(world, guest, wanted, UsageError)
        assert says == "vm1 has no disk xvdz (its disks: xvda, xvdb)"

    @pytest.mark.parametrize(
        ("one", "other", "says"),
        [
            ("frozen", "./frozen", "xvda and xvdb"),
            ("link/frozen", "frozen", "xvda and xvdb"),
            ("snap.save", "frozen", "xvda and the memory file"),
            ("frozen", "snap.cfg", "xvdb and the cfgfile"),
        ],
    )
    def test_two_things_in_one_place(
        self, world: World, guest: FakeGuest, one: str, other: str, says: str
    ) -> None:
        (world.root / "link").symlink_to(world.root)
        disks = tuple(
            DiskRequest(vdev, f"{world.root}/{path}", "qcow2")
            for vdev, path in (("xvda", one), ("xvdb", other))
        )
        wanted = SnapshotConfig("snap", memory_path=f"{world.root}/snap.save", disks=disks)
        with pytest.raises(UsageError, match=f"{says} would have the same path"):
            planned(world, guest, wanted)

    def test_an_existing_memory_file(self, world: World, guest: FakeGuest) -> None:
        path = world.root / "images" / "m"
        path.write_text("old")
        wanted = SnapshotConfig("snap", memory_path=str(path))
        assert str(path) in self.refusal(world, guest, wanted, AlreadyExists)
        assert path.read_text() == "old"

    def test_an_existing_cfgfile(self, world: World, guest: FakeGuest) -> None:
        path = world.root / "images" / "m.cfg"
        path.symlink_to("nowhere")
        wanted = SnapshotConfig("snap", memory_path=str(path.with_name("m")))
        assert str(path) in self.refusal(world, guest, wanted, AlreadyExists)

    def test_a_name_that_only_the_memory_file_could_have(
        self, world: World, guest: FakeGuest
    ) -> None:
        wanted = SnapshotConfig("snap", memory_path=str(world.root / ("m" * 253)))
        assert "File name too long" in self.refusal(world, guest, wanted)

    def test_a_missing_directory(self, world: World, guest: FakeGuest) -> None:
        wanted = SnapshotConfig("snap", memory_path=str(world.root / "no" / "m"))
        says = self.refusal(world, guest, wanted)
        assert f"there is no directory {world.root}/no: make it first" in says

    def test_no_space(self, world: World, guest: FakeGuest) -> None:
        guest.memory_kb = 1 << 50
        assert "MiB free" in self.refusal(world, guest)

    def test_space_for_the_memory_file_and_the_copies_together(
        self, world: World, guest: FakeGuest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each alone would fit."""
        fs = os.statvfs(world.root)
        free = fs.f_bavail * fs.f_frsize
        choose_them = vars(plan_module)["strategies"]

        def claiming(chosen: Any, task: DiskTask) -> Any:
            left.append(task.claim("copy of xvda", world.root, free // 2))
            return choose_them(chosen, task)

        left: list[int] = []
        guest.memory_kb = free // 1024 * 6 // 10
        monkeypatch.setattr(plan_module, "strategies", claiming)
        planned(world, guest)
        assert left[0] < free // 2

    def test_live_on_pv_without_shadow_paging(self, world: World) -> None:
        guest = world.guest(kind="pv")
        world.host.shadow_paging = False
        assert "--live is impossible for vm1" in self.refusal(world, guest, live=True)
        planned(world, guest, live=False)

    @pytest.mark.parametrize("kind", ["hvm", "pvh"])
    def test_live_on_others_is_not(self, world: World, kind: str) -> None:
        world.host.shadow_paging = False
        assert planned(world, world.guest(kind=kind), live=True).live

    def test_live_on_pv_with_shadow_paging_is_not(self, world: World) -> None:
        assert planned(world, world.guest(kind="pv"), live=True).live

    def test_a_paused_guest_will_be_paused_in_the_snapshot(
        self, world: World, guest: FakeGuest
    ) -> None:
        guest.paused = True
        plan = planned(world, guest)
        assert plan.paused
        assert plan.metadata.state is RunState.PAUSED

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"domid": 0}, "domain 0"),
            ({"stub_domain": True}, "stub domain"),
            ({"dying": True}, "is being destroyed"),
            ({"suspended": True}, "suspended already"),
            ({"shutdown_reason": "reboot"}, "shut down (reboot)"),
        ],
    )
    def test_a_guest_that_is_none_or_does_not_run(
        self, world: World, guest: FakeGuest, change: dict[str, object], says: str
    ) -> None:
        for name, value in change.items():
            setattr(guest, name, value)
        assert says in self.refusal(world, guest)

    def test_a_domain_of_libvirt(self, world: World, guest: FakeGuest) -> None:
        paths.LIBVIRT_DOMAINS.mkdir()
        (paths.LIBVIRT_DOMAINS / "vm1.xml").touch()
        assert "managed by libvirt" in self.refusal(world, guest)

    def test_a_passed_through_device(self, world: World, guest: FakeGuest) -> None:
        guest.configuration = config_of(pcidevs=[{"dev": 1}])
        assert "PCI" in self.refusal(world, guest)

    def test_a_shared_disk(self, world: World, guest: FakeGuest) -> None:
        world.guest(*guest.configuration.disks, name="vm2", uuid=OTHER_UUID)
        assert "domain vm2 uses" in self.refusal(world, guest)

    def test_a_shared_disk_that_is_not_in_the_snapshot_is_not(
        self, world: World, guest: FakeGuest
    ) -> None:
        world.guest(guest.configuration.disks[0], name="vm2", uuid=OTHER_UUID)
        planned(world, guest, SnapshotConfig("snap", disks=(DiskRequest("xvdb"),)))

    def test_a_taken_name(self, world: World, guest: FakeGuest) -> None:
        world.storage.snapshots["xvdb", "snap"] = "x"
        assert "xvdb has 'snap' already" in self.refusal(world, guest, kind=AlreadyExists)

    @pytest.mark.parametrize("error", [Refused("no"), QmpError("no", command="x")])
    def test_a_check_that_fails_lets_go_of_every_strategy(
        self, world: World, guest: FakeGuest, error: Exception
    ) -> None:
        world.fail("check_create", error)
        self.refusal(world, guest, kind=type(error))
        assert {"close xvda", "close xvdb"} <= set(world.events)

    def test_a_frontend_on_its_way_lets_go_of_every_strategy(
        self, world: World, guest: FakeGuest
    ) -> None:
        guest.frontends = [{"vif/0": 3}]

        cancel = Cancel()
        cancel.set()
        with pytest.raises(Cancelled):
            planned(world, guest, cancel=cancel)
        assert {"close xvda", "close xvdb"} <= set(world.events)


class TestStrategies:
    DISK = Disk("xvda", "/a.qcow2", "qcow2")

    def refusal(self, disk: Disk, request: DiskRequest = DiskRequest("xvda")) -> str:  # noqa: B008
        with pytest.raises(Refused) as caught:
            choose(disk, request)
        assert str(caught.value).startswith("xvda")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("domain", ["", "0", "Domain-0"])
    def test_qcow2_is_internal(self, domain: str) -> None:
        disk = replace(self.DISK, backend_domain=domain)
        assert choose(disk, DiskRequest("xvda")) is Qcow2

    def test_raw_ones(self, tmp_path: Path) -> None:
        file = tmp_path / "disk.raw"
        file.touch()
        disk = replace(self.DISK, format="raw", target=str(file))
        assert choose(disk, DiskRequest("xvda")) is RawFile
        assert choose(replace(disk, target="/dev/loop0"), DiskRequest("xvda")) is BlockCopy
        assert default_request(disk, "snap") == DiskRequest("xvda", f"{file}.snap", "raw")
        assert default_request(self.DISK, "snap") == DiskRequest("xvda")

    def test_qemus_transaction_comes_last(self, tmp_path: Path) -> None:
        file = tmp_path / "disk.raw"
        file.touch()
        raw = replace(self.DISK, vdev="xvdb", format="raw", target=str(file))
        disks = [(self.DISK, DiskRequest("xvda")), (raw, DiskRequest("xvdb", "/x", "raw"))]
        assert [s.kind for s in strategies(disks, DiskTask("snap"))] == ["raw file", "qcow2"]

    @pytest.mark.parametrize("form", ["vhd", "qed", "unknown"])
    def test_other_formats(self, form: str) -> None:
        says = self.refusal(replace(self.DISK, format=form))
        assert f"xvda is {form}: only qcow2" in says
        assert "convert" in says

    def test_external(self) -> None:
        external = DiskRequest("xvda", "/b.qcow2", "qcow2")
        disks = [(self.DISK, external), (replace(self.DISK, vdev="xvdb"), DiskRequest("xvdb"))]
        (found,) = strategies(disks, DiskTask("snap"))
        assert found.vdevs == ("xvda", "xvdb")  # in one transaction

    @pytest.mark.parametrize(
        ("path", "form", "says"),
        [("/b.raw", "raw", "not raw"), ("b.qcow2", "qcow2", "must be absolute")],
    )
    def test_an_external_path_that_will_not_do(self, path: str, form: str, says: str) -> None:
        with pytest.raises(Refused, match=says):
            strategies([(self.DISK, DiskRequest("xvda", path, form))], DiskTask("snap"))

    def test_script(self) -> None:
        assert "served by a script" in self.refusal(replace(self.DISK, script="block-drbd"))

    def test_another_backend_domain(self) -> None:
        says = self.refusal(replace(self.DISK, backend_domain="storage"))
        assert "another domain" in says

    def test_virtio(self) -> None:
        assert "virtio disk" in self.refusal(replace(self.DISK, specification="virtio"))

    @pytest.mark.parametrize(
        "change", [{"cdrom": True}, {"readwrite": False}, {"format": "empty", "target": ""}]
    )
    def test_a_disk_left_out_by_default_cannot_be_named(self, change: dict[str, object]) -> None:
        says = self.refusal(replace(self.DISK, **change))  # type: ignore[arg-type]
        assert "cannot be in a snapshot: leave it out" in says

    def test_all_disks_of_a_kind_are_one(self) -> None:
        disks = [(replace(self.DISK, vdev=v), DiskRequest(v)) for v in ("xvda", "xvdb")]
        (found,) = strategies(disks, DiskTask("snap"))
        assert found.vdevs == ("xvda", "xvdb")


@pytest.mark.parametrize(
    ("kind", "live", "inactive"),
    [("hvm", True, True), ("hvm", False, False), ("pvh", True, False), ("pv", True, False)],
)
def test_qemus_nodes_are_inactive_only_after_a_live_save_of_an_hvm_guest(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str, live: bool, inactive: bool
) -> None:
    said: list[bool] = []

    def noted(disks: object, task: DiskTask) -> tuple[()]:
        said.append(task.inactive)
        return ()

    monkeypatch.setattr(plan_module, "strategies", noted)
    planned(world, world.guest(world.image("xvda"), kind=kind), live=live)
    assert said == [inactive]


def test_a_relative_memory_path_is_of_the_working_directory(
    world: World, guest: FakeGuest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert planned(world, guest, SnapshotConfig("s", memory_path="m")).memory_path == tmp_path / "m"
