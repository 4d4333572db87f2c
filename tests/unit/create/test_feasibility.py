"""Whether a domain can be snapshotted: all the reasons, where a plan stops at the first."""

from dataclasses import replace

import pytest

from pyxlsnap import api
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.errors import DomainNotFound, QmpError, Refused
from pyxlsnap.journal import Journal
from pyxlsnap.model import DomainConfig, SnapshotConfig
from pyxlsnap.results import Feasibility
from tests.unit.support.entries import create_entry
from tests.unit.support.guest import config_of
from tests.unit.support.operations import feasibility, plan_create
from tests.unit.support.scenarios import ordinary
from tests.unit.support.standin import StandIn
from tests.unit.support.values import UUID
from tests.unit.support.world import World


def test_one_that_can_be_snapshotted_live(world: World) -> None:
    world.guest(world.image("xvda"))
    before = world.photo()
    found = feasibility(world.host, "vm1")
    assert found == Feasibility("vm1", UUID, (), ())
    assert (found.possible, found.live) == (True, True)
    assert world.photo() == before
    assert "close xvda" in world.events


def test_a_pv_guest_on_a_xen_without_shadow_paging(world: World) -> None:
    world.guest(world.image("xvda"), kind="pv")
    world.host.shadow_paging = False
    found = feasibility(world.host, "vm1")
    assert (found.possible, found.live) == (True, False)
    (why,) = found.live_reasons
    assert "--live is impossible" in why


def test_all_reasons_are_told(world: World) -> None:
    disks = [world.image(v) for v in ("xvda", "xvdb")]
    guest = world.guest(*disks)
    guest.configuration = DomainConfig.parse(
        config_of(*disks, vtpms=[{}], kernel=str(world.kernel)).json
    )
    world.guest(replace(disks[1], vdev="xvdz"), name="vm2", uuid=UUID.replace("8", "9"))
    world.fail("check_create", QmpError("QEMU is gone", command="query"))
    Journal(UUID).write(create_entry(name="other"))
    found = feasibility(world.host, "vm1")
    assert not found.possible
    assert not found.live
    said = "\n".join(found.reasons)
    for part in ("was killed", "has a vTPM", "domain vm2 uses"):
        assert part in said
    assert [r for r in found.reasons if "QEMU is gone" in r] == ["QEMU is gone"] * 2


def test_one_that_has_not_run_since_its_restore(world: World) -> None:
    guest = world.guest(world.image("xvda"))
    guest.paused, guest.has_run = True, False
    (why,) = feasibility(world.host, "vm1").reasons
    assert "vm1 has not run since it was started or restored" in why


@pytest.mark.parametrize("reason", ["poweroff", "suspend"])
def test_one_that_does_not_run_has_that_reason_only(world: World, reason: str) -> None:
    world.guest(world.image("xvda")).shutdown_reason = reason
    (why,) = feasibility(world.host, "vm1").reasons
    with pytest.raises(Refused) as caught:
        plan_create(world.host, world.host.find("vm1"), SnapshotConfig())
    assert why == str(caught.value)


def test_dom0_cannot(world: World) -> None:
    world.guest(world.image("xvda")).domid = 0
    (why,) = feasibility(world.host, "0").reasons
    assert "domain 0" in why


def test_one_that_is_not_there_is_an_error(world: World) -> None:
    with pytest.raises(DomainNotFound):
        feasibility(world.host, "vm9")


def test_a_cancel_ends_it(world: World) -> None:
    world.guest(world.image("xvda")).frontends = [{"vbd/51712": 3}]

    cancel = Cancel()
    cancel.set()
    with pytest.raises(Cancelled):
        feasibility(world.host, "vm1", cancel=cancel)
    assert "close xvda" in world.events


def test_comes_from_the_worker_as_it_is(worker: StandIn) -> None:
    worker.set(feasibility=ordinary.impossible)
    assert api.can_snapshot("vm1") == Feasibility("vm1", UUID, ("a", "b"), ("not live",))


def test_an_error_of_the_system_is_a_reason(world: World) -> None:
    world.guest(world.image("xvda"))
    world.fail("check_create", PermissionError(13, "Permission denied", "/srv/a"))
    (why,) = feasibility(world.host, "vm1").reasons
    assert "/srv/a" in why


def test_a_snapshot_of_any_name_is_no_reason(world: World) -> None:
    world.guest(world.image("xvda"))
    world.storage.snapshots["xvda", "possible"] = ""
    assert feasibility(world.host, "vm1").possible
