"""The whole way from the command line on a fake host, which lasts from one process to the next.

Command, worker, operations and sequences are the real ones: Python imports ``sitecustomize`` before
the worker, and that puts the small world of world.py in the place of libxl.
"""

import errno
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pyxlsnap.monitor.launch
import pyxlsnap.worker.supervisor
import pyxlsnap.xen.toolstack
from pyxlsnap.clone_file import find_clone
from pyxlsnap.model import DomainConfig
from tests.unit.support.guest import FakeGuest
from tests.unit.support.host import FakeHost
from tests.unit.support.patches import LastingPatch
from tests.unit.support.scenes import plain
from tests.unit.support.sites import import_from, write_site
from tests.unit.support.world import World, make_world

if TYPE_CHECKING:
    import pytest

ROOT = Path(pyxlsnap.__file__).parent.parent
STATE = "host.json"
#: how the worker is told what happens in it
SCENE = "PYXLSNAP_SCENE"
_FLAGS = ("exists", "suspended", "dying", "paused", "shutdown_reason", "memory_kb", "memory")
#: threads may be at work: the last one to save has the newest state
_saving = threading.Lock()
#: changes the world that a worker runs in
Scene = Callable[[World], None]


def state(world: World) -> dict[str, Any]:
    """Guests and disks as plain values."""
    guests = [{key: getattr(g, key) for key in ("domid", *_FLAGS)} for g in world.host.guests]
    for values, guest in zip(guests, world.host.guests, strict=True):
        values["config"] = guest.configuration.json
    return {
        "guests": guests,
        "version": list(world.host.version),
        "content": world.storage.content,
        "snapshots": [[*key, content] for key, content in world.storage.snapshots.items()],
        "unsettled": sorted(world.storage.unsettled),
    }


def save(world: World) -> None:
    """Let the next process see this world."""
    new = world.root.parent / f"{STATE}.{os.getpid()}"
    with _saving:
        new.write_text(json.dumps(state(world)))
        new.rename(world.root.parent / STATE)


def load(world: World) -> None:
    """See the world as the process before left it."""
    values = json.loads((world.root.parent / STATE).read_text())
    major, minor = values["version"]
    world.host.version = (major, minor)
    world.host.guests = []
    for saved in values["guests"]:
        guest = world.host.start(DomainConfig.parse(saved["config"]))
        for key in ("domid", *_FLAGS):
            setattr(guest, key, saved[key])
    world.storage.content = values["content"]
    world.storage.snapshots = {(v, n): content for v, n, content in values["snapshots"]}
    world.storage.unsettled = set(values["unsettled"])


def install(here: str) -> None:
    """In the worker: put the world in libxl's place, and let the scene happen."""
    world = make_world(Path(here) / "world", LastingPatch())
    module, _, name = os.environ[SCENE].rpartition(":")
    scene: Scene = getattr(import_module(module), name)

    @contextmanager
    def toolstack(**_: object) -> Iterator[FakeHost]:
        load(world)  # as of now: the supervisor comes when its worker has died
        scene(world)
        happens = world.on_event

        def on_event(verb: str) -> None:
            save(world)
            happens(verb)

        world.on_event = on_event
        try:
            yield world.host
        finally:
            save(world)

    pyxlsnap.xen.toolstack.Toolstack = toolstack  # type: ignore[misc, assignment]
    pyxlsnap.monitor.launch.start_monitor = lambda uuid: None
    link = pyxlsnap.worker.supervisor.SupervisorLink
    LastingPatch().setattr(link, "start_monitor", lambda self, uuid: None)
    LastingPatch().setattr(link, "prepare_monitor", _no_process)


def _no_process(_link: object, _uuid: str) -> NoReturn:
    raise OSError(errno.EAGAIN, "no more processes")


class Hosted:
    """Commands on one fake host, seen from the test."""

    def __init__(self, here: Path, monkeypatch: "pytest.MonkeyPatch") -> None:
        self.world = make_world(here / "world", monkeypatch)
        self._site = write_site(here, before="pyxlsnap.worker.server", site=__name__)

    def run(
        self, *words: str, scene: Scene = plain, before: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run ``pyxlsnap`` with these words; the world is then as it left it.

        :param before: a command for the shell that becomes ``pyxlsnap``.
        """
        save(self.world)
        environment = os.environ | self.variables(scene)
        command = [sys.executable, "-m", "pyxlsnap", *words]
        found = subprocess.run(
            ["sh", "-ec", f'{before}; exec "$@"', "sh", *command] if before else command,
            capture_output=True,
            text=True,
            cwd=self.world.root,
            env=environment,
        )
        load(self.world)
        return found

    def script(self, path: Path, scene: Scene = plain) -> Path:
        """Write a program that is ``pyxlsnap`` on this host, for programs that call the command.

        Call :func:`save` before these programs, and :func:`load` after them.
        """
        variables = " ".join(f"{k}={shlex.quote(v)}" for k, v in self.variables(scene).items())
        program = f'#!/bin/sh\n{variables} exec {sys.executable} -m pyxlsnap "$@"\n'
        path.write_text(program)
        path.chmod(0o755)
        return path

    def variables(self, scene: Scene = plain) -> dict[str, str]:
        """What a program needs in its environment to run our workers on this host."""
        return {
            "PYTHONPATH": f"{self._site}:{ROOT}",
            SCENE: f"{scene.__module__}:{scene.__name__}",
        }

    def serve(self, monkeypatch: "pytest.MonkeyPatch", scene: Scene = plain) -> None:
        """Let the workers that this process starts from now on run on the fake host.

        Use :func:`save` before a call of the API, and :func:`load` after it.
        """
        import_from(self._site, monkeypatch)
        monkeypatch.setenv(SCENE, f"{scene.__module__}:{scene.__name__}")

    @property
    def guest(self) -> FakeGuest:
        """The one that is there, beside its clones."""
        (found,) = [g for g in self.world.host.guests if g.exists and not find_clone(g.name)]
        return found
