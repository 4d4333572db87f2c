"""What QEMU has beside the domain's disks: named, and refused before anything is done."""

import json
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from pyxlsnap.disks.qcow2.qmp import QmpConnection
from pyxlsnap.errors import Refused
from pyxlsnap.guest import checks
from pyxlsnap.guest.device_model import _refuse_added, examine_device_model, not_saved
from pyxlsnap.model import Disk, DomainConfig, SnapshotConfig
from tests.unit.support.errors import refusal
from tests.unit.support.guest import FakeGuest, config_of
from tests.unit.support.operations import feasibility, plan_create
from tests.unit.support.qemu import DOMID, Qemu, qemu_img
from tests.unit.support.world import World


def with_build(**values: object) -> DomainConfig:
    config = config_of()
    return DomainConfig.parse(
        json.dumps({**config.values, "b_info": {**config.section("b_info"), **values}})
    )


class TestUsb:
    def controllers(self, kind: str, *types: str) -> list[str]:
        usbctrls = [{"type": t, "devid": n, "ports": 8} for n, t in enumerate(types)]
        return not_saved(config_of(kind=kind, usbctrls=usbctrls), "vm 1")

    def test_an_emulated_controller_is_named_with_its_way_out(self) -> None:
        assert self.controllers("hvm", "pv", "devicemodel") == [
            "an emulated USB controller (to remove it: xl usbctrl-detach 'vm 1' 1)"
        ]

    @pytest.mark.parametrize(("kind", "emulated"), [("hvm", 1), ("pv", 0), ("pvh", 0)])
    def test_auto_is_emulated_for_an_hvm_guest(self, kind: str, emulated: int) -> None:
        assert len(self.controllers(kind, "auto")) == emulated

    @pytest.mark.parametrize("type_", ["pv", "qusb"])
    def test_paravirtual_controllers_are_fine(self, type_: str) -> None:
        assert self.controllers("hvm", type_) == []

    def test_is_named_together_with_the_device_on_it(self, world: World) -> None:
        """The advice to remove the device would else lead to the next refusal."""
        guest = world.guest()
        config = config_of(usbdevs=[{}], usbctrls=[{"type": "devicemodel", "devid": 3}])
        says = refusal(lambda: checks.refuse_config(config, guest))
        assert "vm1 has passed-through USB devices, an emulated USB controller" in says
        assert "xl usbctrl-detach vm1 3" in says

    @pytest.mark.parametrize(
        ("hvm", "found"),
        [
            ({"usb": "True", "usbdevice_list": ["tablet", "keyboard"]}, []),
            ({"usbdevice": "tablet"}, []),
            ({"usbdevice": "disk:/srv/stick"}, ["usbdevice=disk:/srv/stick"]),
            ({"usbdevice_list": ["mouse", "host:1.2"]}, ["usbdevice=host:1.2"]),
        ],
    )
    def test_devices_of_the_configuration_come_back(
        self, hvm: dict[str, object], found: list[str]
    ) -> None:
        assert not_saved(with_build(**{"type.hvm": hvm}), "vm1") == found


class TestArguments:
    @pytest.mark.parametrize("key", ["extra", "extra_pv", "extra_hvm"])
    @pytest.mark.parametrize(
        "words",
        [
            ["-drive", "file=/srv/a,if=virtio"],
            ["--drive", "file=/srv/readonly.img,if=virtio"],
            ["-blockdev", "driver=qcow2,node-name=a"],
            ["-hdb", "/srv/a"],
            ["-device", "nvme,drive=a,serial=1"],
            ["-device", "nvme-ns,drive=a"],
            ["-device", "virtio-blk-pci,drive=a"],
            ["-device", "scsi-hd,drive=a"],
            ["-device", "id=x,driver=scsi-block,drive=a"],
            ["-device", '{"driver": "usb-storage", "drive": "a"}'],
            ["-device", "vfio-pci,host=01:00.0"],
            ["-virtfs", "local,path=/srv,mount_tag=a,security_model=none"],
        ],
    )
    def test_a_disk_is_named(self, key: str, words: list[str]) -> None:
        config = with_build(**{key: ["-name", "x", *words, "-k", "de"]})
        assert not_saved(config, "vm1") == [f"`{' '.join(words)}` in device_model_args"]

    @pytest.mark.parametrize(
        "words",
        [
            ["-chardev", "file,id=log,append=on,path=/drive"],
            ["-device", "virtio-net-pci,netdev=a"],
            ["-device", "virtio-scsi-pci,id=scsi0"],
            ["-cdrom", "/srv/a.iso"],
            ["-drive", "file=/srv/a.iso,media=cdrom"],
            ["-drive", "if=pflash,readonly=on,file=/usr/share/OVMF_CODE.fd"],
            ["-name", "drive"],
            [],
        ],
    )
    def test_what_comes_back_is_fine(self, words: list[str]) -> None:
        assert not_saved(with_build(extra_hvm=words), "vm1") == []

    def test_is_refused_with_the_configuration(self, world: World) -> None:
        guest, config = world.guest(), with_build(extra=["-drive", "file=/srv/a"])
        says = refusal(lambda: checks.refuse_config(config, guest))
        assert "vm1 has `-drive file=/srv/a` in device_model_args, which cannot be saved" in says


def version_of_qemu() -> str:
    """What the QEMU of the tests says it is."""
    command = ["qemu-system-x86_64", "-version"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return said.split()[3]


class Case:
    """A guest in the small world, with a real QEMU."""

    def __init__(self, world: World, qemu: Qemu, disks: list[Disk]) -> None:
        self.world, self.qemu, self.disks = world, qemu, disks
        self.guest: FakeGuest = world.guest(*disks)
        self.guest.domid, self.guest.device_model = DOMID, qemu.pid

    def check(self) -> str:
        return examine_device_model(self.guest, self.guest.configuration).version

    def qmp(self, command: str, **arguments: object) -> None:
        connection = QmpConnection(self.qemu.own)
        connection.execute(command, {key.replace("_", "-"): v for key, v in arguments.items()})
        connection.close()


@pytest.fixture
def case(world: World, qemu: Qemu, disks: list[Disk]) -> Case:
    return Case(world, qemu, disks)


class TestQemu:
    def test_the_domains_own_disks_are_fine(self, case: Case) -> None:
        assert case.check() == version_of_qemu()
        case.check()  # it has let go of the monitor

    def test_a_disk_that_is_none_of_the_domains(self, case: Case) -> None:
        case.guest.configuration = config_of(case.disks[0])
        says = refusal(case.check)
        assert says.startswith("the QEMU of vm1 has a disk that is none of the domain's")
        assert case.disks[1].target in says

    def test_by_another_name_of_the_file(self, case: Case, tmp_path: Path) -> None:
        """As an emulated disk, whose node libxl does not name after the vdev."""
        link = tmp_path / "link"
        link.symlink_to(case.disks[1].target)
        case.guest.configuration = config_of(case.disks[0], Disk("hdc", str(link), "qcow2"))
        case.check()

    def test_a_disk_after_an_external_snapshot_is_known_by_its_node(
        self, case: Case, tmp_path: Path
    ) -> None:
        for overlay, node in (("a", "xlsnap-xvda-0011"), ("b", "somebodys")):
            case.qmp(
                "blockdev-snapshot-sync",
                node_name=f"xvd{overlay}-qcow2",
                snapshot_file=str(tmp_path / overlay),
                snapshot_node_name=node,
                format="qcow2",
            )
        says = refusal(case.check)
        assert str(tmp_path / "b") in says

    def test_a_read_only_medium_needs_no_snapshot(self, case: Case, tmp_path: Path) -> None:
        for name, more in (("x", ",readonly=on"), ("y", "")):
            case.check()
            image = str(tmp_path / f"{name}.qcow2")
            qemu_img("create", "-q", "-f", "qcow2", image, "1M")
            line = f"drive_add 0 if=none,id={name},file={image}{more}"
            case.qmp("human-monitor-command", command_line=line)
        assert f"(y: {image})" in refusal(case.check)

    def test_a_device_added_to_the_running_qemu(self, case: Case) -> None:
        """As libxl adds an emulated USB controller."""
        case.qmp("device_add", driver="piix3-usb-uhci", id="xenusb-0")
        says = refusal(case.check)
        assert "a device was added to the running QEMU of vm1 (xenusb-0, piix3-usb-uhci)" in says
        assert "xl qemu-monitor-command vm1 'device_del xenusb-0'" in says

    def test_what_qemu_makes_itself_for_xenstore_comes_back(self) -> None:
        """As the QEMU of each HVM guest on a Xen has it."""
        made = {"name": "xen-vkbd-0", "type": "child<xen-backend>"}
        _refuse_added("vm 1", [made], ["qemu-system-i386"])
        with pytest.raises(Refused, match="added to the running QEMU"):
            _refuse_added("vm 1", [{**made, "type": "child<usb-tablet>"}], ["qemu-system-i386"])

    def test_a_disk_with_a_path_of_qemus_own_cannot_be_compared(self, case: Case) -> None:
        case.guest.configuration = config_of(case.disks[0], Disk("xvdz", "rbd:pool/b", "raw"))
        assert case.disks[1].target in refusal(case.check)  # a file is none of that kind

    def test_a_disk_of_a_script_is_a_block_device(self, case: Case) -> None:
        disks = [{"vdev": "xvdz", "pdev_path": "iqn.2001-04:a", "script": "block-iscsi"}]
        case.guest.configuration = config_of(disks=disks)
        assert case.disks[0].target in refusal(case.check)

    @pytest.mark.parametrize("kind", ["pv", "pvh"])
    def test_another_kind_of_guest_is_not_asked(self, case: Case, kind: str) -> None:
        case.guest.configuration = config_of(kind=kind)
        assert case.check() == ""

    def test_a_qemu_that_does_not_answer(self, case: Case) -> None:
        case.qemu.close()
        says = refusal(case.check)
        assert says.startswith("vm1: cannot talk to the guest's QEMU (QMP socket ")
        assert "(xentop?)" in says

    def test_the_snapshot_has_its_version(self, case: Case) -> None:
        wanted = SnapshotConfig("snap")
        with closing(plan_create(case.world.host, case.guest, wanted)) as plan:
            assert plan.metadata.versions["qemu"] == version_of_qemu()

    def test_is_a_part_of_plan_and_feasibility(self, case: Case) -> None:
        case.guest.configuration = config_of(case.disks[0])
        says = refusal(lambda: plan_create(case.world.host, case.guest, SnapshotConfig("snap")))
        assert "none of the domain's" in says
        assert says in feasibility(case.world.host, "vm1").reasons
