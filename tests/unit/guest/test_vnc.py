"""A fixed VNC display: another program has it, or the host lost the address."""

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap.guest.findings import Finding, Grade
from pyxlsnap.guest.vnc import examine_vnc
from tests.unit.support.guest import FakeGuest, config_of
from tests.unit.support.world import World


def examine(vnc: dict[str, object], kind: str = "hvm") -> list[Finding]:
    more: dict[str, object] = {"vfbs": [{"vnc": vnc}]}
    if kind == "hvm":
        more = {"b_info": {"type.hvm": {"vnc": vnc}}}
    return list(examine_vnc(config_of(kind=kind, **more), None))  # type: ignore[arg-type]


@pytest.fixture
def taken() -> Iterator[int]:
    """A display that a program has at 127.0.0.1."""
    for display in range(100, 4000):
        with socket.socket() as server:
            try:
                server.bind(("127.0.0.1", 5900 + display))
            except OSError:
                continue
            server.listen()
            yield display
            return


@pytest.mark.parametrize("kind", ["hvm", "pv", "pvh"])
def test_a_display_that_another_program_has_is_refused(taken: int, kind: str) -> None:
    for vnc in ({"display": taken}, {"listen": f"127.0.0.1:{taken}"}):
        (found,) = examine({"findunused": "False", **vnc}, kind)
        assert found.grade is Grade.REFUSED
        assert f"127.0.0.1:{taken} cannot be used (Address already in use)" in found.text


def test_it_is_the_guests_own_that_is_destroyed(world: World, taken: int) -> None:
    vnc = {"findunused": "False", "display": taken}
    config = config_of(b_info={"type.hvm": {"vnc": vnc}})
    guest = world.guest()
    assert len(list(examine_vnc(config, guest))) == 1
    guest.device_model = os.getpid()
    assert list(examine_vnc(config, guest)) == []


def test_an_address_that_the_host_has_no_more_is_refused() -> None:
    (found,) = examine({"findunused": "False", "listen": "192.0.2.7", "display": 1})
    assert "192.0.2.7:1 cannot be used (Cannot assign requested address)" in found.text


def test_so_is_one_where_qemu_looks_for_a_free_display() -> None:
    """QEMU goes on to the next display only while displays are taken."""
    looks: dict[str, object] = {"findunused": "True", "listen": "192.0.2.7"}
    none: dict[str, object] = {"listen": "192.0.2.7:5"}
    for vnc in (looks, none):
        (found,) = examine(vnc)
        assert found.grade is Grade.REFUSED


def test_a_display_that_the_guests_qemu_does_not_have_is_anothers(world: World, taken: int) -> None:
    """The guest was created with another display than the saved one, which another guest has."""
    config = config_of(b_info={"type.hvm": {"vnc": {"findunused": "False", "display": taken}}})
    guest = world.guest()
    guest.device_model = os.getppid()
    (found,) = examine_vnc(config, guest)
    assert "Address already in use" in found.text
    guest.device_model = 1 << 30  # nobody knows what it has
    assert list(examine_vnc(config, guest)) == []


def test_a_name_may_have_other_addresses(taken: int) -> None:
    assert examine({"findunused": "False", "listen": f"localhost:{taken}"}) == []


def test_libxl_tells_qemu_of_the_first_device_only(taken: int) -> None:
    vfbs = [{"vnc": {"findunused": "True"}}, {"vnc": {"findunused": "False", "display": taken}}]
    assert list(examine_vnc(config_of(kind="pv", vfbs=vfbs), None)) == []


@pytest.mark.parametrize("key", ["port", "tls_port"])
def test_a_spice_port_that_another_program_has_is_refused(
    world: World, taken: int, key: str
) -> None:
    port = 5900 + taken

    def spice(guest: FakeGuest | None = None, **more: object) -> list[Finding]:
        settings = {"enable": "True", key: port, "host": "127.0.0.1", **more}
        config = config_of(b_info={"type.hvm": {"spice": settings}})
        return list(examine_vnc(config, guest))

    no_port: dict[str, object] = {key: 0}
    (found,) = spice()
    assert found.grade is Grade.REFUSED
    assert f"SPICE port {port} at 127.0.0.1 cannot be used (Address already in use)" in found.text
    (found,) = spice(host="192.0.2.7")
    assert "Cannot assign requested address" in found.text
    assert spice(enable="False") == spice(host="localhost") == spice(None, **no_port) == []
    guest = world.guest()
    guest.device_model = os.getpid()
    assert spice(guest) == []


def test_a_display_that_is_looked_for_is_nothing_to_say(taken: int) -> None:
    assert examine({"display": taken}) == examine({"display": taken, "findunused": "True"}) == []
    assert examine({"display": taken, "findunused": "False", "enable": "False"}) == []


def test_a_free_display_stays_free(taken: int) -> None:
    free = {"findunused": "False", "listen": "127.0.0.2", "display": taken}
    assert examine(free) == examine(free) == []


@given(
    st.dictionaries(
        st.sampled_from(["listen", "display"]),
        st.none()
        | st.integers()
        | st.sampled_from(["", ":", "::1", "²", "a:b", "127.0.0.1:99999", "x" * 300]),
    )
)
def test_whatever_a_memory_file_says_is_read(vnc: dict[str, object]) -> None:
    assert all(f.text for f in examine({**vnc, "findunused": "False"}))
