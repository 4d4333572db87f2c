"""A fixed VNC display: another program has it, or the host lost the address."""

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap.guest.findings import Finding, Grade
from pyxlsnap.guest.vnc import examine_vnc
from tests.unit.support.guest import config_of
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
