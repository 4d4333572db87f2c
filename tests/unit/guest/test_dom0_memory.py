"""Memory for a domain: dom0 gives as much as is missing, once, and is waited for."""

import time

import pytest

from pyxlsnap import paths
from pyxlsnap.errors import Refused, XenError
from pyxlsnap.guest import dom0_memory
from pyxlsnap.guest.dom0_memory import Room, room_for
from pyxlsnap.linux.locks import FileLock
from tests.unit.support.guest import config_of
from tests.unit.support.host import FakeHost
from tests.unit.support.world import World

MIB_KB = 1024


@pytest.fixture
def host(world: World) -> FakeHost:
    """500 MiB are free, 600 are needed, dom0 has 2 GiB and may be shrunk."""
    found = world.host
    found.command_line = "console=vga"
    found.free_kb, found.needed_kb = 500 * MIB_KB, 600 * MIB_KB
    found.dom0_kb = found.dom0_target_kb = 2048 * MIB_KB
    return found


def test_dom0_is_left_alone_when_there_is_enough(host: FakeHost) -> None:
    host.needed_kb = host.free_kb
    Room(host, config_of()).make()
    assert host.shrunk_kb == []


def test_dom0_gives_the_missing_memory_and_no_more(host: FakeHost) -> None:
    Room(host, config_of()).make()
    assert host.shrunk_kb == [100 * MIB_KB]
    assert host.free_kb == 600 * MIB_KB
    assert host.dom0_kb == 1948 * MIB_KB


def test_dom0_is_given_ten_seconds_in_which_nothing_moves(host: FakeHost) -> None:
    host.dom0_stalls_s = 9
    Room(host, config_of()).make()
    assert host.shrunk_kb == [100 * MIB_KB]


def test_a_dom0_that_gives_nothing_is_asked_once(host: FakeHost) -> None:
    host.dom0_holds_kb = host.dom0_kb
    with pytest.raises(Refused, match="not enough memory for vm1: 600 MiB needed, 500 MiB free"):
        Room(host, config_of()).make()
    assert host.shrunk_kb == [100 * MIB_KB]


def test_a_dom0_that_gives_half_of_it_is_asked_once(host: FakeHost) -> None:
    host.dom0_holds_kb = host.dom0_kb - 50 * MIB_KB
    with pytest.raises(Refused, match="600 MiB needed, 550 MiB free"):
        Room(host, config_of()).make()
    assert host.shrunk_kb == [100 * MIB_KB]


def test_memory_that_comes_free_elsewhere_counts(host: FakeHost) -> None:
    host.dom0_holds_kb = host.dom0_kb

    def another_ends() -> None:
        host.free_kb += 100 * MIB_KB

    host.after_dom0 = another_ends
    Room(host, config_of()).make()


def test_a_target_above_dom0s_memory_is_lowered_first(host: FakeHost) -> None:
    """Its balloon was set in dom0 itself: xenstore has a target that it never reached."""
    host.dom0_target_kb = host.dom0_kb + 250 * MIB_KB
    Room(host, config_of()).make()
    assert host.shrunk_kb == [k * MIB_KB for k in (100, 100, 100, 50)]
    assert host.free_kb == 600 * MIB_KB


def test_memory_taken_by_another_domain_is_not_awaited_for_ever(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dom0_memory, "_PATIENCE_S", 0.1)

    def another_takes_it() -> None:
        host.free_kb = 500 * MIB_KB
        time.sleep(0.03)

    host.after_dom0 = another_takes_it
    with pytest.raises(Refused, match="600 MiB needed, 500 MiB free"):
        Room(host, config_of()).make()
    assert 3 <= len(host.shrunk_kb) <= 5


def test_dom0_is_not_shrunk_where_xl_would_not(host: FakeHost) -> None:
    host.command_line = "dom0_mem=2G"
    with pytest.raises(Refused, match="not enough memory"):
        Room(host, config_of()).make()
    assert host.shrunk_kb == []


def test_a_target_that_libxl_refuses_is_its_error(host: FakeHost) -> None:
    host.needed_kb = 4096 * MIB_KB
    with pytest.raises(XenError, match="below the minimum"):
        Room(host, config_of()).make()


class TestRoomFor:
    """A domain is started as xl does it: under the lock until it is there."""

    def free(self) -> bool:
        lock = FileLock(paths.XL_LOCK)
        taken = lock.take(within_s=0)
        lock.release()
        return taken

    def test_the_lock_is_held_meanwhile(self, host: FakeHost) -> None:
        with room_for(host, config_of()):
            assert not self.free()
            assert host.free_kb == host.needed_kb
        assert self.free()

    def test_an_error_releases_the_lock(self, host: FakeHost) -> None:
        with pytest.raises(XenError), room_for(host, config_of()):
            raise XenError("no")
        assert self.free()

    def test_too_little_is_for_libxl_to_say(self, host: FakeHost) -> None:
        host.dom0_holds_kb = host.dom0_kb
        with room_for(host, config_of()):
            assert not self.free()


class TestSpare:
    def test_is_all_but_the_share_libxl_leaves_dom0(self, host: FakeHost) -> None:
        assert dom0_memory.spare_dom0_kb(host) == (2048 - 128) * MIB_KB

    def test_can_be_taken(self, host: FakeHost) -> None:
        host.needed_kb = host.free_kb + dom0_memory.spare_dom0_kb(host)
        Room(host, config_of()).make()
        assert host.free_kb == host.needed_kb

    def test_is_none_where_xl_would_not_shrink_it(self, host: FakeHost) -> None:
        host.command_line = "dom0_mem=2G"
        assert dom0_memory.spare_dom0_kb(host) == 0

    def test_is_none_in_a_small_dom0(self, host: FakeHost) -> None:
        host.dom0_kb = 100 * MIB_KB
        assert dom0_memory.spare_dom0_kb(host) == 0

    def test_does_not_count_other_domains(self, world: World, host: FakeHost) -> None:
        world.guest()
        assert dom0_memory.spare_dom0_kb(host) == (2048 - 128) * MIB_KB
