"""A worker process that runs, with scenarios in the place of the operations that need Xen.

The worker is the real one; see :mod:`tests.unit.support.standin_site`.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pyxlsnap.results import (
    Cloned,
    Deleted,
    Feasibility,
    Plan,
    Progress,
    Recovered,
    Reverted,
    Snapshot,
)
from pyxlsnap.snapshot_info import SnapshotInfo
from tests.unit.support.scenarios import ordinary
from tests.unit.support.sites import import_from, write_site
from tests.unit.support.standin_site import Call


class StandIn:
    """Workers started from now on run these scenarios; their traces are in ``here``."""

    def __init__(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here = here
        site = "tests.unit.support.standin_site"
        self._site = write_site(here, before="pyxlsnap.worker.server", site=site)
        import_from(self._site, monkeypatch)
        self.set()

    def set(
        self,
        create: Callable[[Call], Snapshot] = ordinary.taken,
        *,
        recover: Callable[[Call], Recovered] = ordinary.recovered,
        close: Callable[[Call], None] = ordinary.nothing,
        monitor: Callable[[Call], None] = ordinary.nothing,
        revert: Callable[[Call], Reverted] = ordinary.reverted,
        clone: Callable[[Call], Cloned] = ordinary.cloned,
        plan: Callable[[Call], Plan] = ordinary.planned,
        read: Callable[[Call], SnapshotInfo] = ordinary.read,
        delete: Callable[[Call], Deleted] = ordinary.deleted,
        watch: Callable[[Call], None] = ordinary.nothing,
        feasibility: Callable[[Call], Feasibility] = ordinary.possible,
    ) -> None:
        """Set the scenario of each operation, and of the close of libxl: functions of modules."""
        scenarios: dict[str, Callable[[Call], object]] = {
            "create": create,
            "recover": recover,
            "close": close,
            "monitor": monitor,
            "revert": revert,
            "clone": clone,
            "plan": plan,
            "read": read,
            "delete": delete,
            "watch": watch,
            "feasibility": feasibility,
        }
        names = {what: f"{do.__module__}:{do.__qualname__}" for what, do in scenarios.items()}
        (self._site / "scenarios.json").write_text(json.dumps(names))

    def said(self, name: str = "said") -> str:
        """The text that a scenario wrote to a file."""
        return (self.here / name).read_text()


def kill_by_progress(progress: Progress) -> None:
    """Kill the process whose pid is reported as progress."""
    if progress.phase == "pid":
        os.kill(progress.bytes_done, signal.SIGKILL)
