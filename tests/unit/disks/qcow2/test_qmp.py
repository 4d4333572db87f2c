"""A monitor whose QEMU dies: a real one, with nothing but the monitor."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from pyxlsnap.disks.qcow2.qmp import QmpConnection
from pyxlsnap.errors import QmpError
from tests.unit.support.qmp_server import RecordingQemu, serving
from tests.unit.support.waiting import eventually, open_descriptors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "monitor"


@pytest.fixture
def qemu(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        process = subprocess.Popen(
            [
                "qemu-system-x86_64",
                *("-machine", "none", "-nodefaults", "-display", "none"),
                *("-chardev", f"socket,id=monitor,fd={server.fileno()},server=on,wait=off"),
                *("-mon", "chardev=monitor,mode=control"),
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=[server.fileno()],
        )
    yield process
    process.kill()
    process.wait()


def die(qemu: subprocess.Popen[bytes]) -> None:
    qemu.kill()
    qemu.wait()


def test_close_says_nothing_of_a_qemu_that_has_died(
    qemu: subprocess.Popen[bytes], path: Path
) -> None:
    before = open_descriptors()
    connection = QmpConnection(path)
    die(qemu)
    connection.close()
    connection.close()
    assert open_descriptors() == before


def test_a_command_to_a_qemu_that_has_died_fails_as_any_other(
    qemu: subprocess.Popen[bytes], path: Path
) -> None:
    connection = QmpConnection(path)
    die(qemu)
    for _ in range(2):
        with pytest.raises(QmpError, match=str(path)) as caught:
            connection.execute("query-version")
        assert (caught.value.command, caught.value.refused) == ("query-version", False)
    connection.close()


def test_a_qemu_that_dies_instead_of_answering(qemu: subprocess.Popen[bytes], path: Path) -> None:
    connection = QmpConnection(path)
    os.kill(qemu.pid, signal.SIGSTOP)
    death = threading.Timer(0.2, die, [qemu])
    death.start()
    with pytest.raises(QmpError, match=str(path)):
        connection.execute("query-version")
    death.join()
    connection.close()


class Monitor:
    """A client that knows no manners: it leaves while QEMU works for it."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._answers = self._socket.makefile("rb")
        self._answers.readline()
        self.say(execute="qmp_capabilities")
        self._answers.readline()

    def say(self, **message: object) -> None:
        self._socket.sendall(json.dumps(message).encode())

    def leave(self) -> None:
        self._answers.close()
        self._socket.close()


@pytest.mark.parametrize("works", [True, False])
def test_the_answer_to_a_client_that_has_left_is_not_ours(
    qemu: subprocess.Popen[bytes], path: Path, tmp_path: Path, works: bool
) -> None:
    """QEMU gives it to whoever is connected then."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    data = {"out": str(fifo)} | ({} if works else {"in": str(tmp_path / "not there")})
    backend = {"type": "file", "data": data}
    before = Monitor(path)
    before.say(execute="chardev-add", arguments={"id": "x", "backend": backend}, id="__qmp#00000")
    assert eventually(lambda: "partner" in Path(f"/proc/{qemu.pid}/wchan").read_text())
    before.leave()
    end = threading.Timer(0.5, lambda: fifo.open("rb").close())
    end.start()
    connection = QmpConnection(path)
    end.join()
    assert connection.version() > (1, 0)
    connection.close()


@pytest.mark.parametrize("first", ["event", "error"])
def test_something_may_come_before_the_greeting(path: Path, first: str) -> None:
    """An event, if the guest goes on in the moment in which QEMU accepts a client."""
    said = {
        "event": {"timestamp": {"seconds": 1, "microseconds": 1}, "event": "RESUME"},
        "error": {"error": {"class": "GenericError", "desc": "not for you"}, "id": "another's"},
    }
    qemu = RecordingQemu((7, 2), records=False)
    qemu.first = [said[first]]
    with serving(path, qemu):
        connection = QmpConnection(path)
        assert connection.version() == (7, 2)
        connection.close()
    assert not qemu.first


def test_a_client_that_has_left_may_have_negotiated_for_us(path: Path) -> None:
    """Its request was carried out after QEMU had greeted us."""
    qemu = RecordingQemu((7, 2), records=False)
    qemu.refuses = {"qmp_capabilities": "CommandNotFound"}
    with serving(path, qemu):
        connection = QmpConnection(path)
        assert connection.version() == (7, 2)
        connection.close()


def test_a_negotiation_that_fails(path: Path) -> None:
    qemu = RecordingQemu((7, 2), records=False)
    qemu.refuses = {"qmp_capabilities": "GenericError"}
    with serving(path, qemu), pytest.raises(QmpError, match=r"Negotiation failed: no$"):
        QmpConnection(path)


def test_the_error_of_the_operation_is_the_one_that_is_seen(
    qemu: subprocess.Popen[bytes], path: Path
) -> None:
    def operation() -> None:
        connection = QmpConnection(path)
        try:
            die(qemu)
            raise RuntimeError("the real one")
        finally:
            connection.close()

    with pytest.raises(RuntimeError, match="the real one"):
        operation()


@pytest.mark.parametrize("error", [EOFError(), ValueError("a bug"), RuntimeError("another")])
def test_close_never_raises(
    qemu: subprocess.Popen[bytes], path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    closed_in_the_end(QmpConnection(path), monkeypatch, error)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_close_lets_go_all_the_same(
    qemu: subprocess.Popen[bytes],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    with pytest.raises(error):
        closed_in_the_end(QmpConnection(path), monkeypatch, error())


def closed_in_the_end(
    connection: QmpConnection, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    disconnect = connection._client.disconnect

    def fails() -> NoReturn:
        connection._loop.run_until_complete(disconnect())
        raise error

    monkeypatch.setattr(connection._client, "disconnect", fails)
    try:
        connection.close()
    finally:
        assert connection._loop.is_closed()


def test_an_interrupted_connect_lets_go_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    loop = asyncio.new_event_loop()
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: loop)
    monkeypatch.setattr("pyxlsnap.disks.qcow2.qmp.QMPClient.connect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        QmpConnection(path)
    assert loop.is_closed()


def test_a_server_that_hangs_up_at_once(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        thread.start()
        with pytest.raises(QmpError, match=str(path)):
            QmpConnection(path)
        thread.join()
