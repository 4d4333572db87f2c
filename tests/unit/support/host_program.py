"""A host of ours: a program with children, signals and descriptors of its own, which calls us.

``python -m`` this module, with the kind of host and the directory of a
:class:`~tests.unit.support.standin.StandIn`; it writes what it has found to ``said`` there.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyxlsnap
from pyxlsnap.results import Progress
from tests.host_state import changed, children, host_state, inherited_since
from tests.unit.support.values import UUID

#: a descriptor that no kind of host closes, and that nobody else gets
_SAID = 200


def handles_sigchld() -> None:
    signal.signal(signal.SIGCHLD, lambda *_: None)


def ignores_sigchld() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


class _Action(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def has_sa_nocldwait() -> None:
    action = _Action(flags=2)
    assert ctypes.CDLL(None).sigaction(signal.SIGCHLD, ctypes.byref(action), None) == 0


def reaps_every_child_in_its_handler() -> None:
    def reap(*_: object) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    signal.signal(signal.SIGCHLD, reap)


def waits_for_any_child_in_a_thread() -> None:
    def wait() -> None:
        while True:
            try:
                os.wait()
            except ChildProcessError:
                time.sleep(0.001)

    threading.Thread(target=wait, daemon=True).start()


def blocks_and_ignores_signals() -> None:
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def has_no_standard_streams() -> None:
    for fd in (0, 1, 2):
        os.close(fd)


def has_many_descriptors() -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 4096), limit))
    for _ in range(1100):
        os.open("/", os.O_RDONLY)


#: those that take the exit statuses of others' children
TAKE_STATUS = (
    ignores_sigchld,
    has_sa_nocldwait,
    reaps_every_child_in_its_handler,
    waits_for_any_child_in_a_thread,
)
HOSTS = (
    handles_sigchld,
    *TAKE_STATUS,
    blocks_and_ignores_signals,
    has_no_standard_streams,
    has_many_descriptors,
)


class Host:
    """Calls us in different ways; ``found`` has what came of that."""

    def __init__(self, here: Path) -> None:
        self._here = here
        self.before = host_state()
        self.found: dict[str, object] = {}

    def call(self, name: str, function: Callable[..., object], *words: Any, **options: Any) -> None:
        """Note down what a function returns or raises."""
        try:
            self.found[name] = str(function(*words, **options))
        except Exception as e:
            self.found[name] = f"{type(e).__name__}: {e}"

    def look(self, _: Progress) -> None:
        """While an operation is under way."""
        self.found["meanwhile"] = changed(self.before, host_state())
        self.found["inherited"] = inherited_since(self.before)
        self.found["workers"] = len(children())
        (self._here / "looked").touch()  # the worker ends then


def kill(progress: Progress) -> None:
    """Kill the supervisor whose pid is reported as progress, and its worker."""
    if progress.phase == "supervisor":
        supervisor = progress.bytes_done
        tasks = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        for pid in (supervisor, *map(int, tasks)):
            os.kill(pid, signal.SIGKILL)


def main(kind: str, here: str) -> None:
    said = os.open(f"{here}/said", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, _SAID)
    os.close(said)
    (prepare,) = [prepare for prepare in HOSTS if prepare.__name__ == kind]
    prepare()

    host = Host(Path(here))
    host.call("real", pyxlsnap.plan_create, "vm1")
    host.call("monitor", pyxlsnap.start_monitor, UUID)
    sys.path.insert(0, f"{here}/site")  # the workers from here on have scenarios
    host.call("done", lambda: pyxlsnap.create_snapshot("vm1", on_progress=host.look).name)
    host.call("aborted", pyxlsnap.create_snapshot, "aborted")
    host.call("killed", pyxlsnap.create_snapshot, "killed", on_progress=kill)
    host.found["changed"] = changed(host.before, host_state())
    os.write(_SAID, json.dumps(host.found).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
