"""The memory target of a restore: as saved where libxl gives enough, otherwise what is needed."""

import json
from collections.abc import Mapping

import pytest

from pyxlsnap.guest.held_memory import set_target_back, with_room
from pyxlsnap.model import DomainConfig
from tests.unit.support.guest import config_of
from tests.unit.support.world import World

MIB_KB = 1024
SIZE_KB = 512 * MIB_KB


def config(**b_info: object) -> DomainConfig:
    return DomainConfig.parse(json.dumps({"c_info": {"name": "vm1"}, "b_info": b_info}))


def target_kb(config: DomainConfig) -> object:
    return config.section("b_info")["target_memkb"]


@pytest.mark.parametrize("held_kb", [0, SIZE_KB, SIZE_KB + MIB_KB])
def test_what_libxl_gives_each_domain_is_enough(held_kb: int) -> None:
    saved = config_of(target_kb=SIZE_KB)
    assert with_room(saved, held_kb) is saved


def test_only_the_target_is_raised() -> None:
    saved = config_of(target_kb=SIZE_KB)
    restored = with_room(saved, SIZE_KB + MIB_KB + 4)
    assert target_kb(restored) == SIZE_KB + MIB_KB + 4
    assert json.loads(restored.json) == restored.values
    values = json.loads(restored.json)
    values["b_info"]["target_memkb"] = SIZE_KB
    assert values == json.loads(saved.json)


def test_a_domain_can_hold_more_than_its_maximum() -> None:
    """`xl mem-max` lowers the maximum of a guest that does not give back its memory."""
    saved = config(target_memkb=SIZE_KB, max_memkb=SIZE_KB)
    restored = with_room(saved, 2 * SIZE_KB)
    assert restored.section("b_info") == {"target_memkb": 2 * SIZE_KB, "max_memkb": SIZE_KB}


@pytest.mark.parametrize(
    ("b_info", "default_kb"), [({"max_memkb": SIZE_KB}, SIZE_KB), ({"kernel": "x"}, 32 * MIB_KB)]
)
def test_without_a_target_libxls_default_counts(
    b_info: Mapping[str, object], default_kb: int
) -> None:
    saved = config(**b_info)
    assert with_room(saved, default_kb + MIB_KB) is saved
    assert target_kb(with_room(saved, default_kb + MIB_KB + 4)) == default_kb + MIB_KB + 4


@pytest.mark.parametrize("text", ["{}", '{"b_info": 7}', '{"b_info": {}}'])
def test_a_configuration_that_libxl_will_refuse_is_left_to_libxl(text: str) -> None:
    saved = DomainConfig.parse(text)
    assert with_room(saved, SIZE_KB) is saved


def test_the_target_is_set_back_to_the_saved_one(world: World) -> None:
    saved = config_of(target_kb=SIZE_KB)
    restored = with_room(saved, 2 * SIZE_KB)
    guest = world.host.start(restored)
    assert set_target_back(guest, saved, restored) == []
    assert guest.target_kb == SIZE_KB


def test_a_target_that_was_not_raised_is_not_touched(world: World) -> None:
    saved = config_of(target_kb=SIZE_KB)
    assert set_target_back(world.host.start(saved), saved, with_room(saved, SIZE_KB)) == []
    assert "lower_memory_target" not in world.events
