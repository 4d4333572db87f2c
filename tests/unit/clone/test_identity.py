"""What a clone has of its own in its configuration, and what is refused because it is shared."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap.clone.identity import Wanted, own
from pyxlsnap.clone.lines import files_of, refuse_taken_lines, sockets_of
from pyxlsnap.clone.shared import check_edited, refuse_still_shared
from pyxlsnap.errors import Refused, UsageError
from pyxlsnap.model import Disk, DomainConfig
from pyxlsnap.results import CloneDisk
from tests.unit.support.guest import config_of
from tests.unit.support.values import BRIDGE, OTHER_UUID

DISK = Disk("xvda", "/srv/a.qcow2", "qcow2")
CHILD = CloneDisk("xvda", "/srv/a.snap.c1", "qcow2", "overlay", "rm", "/srv/a.snap")
MAC = "00:16:3e:00:00:01"


def wanted(**more: Any) -> Wanted:
    return Wanted(**{"name": "c1", "uuid": OTHER_UUID, "disks": [CHILD], **more})


def hvm(**emulated: Any) -> DomainConfig:
    saved = config_of(DISK)
    values = json.loads(saved.json)
    values["b_info"]["type.hvm"] |= emulated
    return DomainConfig.parse(json.dumps(values))


def nic(kind: str, nictype: str, **more: Any) -> DomainConfig:
    device = {"devid": 0, "mac": MAC, "bridge": BRIDGE, "nictype": nictype, **more}
    return config_of(DISK, kind=kind, nics=[device])


def of_hvm(config: DomainConfig) -> Any:
    return config.section("b_info")["type.hvm"]


def test_name_uuid_and_disks_are_its_own() -> None:
    config, _ = own(config_of(DISK), wanted())
    assert (config.name, config.uuid) == ("c1", OTHER_UUID)
    (disk,) = config.disks
    assert (disk.vdev, disk.target, disk.format, disk.backend) == (
        "xvda",
        CHILD.target,
        "qcow2",
        DISK.backend,
    )


@pytest.mark.parametrize(
    ("kind", "nictype", "kept"),
    [
        ("pv", "vif", False),
        ("pvh", "vif", False),
        ("hvm", "vif", False),
        ("hvm", "vif_ioemu", True),
    ],
)
def test_only_an_emulated_network_device_keeps_its_mac(kind: str, nictype: str, kept: bool) -> None:
    config, changes = own(nic(kind, nictype), wanted())
    mac = config.devices("nics")[0]["mac"]
    assert (mac == MAC) is kept
    assert changes == ([] if kept else [f"network device 0: MAC {mac}"])


@given(st.uuids(), st.integers(0, 7))
def test_a_mac_is_one_of_xens_the_same_each_time_and_nobody_elses(uuid: Any, number: int) -> None:
    devices = [{"devid": n, "nictype": "vif", "mac": MAC} for n in range(8)]
    saved = config_of(DISK, kind="pv", nics=devices)

    def mac(**more: Any) -> str:
        config, _ = own(saved, wanted(uuid=str(uuid), **more))
        return str(config.devices("nics")[number]["mac"])

    first = mac()
    assert first == mac()
    assert first.startswith("00:16:3e:")
    assert mac(macs={first}) != first


def test_all_network_devices_go_to_the_wanted_bridge() -> None:
    config, changes = own(nic("hvm", "vif_ioemu", ifname="web1"), wanted(bridge="isolated"))
    assert config.devices("nics")[0] == {
        "devid": 0,
        "mac": MAC,
        "bridge": "isolated",
        "nictype": "vif_ioemu",
    }
    assert len(changes) == 2


def test_a_fixed_vnc_display_becomes_a_free_one() -> None:
    vnc = {"enable": "True", "listen": "0.0.0.0:3", "display": 3, "findunused": "False"}
    config, changes = own(hvm(vnc=vnc), wanted())
    assert of_hvm(config)["vnc"] == {"enable": "True", "listen": "0.0.0.0", "findunused": "True"}
    assert changes == ["VNC: a free display of 0.0.0.0"]


def test_a_free_vnc_display_stays_as_it_is() -> None:
    vnc = {"enable": "True", "findunused": "True"}
    config, changes = own(hvm(vnc=vnc), wanted())
    assert of_hvm(config)["vnc"] == vnc
    assert changes == []


@pytest.mark.parametrize(
    ("listen", "free"),
    [
        ("[::1]:5", "[::1]:0"),
        ("[::]:5", "[::]:0"),
        ("[::1]", "[::1]:0"),
        ("web1.example:5", "web1.example"),
        ("", "127.0.0.1"),
        (":5", ""),
        ("::1", "::1"),  # QEMU starts with this neither for the snapshot's domain nor for a clone
    ],
)
def test_a_free_vnc_display_is_looked_for_at_the_same_address(listen: str, free: str) -> None:
    config, _ = own(hvm(vnc={"enable": "True", "listen": listen, "findunused": "False"}), wanted())
    assert of_hvm(config)["vnc"]["listen"] == free


def test_the_socket_of_a_vnc_server_is_refused() -> None:
    saved = hvm(vnc={"enable": "True", "listen": "unix:/run/vnc", "findunused": "False"})
    config, _ = own(saved, wanted())
    with pytest.raises(Refused, match="the VNC display unix:/run/vnc"):
        refuse_still_shared(saved, config, {"xvda"})


def test_sockets_and_files_of_serial_lines_and_channels_are_its_own() -> None:
    saved = hvm(serial="unix:/run/a.sock,server=on", serial_list=["file:/var/log/a", "pty"])
    values = json.loads(saved.json)
    values["channels"] = [{"name": "agent", "connection.socket": {"path": "/run/agent"}}]
    config, changes = own(DomainConfig.parse(json.dumps(values)), wanted())
    assert of_hvm(config)["serial"] == "unix:/run/a.sock.c1,server=on"
    assert of_hvm(config)["serial_list"] == ["file:/var/log/a.c1", "pty"]
    assert config.devices("channels")[0]["connection.socket"] == {"path": "/run/agent.c1"}
    assert len(changes) == 3
    refuse_still_shared(saved, config, {"xvda"})


@pytest.mark.parametrize(
    ("kind", "generation", "told"),
    [
        ("hvm", [*range(16)], ["VM generation ID: a new one"]),
        ("hvm", [0] * 16, []),  # as libxl takes it: there is none
        ("hvm", None, []),
        ("pvh", [*range(16)], []),
    ],
)
def test_a_new_generation_id_is_told_where_the_domain_has_one(
    kind: str, generation: list[int] | None, told: list[str]
) -> None:
    values = json.loads(hvm().json)
    values["c_info"]["type"], values["nics"] = kind, []
    if generation is not None:
        values["b_info"]["type.hvm"]["ms_vm_genid"] = generation
    config, changes = own(DomainConfig.parse(json.dumps(values)), wanted())
    assert changes == told
    # The restore sees from it that there is one to make.
    assert of_hvm(config).get("ms_vm_genid") == generation


@pytest.mark.parametrize(
    ("emulated", "build", "what"),
    [
        ({"serial": "tcp:127.0.0.1:4000,server"}, {}, "serial line tcp"),
        ({"serial": "pipe:/run/p"}, {}, "serial line pipe"),
        ({"serial_list": ["/dev/ttyS0"]}, {}, "serial line /dev/ttyS0"),
        ({"spice": {"enable": "True", "port": 5901}}, {}, "SPICE port 5901"),
        ({}, {"extra_hvm": ["-chardev", "socket,path=/run/x"]}, "path in device_model_args"),
        ({}, {"extra": ["-gdb", "tcp::1234"]}, r"port in device_model_args \(tcp::1234"),
        ({}, {"extra": ["-s"]}, r"port in device_model_args \(-s"),
        ({}, {"extra_hvm": ["-vnc", ":5"]}, "port in device_model_args"),
        ({}, {"extra_hvm": ["-spice", "port=5930,disable-ticketing=on"]}, "port in device_model_"),
        ({}, {"extra_hvm": ["-chardev", "socket,id=a,host=::1,port=4000"]}, "port in device_mod"),
        ({}, {"extra_hvm": ["-netdev", "user,id=a,hostfwd=tcp::2222-:22"]}, "port in device_mo"),
        ({}, {"extra_hvm": ["-serial", "mon:telnet::4000,server"]}, "port in device_model_args"),
    ],
)
def test_what_cannot_be_its_own_is_refused_by_name(
    emulated: dict[str, Any], build: dict[str, Any], what: str
) -> None:
    values = json.loads(hvm(**emulated).json)
    values["b_info"] |= build
    saved = DomainConfig.parse(json.dumps(values))
    config, _ = own(saved, wanted())
    with pytest.raises(Refused, match=what):
        refuse_still_shared(saved, config, {"xvda"})


@pytest.mark.parametrize(
    "words",
    [
        ["-device", "usb-tablet,bus=usb.0,port=1"],
        ["-device", "e1000,mac=00:16:3e:00:00:01"],
        ["-global", "isa-fdc.driveA="],
        ["-vnc", "none"],
    ],
)
def test_arguments_that_two_domains_can_share(words: list[str]) -> None:
    values = json.loads(hvm().json)
    values["b_info"]["extra_hvm"] = words
    saved = DomainConfig.parse(json.dumps(values))
    config, _ = own(saved, wanted())
    refuse_still_shared(saved, config, {"xvda"})


def test_a_socket_whose_path_becomes_too_long() -> None:
    saved = hvm(serial=f"unix:/{'x' * 106},server")
    config, _ = own(saved, wanted())
    with pytest.raises(Refused, match="too long for a socket"):
        refuse_still_shared(saved, config, {"xvda"})


def test_a_writable_disk_that_is_not_in_the_snapshot() -> None:
    saved = config_of(DISK, Disk("xvdb", "/srv/b", "raw", "phy"))
    config, _ = own(saved, wanted())
    with pytest.raises(Refused, match="the writable disk xvdb"):
        refuse_still_shared(saved, config, {"xvda"})


def test_a_read_only_disk_is_shared() -> None:
    saved = config_of(DISK, Disk("xvdb", "/srv/b", "raw", "phy", readwrite=False))
    config, _ = own(saved, wanted())
    refuse_still_shared(saved, config, {"xvda"})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("c_info", "name", "x"),
        ("c_info", "uuid", "x"),
        ("c_info", "type", "pv"),
        ("c_info", "type", "x"),
        ("c_info", "type", None),
        ("b_info", "max_vcpus", 9),
        ("b_info", "max_memkb", 9),
        ("b_info", "target_memkb", 9),
    ],
)
def test_what_the_memory_fixes_cannot_be_edited(section: str, key: str, value: object) -> None:
    config, _ = own(config_of(DISK), wanted())
    values = json.loads(config.json)
    values[section][key] = value
    with pytest.raises(UsageError, match=key):
        check_edited(config, DomainConfig.parse(json.dumps(values)), {"xvda"})


def test_the_clones_disks_cannot_be_edited_and_other_things_can() -> None:
    config, _ = own(nic("pv", "vif"), wanted())
    values = json.loads(config.json)
    values["nics"][0]["bridge"] = "other"
    values["on_reboot"] = "destroy"
    check_edited(config, DomainConfig.parse(json.dumps(values)), {"xvda"})
    values["disks"][0]["pdev_path"] = "/srv/a.qcow2"
    with pytest.raises(UsageError, match="disk"):
        check_edited(config, DomainConfig.parse(json.dumps(values)), {"xvda"})


@pytest.mark.parametrize("kind", ["disks", "nics", "pcidevs", "usbdevs", "vtpms", "p9s"])
def test_no_device_can_be_added(kind: str) -> None:
    config, _ = own(nic("pv", "vif"), wanted())
    values = json.loads(config.json)
    values[kind] = [*values.get(kind, []), {}]
    with pytest.raises(UsageError, match=f"cannot be changed in: the number of {kind}"):
        check_edited(config, DomainConfig.parse(json.dumps(values)), {"xvda"})


@pytest.mark.parametrize("key", ["script", "backend_domname"])
def test_what_serves_the_clones_disks_cannot_be_edited(key: str) -> None:
    config, _ = own(nic("pv", "vif"), wanted())
    values = json.loads(config.json)
    values["disks"][0][key] = "other"
    with pytest.raises(UsageError, match="script"):
        check_edited(config, DomainConfig.parse(json.dumps(values)), {"xvda"})
    check_edited(config, DomainConfig.parse(json.dumps(values)), ())


def listening(path: Path) -> socket.socket:
    found = socket.socket(socket.AF_UNIX)
    found.bind(str(path))
    found.listen()
    return found


def with_channel(path: str) -> DomainConfig:
    values = json.loads(hvm().json)
    values["channels"] = [{"name": "agent", "connection.socket": {"path": path}}]
    return DomainConfig.parse(json.dumps(values))


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize(
    "line", ["unix:{},server,nowait", "unix:{},server=y,wait=n", "unix:{},server=true", "file:{}"]
)
def test_a_serial_line_to_a_file_that_is_there(tmp_path: Path, line: str, ours: bool) -> None:
    path = tmp_path / "a"
    config = hvm(serial=line.format(path))
    refuse_taken_lines(config)
    path.write_text("mine")
    if ours:
        refuse_taken_lines(config, [str(path)])
        return
    with pytest.raises(Refused, match=f"{path} exists, and QEMU would replace"):
        refuse_taken_lines(config, [f"{path}.other"])


def test_a_relative_path_is_one_from_the_root_where_a_worker_starts_qemu() -> None:
    assert files_of(hvm(serial="file:log")) == ["/log"]
    assert sockets_of(hvm(serial="unix:line,server,nowait")) == ["/line"]


def test_a_channel_whose_socket_another_program_has(tmp_path: Path) -> None:
    path = tmp_path / "a"
    config = with_channel(str(path))
    assert sockets_of(config) == [str(path)]
    with listening(path), pytest.raises(Refused, match="its channel agent"):
        refuse_taken_lines(config)
    refuse_taken_lines(config)  # a QEMU that ended has left the socket


def test_a_serial_line_that_connects(tmp_path: Path) -> None:
    path = tmp_path / "a"
    config = hvm(serial_list=[f"unix:{path}"])
    assert sockets_of(config) == []
    for ours in ([], [str(path)]):
        with pytest.raises(Refused, match="has no program that listens"):
            refuse_taken_lines(config, ours)
    with listening(path):
        refuse_taken_lines(config)


def test_a_line_that_is_edited_back_is_shared() -> None:
    saved = with_channel("/run/agent")
    with pytest.raises(Refused, match="its channel agent"):
        refuse_still_shared(saved, saved, {"xvda"})


def test_a_channel_whose_path_becomes_too_long() -> None:
    saved = with_channel(f"/{'x' * 106}")
    config, _ = own(saved, wanted())
    with pytest.raises(Refused, match="too long for a socket"):
        refuse_still_shared(saved, config, {"xvda"})
