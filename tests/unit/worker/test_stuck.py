"""A worker that was killed while one of its threads waits for storage that does not answer."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyxlsnap.linux.processes import is_killed
from pyxlsnap.worker import supervisor
from pyxlsnap.worker.channel import Channel
from tests.unit.support.dead_server import dead_server
from tests.unit.support.waiting import eventually

STAT = """
import os, sys, threading
threading.Thread(target=lambda: os.stat(sys.argv[1])).start()
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
