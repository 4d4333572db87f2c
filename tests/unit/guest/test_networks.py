"""The network devices of a restored domain: what each hotplug script would fail on."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap import paths
from pyxlsnap.guest.findings import Finding, Grade
from pyxlsnap.guest.networks import examine_nic
from tests.unit.support.values import BRIDGE
from tests.unit.support.world import World

Examine = Callable[..., list[Finding]]

# What `ovs-vsctl` answers for the bridges of this host.
OVS = """#!/bin/sh
[ "$1 $2 $3" = "--timeout=10 -- br-exists" ] || exit 9
[ "$4" = down ] && { echo "database connection failed" >&2; exit 1; }
[ "$4" = ovsbr0 ] || exit 2
"""


@pytest.fixture
def examine(world: World, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Examine a device. The host has all of Xen's scripts, and no Open vSwitch."""
    monkeypatch.setenv("PATH", str(world.root / "bin"))
    for name in ("vif-bridge", "vif-openvswitch", "vif-route", "vif-nat", "vif-own"):
        script(paths.XEN_SCRIPTS / name)

    def found(domid: int | None = None, **nic: object) -> list[Finding]:
        return list(examine_nic(nic, domid))

    return found


def script(path: Path, text: str = "#!/bin/sh\n") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def interface(name: str, *, below: str = "", device: str = "") -> None:
    (paths.NETWORK / name / below).mkdir(parents=True)
    if device:
        (paths.NETWORK / name / "device").symlink_to(f"../../devices/{device}")


def only(found: list[Finding], grade: Grade) -> str:
    (finding,) = found
    assert finding.grade is grade
    return finding.text


class TestLinuxBridge:
    def test_that_is_there_is_nothing_to_say(self, examine: Examine) -> None:
        assert examine(bridge=BRIDGE) == examine(bridge=BRIDGE, script="vif-bridge") == []

    def test_that_is_missing_is_refused(self, examine: Examine) -> None:
        assert "br7, which does not exist" in only(examine(bridge="br7"), Grade.REFUSED)

    def test_whose_name_is_not_said_is_the_default(self, examine: Examine) -> None:
        assert examine() == examine(bridge="") == []
        (paths.NETWORK / BRIDGE / "bridge").rmdir()
        (paths.NETWORK / BRIDGE).rmdir()
        assert "xenbr0, which does not exist" in only(examine(), Grade.REFUSED)
        assert examine(bridge="") == []

    def test_of_the_old_kind_is_found_under_its_new_name(self, examine: Examine) -> None:
        interface("eth1", below="bridge")
        assert examine(bridge="xenbr1") == []
        assert "xenbr2, which does not exist" in only(examine(bridge="xenbr2"), Grade.REFUSED)

    def test_that_is_another_interface_is_risky(self, examine: Examine) -> None:
        interface("br7")
        assert "not a Linux bridge" in only(examine(bridge="br7"), Grade.RISKY)

    @pytest.mark.parametrize("bridge", ["/etc", "..", ".", f"../net/{BRIDGE}", "x" * 5000])
    def test_with_no_name_of_an_interface_is_refused(self, examine: Examine, bridge: str) -> None:
        only(examine(bridge=bridge), Grade.REFUSED)


class TestOpenVSwitch:
    SCRIPT = "vif-openvswitch"

    @pytest.mark.parametrize("bridge", ["ovsbr0", "ovsbr0.41", "ovsbr0:1:2", "ovsbr0.41:1:2"])
    def test_a_vlan_is_no_part_of_the_name(
        self, examine: Examine, world: World, bridge: str
    ) -> None:
        script(world.root / "bin/ovs-vsctl", OVS)
        assert examine(bridge=bridge, script=self.SCRIPT) == []

    def test_a_missing_bridge_is_refused(self, examine: Examine, world: World) -> None:
        script(world.root / "bin/ovs-vsctl", OVS)
        found = examine(bridge="ovsbr7.41", script=self.SCRIPT)
        assert "ovs-vsctl add-br ovsbr7" in only(found, Grade.REFUSED)

    def test_a_database_that_does_not_answer_is_refused(
        self, examine: Examine, world: World
    ) -> None:
        script(world.root / "bin/ovs-vsctl", OVS)
        found = examine(bridge="down.41", script=self.SCRIPT)
        assert "database connection failed" in only(found, Grade.REFUSED)

    def test_a_missing_tool_is_refused(self, examine: Examine) -> None:
        found = examine(bridge="ovsbr0", script=self.SCRIPT)
        assert "install Open vSwitch" in only(found, Grade.REFUSED)

    @pytest.mark.parametrize("bridge", ["", ".41", "ovsbr0.x", "ovsbr0:", "a:b", "ovsbr0.4\n"])
    def test_what_the_script_cannot_read_is_refused(self, examine: Examine, bridge: str) -> None:
        found = examine(bridge=bridge, script=self.SCRIPT)
        assert "cannot read bridge=" in only(found, Grade.REFUSED)


class TestRouted:
    def test_the_bridge_is_not_looked_at(self, examine: Examine) -> None:
        assert examine(script="vif-nat", bridge="nosuch") == []

    def test_the_gateway_must_be_there(self, examine: Examine) -> None:
        found = examine(script="vif-route", bridge="nosuch")
        assert "eth0 (gatewaydev)" in only(found, Grade.REFUSED)
        found = examine(script="vif-route", gatewaydev="eth7")
        assert "eth7 (gatewaydev)" in only(found, Grade.REFUSED)

    def test_the_gateway_must_have_an_address(self, examine: Examine) -> None:
        interface("lo")
        assert examine(script="vif-route", gatewaydev="lo") == []
        interface("none7")
        found = examine(script="vif-route", gatewaydev="none7")
        assert "no IPv4 address" in only(found, Grade.RISKY)


class TestScript:
    def test_of_somebody_else_may_read_a_vlan_from_the_bridge(self, examine: Examine) -> None:
        own = str(paths.XEN_SCRIPTS / "vif-own")
        assert examine(script=own, bridge=f"{BRIDGE}.41") == examine(script=own) == []
        assert "nosuch" in only(examine(script=own, bridge="nosuch.41"), Grade.RISKY)

    def test_that_is_missing_is_refused(self, examine: Examine, world: World) -> None:
        path = world.root / "vif-own"
        assert "put the script back" in only(examine(script=str(path)), Grade.REFUSED)
        path.touch(0o644)
        if os.access(path, os.X_OK):
            pytest.skip("this user may execute everything")
        assert "not executable" in only(examine(script=str(path)), Grade.REFUSED)

    def test_that_is_not_where_scripts_are_supposed_to_be_is_risky(self, examine: Examine) -> None:
        assert "put the script back" in only(examine(script="vif-other"), Grade.RISKY)

    def test_is_unknown_where_there_are_no_scripts(
        self, examine: Examine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(paths, "XEN_SCRIPTS", Path("/nonexistent"))
        assert examine(bridge=BRIDGE) == []


class TestName:
    def test_of_another_interface_is_refused(self, examine: Examine) -> None:
        interface("web1")
        assert "web1 (vifname)" in only(examine(bridge=BRIDGE, ifname="web1"), Grade.REFUSED)

    def test_of_the_domain_that_is_destroyed_is_free(self, examine: Examine) -> None:
        interface("web1", device="vif-12-0")
        assert examine(12, bridge=BRIDGE, ifname="web1") == []
        only(examine(2, bridge=BRIDGE, ifname="web1"), Grade.REFUSED)
        only(examine(bridge=BRIDGE, ifname="web1"), Grade.REFUSED)

    def test_that_nobody_has_is_free(self, examine: Examine) -> None:
        assert examine(bridge=BRIDGE, ifname="web1") == []


@given(
    st.dictionaries(
        st.sampled_from(["bridge", "script", "ifname", "gatewaydev"]),
        st.one_of(st.none(), st.integers(), st.text(max_size=30).filter(lambda s: "\0" not in s)),
    )
)
def test_whatever_a_memory_file_says_is_read(nic: dict[str, object]) -> None:
    assert all(f.text for f in examine_nic(nic, 3))
