"""A worker process that runs, with a stand-in for the operations that need Xen.

The worker is the real one; Python imports ``sitecustomize`` before it, and that puts other
functions in the place of ``create``, ``revert``, ``recover`` and so on.
"""

import os
import signal
import sys
from pathlib import Path
from textwrap import dedent, indent

import pytest

from pyxlsnap.results import Progress

UUID = "8a1f0c3e-0000-4000-8000-00000000c0de"

#: a ``create`` that writes memory until it is cancelled, and rolls back
ROLLED_BACK = """
on_progress(results.Progress("memory", 1, 2))
wait_for_cancel(cancel)
(HERE / "rolled back").touch()
raise errors.Interrupted("interrupted", step="suspend")
"""

_SITE = """
import os
import signal
import sys
if "pyxlsnap.worker" in sys.orig_argv:
    import contextlib, logging, os, pathlib, signal, socket, time
    import pyxlsnap.create.feasibility, pyxlsnap.create.operation, pyxlsnap.monitor.actions
    import pyxlsnap.recovery.operation, pyxlsnap.revert.operation, pyxlsnap.xen.toolstack
    from pyxlsnap import errors, model, results
    from pyxlsnap.linux import locks
    UUID = {uuid!r}
    HERE = pathlib.Path({here!r})
    SNAPSHOT = results.Snapshot(
        name="snap", domain="vm1", domid=7, uuid=UUID, live=False, memory_path="/m", cfgfile="/c",
        artefacts=(results.Artefact("cfgfile", "/c", "rm /c"),), left_out={{"hdc": "empty"}},
        warnings=("careful",), state=model.RunState.PAUSED,
        seconds_suspended=0.25,
    )
    def caller():
        # Our parent is the keeper.
        return int(pathlib.Path(f"/proc/{{os.getppid()}}/stat").read_text().split()[3])
    def lock():
        return locks.DomainLock(UUID, domain="vm1", directory=HERE / "run")
    def wait_for_cancel(cancel):
        end = time.monotonic() + 20
        while not cancel.is_set() and time.monotonic() < end:
            time.sleep(0.01)
        assert cancel.is_set()
    def wait_for(name, there=True):
        end = time.monotonic() + 60
        while (HERE / name).exists() != there:
            assert time.monotonic() < end, name
            time.sleep(0.01)
    def create(
        host, domain, wanted, *, live, max_downtime, on_progress, cancel, share_lock,
        before_suspend=None, start_monitor,
    ):
{create}
    def revert(host, domain, wanted, cfgfile, *, share_lock, **_):
{revert}
    PLAN = results.Plan(
        operation="create", name="snap", domain="vm1", uuid=UUID, memory_path="/m", cfgfile="/c",
        live=True, state=model.RunState.RUNNING, left_out={{}}, warnings=(),
        disks=(results.PlannedDisk("xvda", "/a", "qcow2", ""),), seconds_suspended=0.4,
    )
    def preview(*_, **__):
        return PLAN
    def recover(host, uuid, *, wait_s, share_lock, start_monitor):
        held = lock()
        (HERE / "recovered").write_text(str(uuid))
        rolled_back = True
{recover}
        held.release()
        return results.Recovered(("recovered",), rolled_back=rolled_back)
    def monitor(host, domain, *, on_event, cancel):
{monitor}
    def possibility(host, domain, *, check):
{possibility}
    @contextlib.contextmanager
    def toolstack(**_):
        yield
{close}
    pyxlsnap.xen.toolstack.Toolstack = toolstack
    pyxlsnap.create.operation.create = create
    pyxlsnap.revert.operation.revert = revert
    pyxlsnap.create.operation.preview = pyxlsnap.revert.operation.preview = preview
    pyxlsnap.recovery.operation.recover = recover
    pyxlsnap.monitor.actions.monitor = monitor
    pyxlsnap.create.feasibility.possibility = possibility
"""

#: a create that comes to the point before the suspend
ASKED = """
from pyxlsnap.hooks import Moment
before_suspend(Moment("vm1", 7, UUID, model.RunState.RUNNING))
"""


class StandIn:
    """Workers started from now on run these functions; their traces are in ``here``."""

    def __init__(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here = here
        self._site = here / "site"
        self._site.mkdir()
        monkeypatch.syspath_prepend(self._site)
        monkeypatch.setenv("PYTHONPATH", ":".join(p for p in sys.path if p))

    def set(
        self,
        create: str,
        recover: str = "pass",
        close: str = "pass",
        monitor: str = "pass",
        revert: str = "pass",
        possibility: str = "pass",
    ) -> None:
        """The bodies of the functions, and what closing libxl does."""
        text = _SITE.format(
            uuid=UUID,
            here=str(self.here),
            create=indent(dedent(create).strip(), " " * 8),
            recover=indent(dedent(recover).strip(), " " * 8),
            revert=indent(dedent(revert).strip(), " " * 8),
            monitor=indent(dedent(monitor).strip(), " " * 8),
            possibility=indent(dedent(possibility).strip(), " " * 8),
            close=indent(dedent(close).strip(), " " * 8),
        )
        (self._site / "sitecustomize.py").write_text(text)

    def said(self, name: str) -> str:
        """What a stand-in has written to a file."""
        return (self.here / name).read_text()


def kill_by_progress(progress: Progress) -> None:
    """The stand-in reports its pid as progress."""
    if progress.phase == "pid":
        os.kill(progress.bytes_done, signal.SIGKILL)
