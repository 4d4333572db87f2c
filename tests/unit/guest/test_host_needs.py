"""What a restore needs of the host: refused is only what libxl would really fail on."""

from pathlib import Path

import pytest

from pyxlsnap.errors import Refused
from pyxlsnap.guest.findings import Findings
from pyxlsnap.guest.host_needs import examine_host
from pyxlsnap.model import Disk
from tests.unit.support.guest import config_of
from tests.unit.support.values import OTHER_UUID
from tests.unit.support.world import World

GONE = "/nonexistent/vmlinuz"


def examine(world: World, *disks: Disk, kind: str = "pvh", **more: object) -> Findings:
    config = config_of(*disks, kind=kind, **more)  # type: ignore[arg-type]
    return examine_host(world.host, config, None)


class TestBootFiles:
    @pytest.mark.parametrize("key", ["kernel", "ramdisk", "bootloader"])
    @pytest.mark.parametrize("kind", ["pv", "pvh"])
    def test_of_pv_and_pvh_are_needed_at_the_next_reboot(
        self, world: World, kind: str, key: str
    ) -> None:
        found = examine(world, kind=kind, b_info={key: GONE})
        assert found.risks == ()
        (warning,) = found.warnings
        assert f"{GONE} ({key})" in warning
        assert "cannot reboot" in warning

    @pytest.mark.parametrize("key", ["kernel", "ramdisk"])
    def test_of_hvm_are_opened_by_qemu(self, world: World, key: str) -> None:
        with pytest.raises(Refused, match="vmlinuz, which does not exist"):
            examine(world, kind="hvm", b_info={key: GONE})

    @pytest.mark.parametrize("key", ["system_firmware", "smbios_firmware", "acpi_firmware"])
    def test_of_hvm_that_are_loaded_into_its_memory(self, world: World, key: str) -> None:
        found = examine(world, kind="hvm", b_info={"type.hvm": {key: GONE}})
        assert key in found.warnings[0]

    def test_that_are_there_are_nothing_to_say(self, world: World) -> None:
        here = str(world.kernel)
        found = examine(world, b_info={"kernel": here, "ramdisk": here, "bootloader": "pygrub"})
        assert found == Findings((), ())


class TestDriverDomain:
    """Its network and its disks are not dom0's: only the domain itself must be there."""

    def test_of_a_network_device(self, world: World) -> None:
        nics: list[dict[str, object]]
        nics = [{"bridge": "nosuch", "script": "/nonexistent", "backend_domname": "net1"}]
        with pytest.raises(Refused, match="driver domain net1"):
            examine(world, nics=nics)
        domid = world.guest(name="net1", uuid=OTHER_UUID).domid
        assert examine(world, nics=nics) == Findings((), ())
        nics = [{"bridge": "nosuch", "backend_domid": domid}]
        assert examine(world, nics=nics) == Findings((), ())

    def test_of_a_disk(self, world: World) -> None:
        disk = {"vdev": "xvdc", "pdev_path": "/dev/there", "format": "raw"}
        with pytest.raises(Refused, match="driver domain store1"):
            examine(world, disks=[{**disk, "backend_domname": "store1"}])
        world.guest(name="store1", uuid=OTHER_UUID)
        assert examine(world, disks=[{**disk, "backend_domname": "store1"}]) == Findings((), ())

    @pytest.mark.parametrize("dom0", [{"backend_domname": "Domain-0"}, {"backend_domid": 0}])
    def test_dom0_is_none(self, world: World, dom0: dict[str, object]) -> None:
        disk = {"vdev": "xvdc", "pdev_path": "/nonexistent/image", "format": "raw", **dom0}
        with pytest.raises(Refused, match="image, which does not exist"):
            examine(world, disks=[disk])


class TestDisks:
    def test_are_named_each(self, world: World) -> None:
        gone = [Disk(v, f"/nonexistent/{v}", "raw", readwrite=False) for v in ("xvdc", "xvdd")]
        with pytest.raises(Refused, match=r"xvdc, which.*; .*xvdd, which"):
            examine(world, *gone)

    def test_with_a_script_need_the_script(self, world: World, tmp_path: Path) -> None:
        disk = {"vdev": "xvdc", "pdev_path": "/nonexistent", "format": "raw"}
        script = tmp_path / "block-own"
        with pytest.raises(Refused, match="block-own"):
            examine(world, disks=[{**disk, "script": str(script)}])
        script.touch(0o755)
        assert examine(world, disks=[{**disk, "script": str(script)}]) == Findings((), ())


def test_a_cpu_pool_that_is_gone_is_refused(world: World) -> None:
    info = {**config_of(kind="pvh").section("c_info"), "pool_name": "fast"}
    with pytest.raises(Refused, match="CPU pool fast"):
        examine(world, c_info=info)
    world.host.cpupools["fast"] = frozenset({1})
    assert examine(world, c_info=info) == Findings((), ())


def test_a_vnc_display_that_is_gone_is_refused(world: World) -> None:
    vnc = {"listen": "192.0.2.7", "findunused": "False"}
    with pytest.raises(Refused, match="VNC display"):
        examine(world, vfbs=[{"vnc": vnc}])


def test_the_same_of_two_devices_is_said_once(world: World) -> None:
    with pytest.raises(Refused) as caught:
        examine(world, nics=[{"bridge": "nosuch"}] * 2)
    assert str(caught.value).count("nosuch") == 1
