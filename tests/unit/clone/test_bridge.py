"""The bridge of a clone: the clone is there or it is refused, but never elsewhere unnoticed."""

from typing import Any

import pytest

from pyxlsnap.api.clones import plan_clone
from pyxlsnap.clone import operation
from pyxlsnap.clone.shared import refuse_unbridged
from pyxlsnap.errors import NeedsAttention, Refused, UsageError
from pyxlsnap.request import Callbacks, CloneConfigurationRequest
from tests.unit.support.clones import Origin
from tests.unit.support.guest import config_of
from tests.unit.support.values import BRIDGE
from tests.unit.support.world import World


def nic(**more: Any) -> dict[str, Any]:
    return {"devid": 0, "mac": "00:16:3e:00:00:01", "bridge": BRIDGE, "nictype": "vif", **more}


@pytest.mark.parametrize("bridge", ["", " "])
def test_an_empty_name(bridge: str) -> None:
    with pytest.raises(UsageError, match="the bridge is empty"):
        plan_clone("/base.cfg", "c1", bridge=bridge)


@pytest.mark.parametrize("script", ["vif-route", "/etc/xen/scripts/vif-nat", "vif-route-qemu"])
def test_a_script_that_looks_at_no_bridge(world: World, script: str) -> None:
    origin = Origin(world, nics=[nic(script=script)])
    with pytest.raises(Refused, match=rf"on the bridge {BRIDGE}: the script vif-\w+"):
        origin.clone(bridge=BRIDGE)
    origin.assert_as_before()
    wanted = CloneConfigurationRequest(clone=origin.request(bridge=BRIDGE))
    assert operation.configuration(world.host, wanted, Callbacks())  # `edit` may change the script


@pytest.mark.parametrize("script", ["vif-bridge", "vif-openvswitch", "/etc/xen/scripts/my-own"])
def test_a_script_that_may_look_at_the_bridge(script: str) -> None:
    refuse_unbridged(BRIDGE, config_of(kind="pv", nics=[nic(script=script)]))


def test_without_a_bridge_a_script_may_route() -> None:
    refuse_unbridged("", config_of(kind="pv", nics=[nic(script="vif-route")]))


def test_how_to_finish_a_replace_whose_configuration_was_edited(world: World) -> None:
    origin = Origin(world)
    origin.clone()
    wanted = CloneConfigurationRequest(clone=origin.request(replace=True))
    edited = operation.configuration(world.host, wanted, Callbacks()).json
    world.fail("restore", RuntimeError("no"))
    with pytest.raises(NeedsAttention) as caught:
        origin.clone(replace=True, edited=edited)
    assert caught.value.finish == (
        "call pyxlsnap.clone_snapshot again, with the same arguments and the same edit"
    )
