"""Names of snapshots, and the configuration that libxl writes."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap.errors import UsageError
from pyxlsnap.model import KEPT_SUFFIX, Disk, DomainConfig, DomainInfo, GuestKind, check_name

ALLOWED = string.ascii_letters + string.digits + "_+.@:-"
LIBXL = """{
    "c_info": {"type": "pvh", "hap": "True", "name": "vm1",
        "uuid": "8a1f0c3e-0000-4000-8000-00000000c0de", "run_hotplug_scripts": "True"},
    "b_info": {"max_vcpus": 2, "avail_vcpus": [0, 1], "kernel": "/boot/vmlinuz", "type.pvh": {}},
    "disks": [
        {"pdev_path": "/srv/a.qcow2", "vdev": "xvda", "format": "qcow2", "backend": "qdisk",
         "removable": 1, "readwrite": 1},
        {"vdev": "hdc", "format": "empty", "backend": "qdisk", "readwrite": 0, "is_cdrom": 1},
        {"pdev_path": "/dev/vg/b", "vdev": "xvdb", "format": "raw", "backend": "phy",
         "readwrite": 0, "script": "block-x", "backend_domname": "stor"}
    ],
    "nics": [{"devid": 0, "bridge": "xenbr0"}],
    "on_reboot": "restart"
}"""


@given(st.text(ALLOWED, min_size=1, max_size=127))
def test_a_name_of_allowed_characters_is_taken_or_the_reason_is_one_of_three(name: str) -> None:
    if name.isdigit() or name[0] in ".-" or name.endswith(KEPT_SUFFIX):
        with pytest.raises(UsageError):
            check_name(name)
    else:
        assert check_name(name) == name


@given(st.text(min_size=1, max_size=40))
def test_a_name_that_is_taken_is_safe_everywhere(name: str) -> None:
    try:
        check_name(name)
    except UsageError:
        return
    assert set(name) <= set(ALLOWED)
    assert not name.isdigit()
    assert name[0] not in ".-"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "empty"),
        ("1", "digits alone"),
        ("20261122", "digits alone"),
        ("a" * 128, "longer than 127"),
        ("a b", "only letters"),
        ("a/b", "only letters"),
        ("a\n", "only letters"),
        ("a\0", "only letters"),
        ("ä", "only letters"),
        ("١", "only letters"),
        ("a,b", "only letters"),
        ("a'b", "only letters"),
        ("..", "must not start"),
        (".hidden", "must not start"),
        ("-d", "must not start"),
        ("a.pre-revert", "reserved for the disks that a revert keeps .*: choose another"),
        ("a.pre-revert.pre-revert", "reserved for the disks that a revert keeps"),
    ],
)
def test_a_bad_name_is_refused_with_the_reason(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_name(name)


@pytest.mark.parametrize("name", ["pre-revert", "a.pre-revert2", "a-pre-revert", "a.pre-revert."])
def test_what_merely_resembles_the_reserved_ending_is_taken(name: str) -> None:
    assert check_name(name) == name


def test_the_generated_form_is_a_good_name() -> None:
    assert check_name("20261122-220102") == "20261122-220102"


class TestDomainConfig:
    def test_reads_what_libxl_writes(self) -> None:
        config = DomainConfig.parse(LIBXL)
        assert (config.name, config.kind) == ("vm1", GuestKind.PVH)
        assert config.uuid == "8a1f0c3e-0000-4000-8000-00000000c0de"
        assert config.disks == (
            Disk("xvda", "/srv/a.qcow2", "qcow2", "qdisk"),
            Disk("hdc", "", "empty", "qdisk", readwrite=False, cdrom=True),
            Disk(
                "xvdb",
                "/dev/vg/b",
                "raw",
                "phy",
                readwrite=False,
                script="block-x",
                backend_domain="stor",
            ),
        )

    def test_keeps_the_text_as_it_is(self) -> None:
        assert DomainConfig.parse(LIBXL).json == LIBXL

    def test_another_name_changes_nothing_else(self) -> None:
        config = DomainConfig.parse(LIBXL)
        renamed = config.with_name("other")
        assert renamed.name == "other"
        assert json.loads(renamed.json) == renamed.values
        assert renamed.with_name("vm1").values == config.values
        assert config.name == "vm1"

    def test_what_is_missing_is_empty(self) -> None:
        config = DomainConfig.parse("{}")
        assert (config.name, config.uuid, config.disks) == ("", "", ())
        assert config.section("b_info") == {}
        assert config.kind is GuestKind.PV

    @pytest.mark.parametrize("text", ["", "[]", "5", "null", "{"])
    def test_what_is_no_object_is_a_value_error(self, text: str) -> None:
        with pytest.raises(ValueError):  # noqa: PT011
            DomainConfig.parse(text)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ('{"disks": null}', "disks is not a list"),
            ('{"disks": 5}', "disks is not a list"),
            ('{"nics": {}}', "nics is not a list"),
            ('{"disks": [{"pdev_path": "/a\\u0000"}]}', "NUL"),
            ('{"c_info": {"a\\u0000": 1}}', "NUL"),
            ('{"c_info": {"name": "\\ud800"}}', "surrogates"),
            ('{"a": ' + "[" * 60 + "]" * 60 + "}", "nested too deeply"),
            ('{"a": ' * 60 + "1" + "}" * 60, "nested too deeply"),
            ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ],
    )
    def test_what_libxl_never_writes_is_a_value_error(self, text: str, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            DomainConfig.parse(text)

    def test_a_name_that_is_not_utf8_is_taken(self) -> None:
        assert DomainConfig.parse('{"c_info": {"name": "\\udcff"}}').name == "\udcff"

    @pytest.mark.parametrize("kind", ["pv", "pvh", "hvm", "HVM"])
    def test_knows_the_three_kinds(self, kind: str) -> None:
        config = DomainConfig.parse(json.dumps({"c_info": {"type": kind}}))
        assert config.kind == kind.lower()


@pytest.mark.parametrize(
    ("disk", "why"),
    [
        (Disk("xvda", "/a", "qcow2"), ""),
        (Disk("xvda", "/a", "raw", readwrite=False), "read-only"),
        (Disk("hdc", "/a.iso", "raw", cdrom=True), "a CD-ROM drive"),
        (Disk("hdc", "", "empty"), "an empty drive"),
        (Disk("hdc", "", "raw"), "an empty drive"),
    ],
)
def test_a_disk_is_left_out_only_with_a_reason(disk: Disk, why: str) -> None:
    assert disk.left_out == why


@pytest.mark.parametrize(
    ("shutdown", "reason", "suspended"),
    [(True, "suspend", True), (True, "poweroff", False), (False, "", False)],
)
def test_only_a_suspend_is_resumable(shutdown: bool, reason: str, suspended: bool) -> None:
    assert DomainInfo(1, "u", False, shutdown, reason, False, 1).suspended is suspended


@pytest.mark.parametrize(("b_info", "vcpus"), [({}, 1), ({"max_vcpus": 8}, 8)])
def test_the_processors_of_a_configuration(b_info: dict[str, int], vcpus: int) -> None:
    assert DomainConfig.parse(json.dumps({"b_info": b_info})).vcpus == vcpus


@pytest.mark.parametrize(
    ("form", "backend", "expected"),
    [
        ("qcow2", "unknown", True),
        ("vhd", "unknown", True),
        ("raw", "unknown", False),
        ("empty", "unknown", False),
        ("raw", "phy", False),
        ("raw", "qdisk", True),
        ("qcow2", "phy", False),
    ],
)
def test_who_serves_a_disk(form: str, backend: str, expected: bool) -> None:
    """libxl's JSON names no backend unless the user chose one."""
    assert Disk("xvda", "/a", form, backend).for_qemu is expected


@pytest.mark.parametrize(("kind", "for_qemu"), [("hvm", True), ("pv", False), ("pvh", False)])
def test_the_cdrom_of_an_hvm_guest_is_its_qemus(kind: str, for_qemu: bool) -> None:
    """libxl chooses so before it looks at the file."""
    cdrom = {"vdev": "hdc", "pdev_path": "/dev/vg/iso", "format": "raw", "is_cdrom": 1}
    values = {"c_info": {"type": kind, "name": "vm1"}, "disks": [cdrom]}
    (disk,) = DomainConfig.parse(json.dumps(values)).disks
    assert disk.for_qemu is for_qemu
