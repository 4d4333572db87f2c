"""Each refusal of the checks, with its one clear line."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyxlsnap import paths
from pyxlsnap.guest import checks, dom0_memory
from pyxlsnap.linux.room import Room
from pyxlsnap.model import Disk, DomainConfig, RunState
from tests.unit.support.errors import refusal
from tests.unit.support.guest import FakeGuest, config_of
from tests.unit.support.values import GIB_KB, OTHER_UUID, UUID
from tests.unit.support.world import World
from tests.unit.support.written import page_record, stream_of, writing


@pytest.fixture
def guest(world: World) -> FakeGuest:
    return world.guest(world.image("xvda"))


class TestState:
    def test_a_running_guest_is_fine(self, guest: FakeGuest) -> None:
        assert checks.run_state(guest) is RunState.RUNNING

    def test_dom0(self, guest: FakeGuest) -> None:
        guest.domid = 0
        assert "domain 0 is the host itself" in refusal(lambda: checks.run_state(guest))

    def test_a_stub_domain(self, guest: FakeGuest) -> None:
        guest.stub_domain = True
        assert "vm1 is a stub domain" in refusal(lambda: checks.run_state(guest))

    def test_dying(self, guest: FakeGuest) -> None:
        guest.dying = True
        assert "vm1 is being destroyed" in refusal(lambda: checks.run_state(guest))

    def test_suspended(self, guest: FakeGuest) -> None:
        guest.suspended = True
        says = refusal(lambda: checks.run_state(guest))
        assert "vm1 is suspended already" in says
        assert f"snapshot-recover {UUID}" in says

    @pytest.mark.parametrize("reason", ["poweroff", "reboot", "crash", "watchdog"])
    def test_shut_down(self, guest: FakeGuest, reason: str) -> None:
        guest.shutdown_reason = reason
        assert f"shut down ({reason})" in refusal(lambda: checks.run_state(guest))

    @pytest.mark.parametrize("paused", [True, False])
    def test_one_that_has_not_run_since_its_start_or_restore(
        self, guest: FakeGuest, paused: bool
    ) -> None:
        guest.has_run, guest.paused = False, paused
        says = refusal(lambda: checks.run_state(guest))
        assert says.startswith("vm1 has not run since it was started or restored, so")
        assert says.endswith("run `xl unpause vm1`, and take the snapshot some seconds later")

    def test_paused(self, guest: FakeGuest) -> None:
        guest.paused = True
        assert checks.run_state(guest) is RunState.PAUSED


def config_with(section: str, values: dict[str, object]) -> DomainConfig:
    config = config_of()
    return DomainConfig.parse(
        json.dumps({**config.values, section: {**config.section(section), **values}})
    )


class TestConfig:
    def test_a_plain_guest_is_fine(self, guest: FakeGuest) -> None:
        checks.refuse_config(guest.config(), guest)

    @pytest.mark.parametrize(
        ("key", "says"),
        [
            ("pcidevs", "passed-through PCI devices"),
            ("dtdevs", "passed-through devices"),
            ("usbdevs", "passed-through USB devices"),
            ("vtpms", "a vTPM"),
            ("p9s", "a 9pfs share"),
        ],
    )
    def test_devices(self, guest: FakeGuest, key: str, says: str) -> None:
        config = config_of(**{key: [{"devid": 0}]})  # type: ignore[arg-type]
        assert f"vm1 has {says}," in refusal(lambda: checks.refuse_config(config, guest))
        checks.refuse_config(config_of(**{key: []}), guest)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("section", "values", "says"),
        [
            ("b_info", {"nested_hvm": "True"}, "nested virtualization"),
            ("b_info", {"type.hvm": {"nested_hvm": "True"}}, "nested virtualization"),
            ("b_info", {"dm_restrict": "True"}, "dm_restrict"),
            ("b_info", {"device_model_stubdomain": "True"}, "a stub domain"),
            ("b_info", {"vnuma_nodes": [{"pnode": 0}]}, "vNUMA"),
            ("c_info", {"driver_domain": "True"}, "a driver domain's role"),
        ],
    )
    def test_kinds(
        self, guest: FakeGuest, section: str, values: dict[str, object], says: str
    ) -> None:
        config = config_with(section, values)
        assert says in refusal(lambda: checks.refuse_config(config, guest))

    @pytest.mark.parametrize("value", ["False", "<default>"])
    def test_a_value_not_set_is_fine(self, guest: FakeGuest, value: str) -> None:
        config = config_with(
            "b_info", {"nested_hvm": value, "dm_restrict": value, "vnuma_nodes": []}
        )
        checks.refuse_config(config, guest)

    def test_all_of_it_is_named_at_once(self, guest: FakeGuest) -> None:
        config = config_of(pcidevs=[{}], vtpms=[{}])
        says = refusal(lambda: checks.refuse_config(config, guest))
        assert "passed-through PCI devices, a vTPM" in says

    def test_libvirt(self, guest: FakeGuest) -> None:
        paths.LIBVIRT_DOMAINS.mkdir()
        (paths.LIBVIRT_DOMAINS / "vm2.xml").touch()
        checks.refuse_config(guest.config(), guest)
        (paths.LIBVIRT_DOMAINS / "vm1.xml").touch()
        says = refusal(lambda: checks.refuse_config(guest.config(), guest))
        assert "vm1 is managed by libvirt" in says


class TestShared:
    def test_disks_of_one_domain_are_fine(self, world: World, guest: FakeGuest) -> None:
        world.guest(world.image("xvdb"), name="vm2", uuid=OTHER_UUID)
        checks.refuse_shared(world.host, guest, guest.configuration.disks)

    @pytest.mark.parametrize("link_to", [Path.symlink_to, Path.hardlink_to])
    def test_by_another_name_of_the_same_file(
        self, world: World, guest: FakeGuest, link_to: Callable[[Path, str], None]
    ) -> None:
        (disk,) = guest.configuration.disks
        link = world.root / "link.qcow2"
        link_to(link, disk.target)
        world.guest(replace(disk, target=str(link)), name="vm2", uuid=OTHER_UUID)
        says = refusal(lambda: checks.refuse_shared(world.host, guest, [disk]))
        assert says == f"xvda: domain vm2 uses {link}, too: detach it there"

    def test_by_another_node_of_the_same_device(
        self, world: World, guest: FakeGuest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        nodes = {str(world.root / name): number for name, number in (("a", 1), ("b", 1), ("c", 2))}
        real_stat = os.stat

        def stat(path: Any, **options: Any) -> os.stat_result:
            """Device nodes, for which a test would need rights."""
            if str(path) not in nodes:
                return real_stat(path, **options)
            words = list(real_stat(world.root))
            words[0], words[1] = 0o60660, list(nodes).index(str(path))  # st_mode, st_ino
            return os.stat_result(words, {"st_rdev": nodes[str(path)]})

        monkeypatch.setattr(os, "stat", stat)
        a, b, c = (Disk(f"xvd{path[-1]}", path, "raw", "phy") for path in nodes)
        world.guest(b, c, name="vm2", uuid=OTHER_UUID)
        says = refusal(lambda: checks.refuse_shared(world.host, guest, [a]))
        assert says == f"xvda: domain vm2 uses {b.target}, too: detach it there"

    def test_a_disk_that_is_gone_is_known_by_its_name(self, world: World, guest: FakeGuest) -> None:
        gone = Disk("xvdb", "/not/there:0", "raw", "phy")
        world.guest(gone, name="vm2", uuid=OTHER_UUID)
        says = refusal(lambda: checks.refuse_shared(world.host, guest, [gone]))
        assert "domain vm2 uses /not/there:0, too" in says

    def test_a_domain_that_ends_meanwhile_is_no_obstacle(
        self, world: World, guest: FakeGuest
    ) -> None:
        other = world.guest(*guest.configuration.disks, name="vm2", uuid=OTHER_UUID)

        def goes(event: str) -> None:
            other.exists = other.exists and event != "domains"

        world.on_event = goes
        checks.refuse_shared(world.host, guest, guest.configuration.disks)

    def test_without_a_guest_everybody_is_another(self, world: World, guest: FakeGuest) -> None:
        says = refusal(lambda: checks.refuse_shared(world.host, None, guest.configuration.disks))
        assert "domain vm1 uses" in says


class TestSpace:
    def test_is_looked_for_where_the_directory_will_be(self, tmp_path: Path) -> None:
        checks.refuse_full(tmp_path / "not" / "yet", 1024, Room().claim)

    def test_too_little(self, tmp_path: Path) -> None:
        says = refusal(lambda: checks.refuse_full(tmp_path / "a", 1 << 50, Room().claim))
        assert says.startswith(f"{tmp_path} has ")
        assert says.endswith("name another place with memory_path")

    def test_the_memory_and_some_more_must_fit(self, tmp_path: Path) -> None:
        fs = os.statvfs(tmp_path)
        free_kb = fs.f_bavail * fs.f_frsize // 1024
        refusal(lambda: checks.refuse_full(tmp_path, free_kb + 1024, Room().claim))

    @pytest.mark.parametrize("pv", [False, True])
    def test_lists_go_with_the_pages_that_a_guest_can_have(self, pv: bool) -> None:
        """A balloon has left one page in each 8 MiB (PV: in each 510 pages)."""
        blocks, pages = 200, 510 if pv else 2048
        most_kb, memory_kb = blocks * pages * 4, blocks * 4
        stream = stream_of(pv, [page_record((n * pages, 0, 1) for n in range(blocks))])
        build = {"max_memkb": most_kb}
        config = DomainConfig.parse(json.dumps({**config_of().values, "b_info": build}))
        with writing() as (writer, _):
            assert writer.feed(stream)
            bound_kb = checks.memory_file_kb(memory_kb, config) - (64 << 10)
            size_kb = writer.written.size // 1024 - 1024  # (the slack has room for the header)
            assert memory_kb + memory_kb // 200 < size_kb < bound_kb

    def test_a_directory_that_cannot_be_written(self) -> None:
        says = refusal(lambda: checks.refuse_full(Path("/proc/sys"), 1, Room().claim))
        assert "/proc/sys" in says


class TestDom0Memory:
    @pytest.mark.parametrize(
        ("line", "may"),
        [
            ("", True),
            ("console=vga", True),
            ("dom0_mem=4G", False),
            ("dom0_mem=4G,max:4G console=vga", False),
            ("quiet dom0_mem=min:512M,max:2048m", False),
            ("dom0_mem=4096", False),
            ("notdom0_mem=4G", True),
            ("dom0_max_vcpus=2", True),
        ],
    )
    def test_auto_means_unless_xens_command_line_fixes_it(
        self, world: World, line: str, may: bool
    ) -> None:
        world.host.command_line = line
        assert dom0_memory.may_shrink_dom0(world.host) is may

    @pytest.mark.parametrize(
        ("setting", "may"),
        [("on", True), ("off", False), ("1", True), ("0", False), ("auto", False)],
    )
    def test_xl_conf_takes_precedence(self, world: World, setting: str, may: bool) -> None:
        world.host.autoballoon_setting = setting
        world.host.command_line = "dom0_mem=4G"
        assert dom0_memory.may_shrink_dom0(world.host) is may


class TestMemory:
    """1 GiB is free, dom0 has 4 GiB, the guest has 1 MiB."""

    LARGEST_KB = GIB_KB + 1024 + (4 * GIB_KB - 128 * 1024)

    def test_memory_of_the_guest_and_dom0_counts(self, world: World, guest: FakeGuest) -> None:
        world.host.command_line = "console=vga"
        world.host.needed_kb = self.LARGEST_KB
        checks.refuse_memory(world.host, guest.configuration, guest)

    def test_more_than_dom0_can_give_is_refused(self, world: World, guest: FakeGuest) -> None:
        world.host.command_line = "console=vga"
        world.host.needed_kb = self.LARGEST_KB + 1024
        says = refusal(lambda: checks.refuse_memory(world.host, guest.configuration, guest))
        assert says.startswith("vm1 needs 4994 MiB of memory and Xen has 4993 MiB, with")
        assert "with 3968 MiB that dom0 could give: " in says

    def test_a_dom0_that_is_not_to_be_shrunk_gives_nothing(
        self, world: World, guest: FakeGuest
    ) -> None:
        world.host.needed_kb = GIB_KB + 2048
        says = refusal(lambda: checks.refuse_memory(world.host, guest.configuration, guest))
        assert says.startswith(
            "vm1 needs 1026 MiB of memory and Xen has 1025 MiB: shut down another"
        )

    def test_a_guest_that_is_off_gives_nothing(self, world: World, guest: FakeGuest) -> None:
        world.host.needed_kb = GIB_KB + 1024
        checks.refuse_memory(world.host, guest.configuration, guest)
        refusal(lambda: checks.refuse_memory(world.host, guest.configuration, None))
