"""The CPUs that a restored domain may run on: refused is what Xen would not accept."""

import pytest

from pyxlsnap.guest.cpus import examine_cpus
from pyxlsnap.guest.findings import Finding, Grade
from tests.unit.support.guest import config_of
from tests.unit.support.world import World


def examine(world: World, *, pool: object = "", **build: object) -> list[Finding]:
    made = {**config_of().section("c_info"), "pool_name": pool}
    return list(examine_cpus(world.host, config_of(c_info=made, b_info=build)))


@pytest.mark.parametrize(
    ("build", "possible"),
    [
        ({}, True),
        ({"vcpu_hard_affinity": [[0, 1], [3]]}, True),
        ({"vcpu_hard_affinity": [[3, 4, 5]]}, True),
        ({"vcpu_hard_affinity": [[0], [8, 9]]}, False),
        ({"vcpu_hard_affinity": [[8, 9, 10], [8, 9, 10]]}, False),
        ({"cpumap": [0, 8]}, True),
        ({"cpumap": [8, 9]}, False),
        ({"vcpu_hard_affinity": [[0]], "cpumap": [8]}, True),  # libxl takes the first one
        ({"vcpu_hard_affinity": [[]]}, True),
        ({"vcpu_hard_affinity": []}, True),
        ({"vcpu_hard_affinity": "8"}, True),  # is for libxl to refuse
        ({"vcpu_hard_affinity": [["8"], 8]}, True),
        ({"vcpu_soft_affinity": [[8]]}, True),
    ],
)
def test_the_hard_affinity_must_meet_the_pool(
    world: World, build: dict[str, object], possible: bool
) -> None:
    found = examine(world, **build)
    assert {f.grade for f in found} == (set() if possible else {Grade.REFUSED})
    assert all("cpupool-cpu-add" in f.text for f in found)


def test_the_pool_is_that_of_the_domain(world: World) -> None:
    world.host.cpupools["fast"] = frozenset({8})
    assert examine(world, pool="fast", vcpu_hard_affinity=[[8, 9]]) == []
    (found,) = examine(world, pool="fast", vcpu_hard_affinity=[[0, 1]])
    assert "CPU pool fast has none" in found.text


def test_a_pool_without_cpus_is_refused(world: World) -> None:
    world.host.cpupools["fast"] = frozenset()
    (found,) = examine(world, pool="fast")
    assert (found.grade, "has no CPU" in found.text) == (Grade.REFUSED, True)


def test_many_cpus_are_shortened(world: World) -> None:
    (found,) = examine(world, cpumap=list(range(8, 100)))
    assert "8, 9, 10, 11, 12, 13, 14, 15, …" in found.text


def test_what_libxl_does_not_tell_is_not_guessed(world: World) -> None:
    del world.host.cpupools[""]
    assert examine(world, cpumap=[99]) == []
