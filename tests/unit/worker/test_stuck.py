"""A worker that was killed while one of its threads waits for storage that does not answer."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pyxlsnap.linux.processes import is_killed
from pyxlsnap.worker import supervisor
from pyxlsnap.worker.channel import Channel
from tests.project import PROJECT
from tests.unit.support.dead_server import FILE, dead_server
from tests.unit.support.waiting import eventually

STAT = """
import os, sys, threading
threading.Thread(target=lambda: os.stat(sys.argv[1])).start()
print("waits", flush=True)
threading.Event().wait()
"""

WRITE = """
import os, socket, sys, threading
from pyxlsnap.memory.receiver import Receiver
from pyxlsnap.memory.writer import StreamWriter
from tests.unit.support.written import in_order, stream_of
qemu = socket.socket(socket.AF_UNIX)
qemu.connect(sys.argv[2])
fd = os.open(sys.argv[1], os.O_WRONLY)
with Receiver(StreamWriter(fd, lambda _: 0, "x"), lambda: True) as receiver:
    os.write(receiver.fileno(), stream_of(False, in_order(8)))
    print("waits", flush=True)
    threading.Event().wait()
"""


def test_its_supervisor_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_LOOK_S", 0.1)
    ours, theirs = socket.socketpair()
    with dead_server(tmp_path / "dead") as directory:
        where = f"/proc/{os.getpid()}/fd/{directory}"
        command = [sys.executable, "-c", STAT, where]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
            assert worker.stdout
            worker.stdout.readline()
            time.sleep(0.2)  # its question is on its way to the server
            assert not is_killed(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)
            assert eventually(lambda: is_killed(worker.pid))
            channel = Channel(ours)
            death = supervisor._wait_for(worker.pid, channel)
            assert worker.poll() is None, "it should be kept by its thread"
            _end_server(tmp_path / "dead")
    channel.close()
    theirs.close()
    assert death == supervisor.Death(supervisor._STUCK, ())


def _end_server(where: Path) -> None:
    """Let its filesystem answer all that waits, with an error."""
    subprocess.run(["umount", "--force", str(where)], check=False, capture_output=True)


def test_the_guests_qemu_can_be_asked_by_another(tmp_path: Path) -> None:
    """Else a recovery cannot resume the guest: QEMU talks to one program at a time."""
    with (
        socket.socket(socket.AF_UNIX) as listening,
        dead_server(tmp_path / "dead", written := threading.Event()) as directory,
    ):
        listening.bind(str(tmp_path / "qmp"))
        listening.listen()
        file = f"/proc/{os.getpid()}/fd/{directory}/{FILE}"
        command = [sys.executable, "-c", WRITE, file, str(tmp_path / "qmp")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT) as worker:
            assert worker.stdout
            qemu, _ = listening.accept()
            assert written.wait(60)
            os.kill(worker.pid, signal.SIGKILL)
            ended = select.select([qemu], [], [], 10)[0] and qemu.recv(1) == b""
            kept = eventually(lambda: is_killed(worker.pid)) and worker.poll() is None
            qemu.close()
            _end_server(tmp_path / "dead")
    assert kept, "its thread should keep it"
    assert ended, "the connection should have ended with the other threads"
