"""Serial lines and channels of a restored domain that its QEMU could not open."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap.guest.findings import Finding, Grade
from pyxlsnap.guest.lines import examine_lines
from pyxlsnap.guest.protocols import Guest
from tests.unit.support.guest import config_of
from tests.unit.support.world import World


def examine(*serial: str, kind: str = "hvm", guest: Guest | None = None) -> list[Finding]:
    one = {"serial": serial[0]} if len(serial) == 1 else {"serial_list": list(serial)}
    return list(examine_lines(config_of(kind=kind, b_info={"type.hvm": one}), guest))


def channel(path: str, **more: object) -> list[Finding]:
    device = {"name": "agent", "connection.socket": {"path": path}, **more}
    return list(examine_lines(config_of(kind="pv", channels=[device]), None))


@pytest.fixture
def heard() -> Iterator[int]:
    """A port at which this program listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    "line",
    [
        "pty", "null", "mon:stdio", "vc:80Cx24C", "udp:127.0.0.1:9", "file:relative",
        "unix:relative", "file:{here}/log", "file:{here}/new", "unix:{here}/new,server,nowait",
        "unix:{here}/log", "unix:{here}/gone,reconnect=1", "unix:{here}/gone,,x/y,server",
        "/dev/null", "tcp:192.0.2.7:4555", "tcp:127.0.0.1:9,reconnect=5",
        "unix:{here}/gone/x,abstract=on", "unix:{here}/gone/x,server,abstract",
        "tcp:nowhere.invalid:4555,server", "tcp::99999,server", "tcp:192.0.2.7:70000",
    ],
)  # fmt: skip
def test_a_line_that_qemu_can_open_or_that_is_not_known(tmp_path: Path, line: str) -> None:
    (tmp_path / "log").touch()
    assert examine(line.format(here=tmp_path)) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("file:{here}/gone/x", "there is no directory {here}/gone: make it"),
        ("file:{here}/log/x", "there is no directory"),
        ("file:{here}", "{here} is a directory"),
        ("unix:{here}/gone/x,server,nowait", "there is no directory {here}/gone: make it"),
        ("unix:{here}/x,nowait", "there is no {here}/x: start the program"),
        ("/dev/gone", "there is no /dev/gone"),
        ("telnet:192.0.2.7:4555,server=on,wait=off", "Cannot assign requested address"),
    ],
)
def test_a_line_that_qemu_cannot_open_is_refused(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "log").touch()
    (found,) = examine("pty", line.format(here=tmp_path))
    assert found.grade is Grade.REFUSED
    assert says.format(here=tmp_path) in found.text


def test_a_log_on_a_read_only_filesystem_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    (tmp_path / "log").touch()
    for line in ("log", "new"):
        (found,) = examine(f"file:{tmp_path}/{line}")
        assert found.grade is Grade.REFUSED


def test_a_port_is_refused_if_another_program_has_it(world: World, heard: int) -> None:
    guest = world.guest()
    for line in (f"tcp:127.0.0.1:{heard},server,nowait", f"tcp:0.0.0.0:{heard},server"):
        (found,) = examine(line, guest=guest)
        assert "Address already in use" in found.text
        guest.device_model = os.getpid()  # it ends with the domain
        assert examine(line, guest=guest) == []
        guest.device_model = os.getppid()
        assert len(examine(line, guest=guest)) == 1
        guest.device_model = 1 << 30  # its sockets are not known
        assert examine(line, guest=guest) == []
        guest.device_model = None
    assert examine(f"tcp:127.0.0.1:{heard},server,to=99") == []


def test_a_port_of_this_host_at_which_nobody_listens_is_risky(heard: int) -> None:
    assert examine(f"tcp:127.0.0.1:{heard}") == examine(f"telnet:localhost:{heard}") == []
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        (found,) = examine(f"tcp:127.0.0.1:{unheard.getsockname()[1]}")
    assert (found.grade, "no program listens there" in found.text) == (Grade.RISKY, True)


def test_only_an_hvm_guest_has_serial_lines() -> None:
    assert examine("file:/gone/x", kind="pvh") == []


def test_a_channel_whose_directory_is_gone_is_refused(tmp_path: Path) -> None:
    assert channel(f"{tmp_path}/x") == channel("") == channel("relative/x") == []
    (found,) = channel(f"{tmp_path}/gone/x")
    assert found.grade is Grade.REFUSED
    assert f"channel agent cannot be opened: there is no directory {tmp_path}/gone" in found.text
    assert channel(f"{tmp_path}/gone/x", backend_domname="driver") == []


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
ODD = st.sampled_from(["unix:", "file:/", "tcp::", "/dev/", "file:/\udcff/x", "tcp:::1:5,server"])


@given(TEXTS | ODD)
def test_whatever_a_memory_file_says_is_read(line: str) -> None:
    assert all(f.text for f in examine(line))
    assert all(f.text for f in channel(line))
