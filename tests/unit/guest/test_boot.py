"""An HVM guest that boots its kernel: no device is unused yet, and no snapshot is taken."""

from functools import partial

import pytest

from pyxlsnap.create import feasibility as create_feasibility
from pyxlsnap.create import plan as create_plan
from pyxlsnap.disks.qcow2.qmp import QmpConnection
from pyxlsnap.errors import OperationFailed, Refused
from pyxlsnap.guest.boot import boots, notice_unready
from pyxlsnap.guest.device_model import examine_device_model
from pyxlsnap.guest.frontends import wait_until_steady
from pyxlsnap.model import Disk, DomainConfig, SnapshotConfig
from tests.unit.support.errors import refusal
from tests.unit.support.guest import FakeGuest, config_of
from tests.unit.support.operations import feasibility, plan_create
from tests.unit.support.qemu import DOMID, Qemu, qemu_img
from tests.unit.support.world import World

NONE_YET = {"vbd/51712": 1, "vkbd/0": 1}


@pytest.fixture
def guest(world: World) -> FakeGuest:
    """Its disks are unplugged, and its drivers have not begun."""
    guest = world.guest(world.image("xvda"))
    guest.frontends = [NONE_YET]
    guest.says_it_takes_requests = False
    return guest


def disk(vdev: str, *, cdrom: bool = False) -> Disk:
    return Disk(vdev, "/srv/a.raw", "raw", cdrom=cdrom)


class TestBoots:
    def tells(
        self, guest: FakeGuest, *, config: DomainConfig | None = None, emulated: str = ""
    ) -> bool:
        config = config or guest.configuration
        return boots(guest, config, emulated.split(), guest.frontends[0])

    def test_unplugged_and_nothing_connected(self, guest: FakeGuest) -> None:
        assert self.tells(guest)

    def test_a_connected_device_tells_that_it_has_drivers(self, guest: FakeGuest) -> None:
        guest.frontends = [{**NONE_YET, "vif/0": 4}]
        assert not self.tells(guest)

    def test_so_does_its_word(self, guest: FakeGuest) -> None:
        guest.says_it_takes_requests = True
        assert not self.tells(guest)

    def test_firmware_and_guests_without_pv_drivers_have_emulated_disks(
        self, guest: FakeGuest
    ) -> None:
        assert not self.tells(guest, emulated="xvda")

    @pytest.mark.parametrize("kind", ["pv", "pvh"])
    def test_another_kind_of_guest_has_none(self, guest: FakeGuest, kind: str) -> None:
        assert not self.tells(guest, config=config_of(disk("xvda"), kind=kind))

    @pytest.mark.parametrize(
        ("has", "tells"),
        [
            ([disk("xvda")], True),
            ([disk("hdd")], True),
            ([disk("sdb"), disk("xvdz")], True),
            ([disk("d0")], True),
            ([], False),
            ([disk("xvde")], False),
            ([disk("xvdaa")], False),
            ([disk("hda", cdrom=True)], False),  # a CD-ROM drive is not unplugged
        ],
    )
    def test_a_guest_that_never_had_one_is_not_taken_for_one(
        self, guest: FakeGuest, has: list[Disk], tells: bool
    ) -> None:
        assert self.tells(guest, config=config_of(*has)) is tells

    @pytest.mark.parametrize("paused", [False, True])
    def test_its_devices_are_not_unused_however_long_they_wait(
        self, guest: FakeGuest, paused: bool
    ) -> None:
        guest.paused = paused
        says = refusal(
            lambda: wait_until_steady(
                guest, vcpus=1, timeout_s=0.5, steady_s=0.1, boots=lambda _: True
            )
        )
        assert "vbd/51712 in xenbus state 1, vkbd/0 in xenbus state 1" in says


class Case:
    """Such a guest with a real QEMU, which can have emulated disks."""

    def __init__(self, world: World, qemu: Qemu, disks: list[Disk]) -> None:
        self.world, self.qemu = world, qemu
        self.guest = world.guest(*disks)
        self.guest.domid, self.guest.device_model = DOMID, qemu.pid
        self.guest.frontends = [NONE_YET]
        self.guest.says_it_takes_requests = False

    def emulate(self, vdev: str, *, readonly: str = "off") -> None:
        """As libxl has the disks of each HVM guest emulated, too."""
        target = next(d.target for d in self.guest.configuration.disks if d.vdev == vdev)
        self._tell(f"drive_add 0 if=none,id={vdev},format=raw,readonly={readonly},file={target}")

    def unplug(self, vdev: str) -> None:
        self._tell(f"drive_del {vdev}")

    def _tell(self, line: str) -> None:
        connection = QmpConnection(self.qemu.own)
        said = connection.execute("human-monitor-command", {"command-line": line})
        connection.close()
        assert said.strip() in ("", "OK")

    def emulated(self) -> frozenset[str]:
        return examine_device_model(self.guest, self.guest.configuration).emulated

    def notice(self) -> None:
        notice_unready(self.guest, self.guest.configuration, self.guest.frontends[0])


@pytest.fixture
def case(world: World, qemu: Qemu, disks: list[Disk]) -> Case:
    case = Case(world, qemu, disks)
    raw, medium = world.root / "raw.img", world.root / "cd.iso"
    for image in (raw, medium):
        qemu_img("create", "-q", "-f", "raw", str(image), "1M")
    case.guest.configuration = config_of(
        *disks,
        Disk("hdc", str(raw), "raw"),
        Disk("hdd", str(medium), "raw", readwrite=False, cdrom=True),
    )
    return case


class TestQemu:
    def test_only_emulated_disks_are_told(self, case: Case) -> None:
        assert case.emulated() == frozenset()
        case.emulate("hdc")
        assert case.emulated() == {"hdc"}
        case.unplug("hdc")
        assert case.emulated() == frozenset()

    def test_a_medium_in_a_drive_is_not_unplugged_and_tells_nothing(self, case: Case) -> None:
        case.emulate("hdd", readonly="on")
        assert case.emulated() == frozenset()

    def test_a_kernel_that_has_begun_meanwhile_is_noticed(self, case: Case) -> None:
        case.emulate("hdc")
        case.notice()
        case.unplug("hdc")
        with pytest.raises(OperationFailed, match=r"vm1 boots .* could not be restored: try again"):
            case.notice()

    @pytest.mark.parametrize("says", [True, False])
    def test_qemu_is_asked_only_if_nothing_else_tells(self, case: Case, says: bool) -> None:
        case.qemu.close()
        case.guest.says_it_takes_requests = says
        case.guest.frontends = [NONE_YET if says else {**NONE_YET, "vif/0": 4}]
        case.notice()
        case.guest.says_it_takes_requests = False
        case.guest.frontends = [NONE_YET]
        with pytest.raises(Refused, match="cannot talk to the guest's QEMU"):
            case.notice()

    def test_is_a_part_of_plan_and_feasibility(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        quick = partial(wait_until_steady, timeout_s=0.5, steady_s=0.1)
        for module in (create_plan, create_feasibility):
            monkeypatch.setattr(module, "wait_until_steady", quick)

        def plan() -> None:
            plan_create(case.world.host, case.guest, SnapshotConfig("snap")).close()

        says = refusal(plan)
        assert "not all devices are connected or unused" in says
        assert says in feasibility(case.world.host, "vm1").reasons
        case.guest.says_it_takes_requests = True
        plan()
        assert feasibility(case.world.host, "vm1").reasons == ()
