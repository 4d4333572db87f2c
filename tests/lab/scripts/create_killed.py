"""In dom0: take a snapshot in this process, which dies at one of the points on the way.

usage: create_killed.py DOMAIN CFGFILE [POINT]. The points come from the code that runs: one before
each thing that a disk strategy does to a file by its name or asks of QEMU, one while each of its
programs runs, and one after each step of the snapshot; what is after one thing is before the next.
Without POINT nothing dies; prints the points as JSON, in their order: [name, whether the guest is
suspended there]. With POINT everything of ours is killed there.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyxlsnap import cfgfile
from pyxlsnap.create.operation import create
from pyxlsnap.create.sequence import Creation
from pyxlsnap.disks.qcow2 import qmp
from pyxlsnap.request import Callbacks, CreateRequest
from pyxlsnap.xen.toolstack import Toolstack

CHANGES = re.compile(r"os\.(link|symlink|rename|remove|rmdir|mkdir|truncate|ch|set)|subprocess")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SUSPENDED_AFTER = ("suspend", "disk snapshots")


class Points:
    """Counts the points, and dies at one."""

    def __init__(self, name: str, kill_at: str) -> None:
        self._snapshot, self._kill_at = name, kill_at
        self.on = self._suspended = self._step_ended = False
        self.seen: list[tuple[str, bool]] = []

    def reached(self, what: str) -> None:
        if not self.on:
            return
        # What differs from one run to the next: names never used before, and the snapshot's.
        name = re.sub(r"[0-9a-f]{12,}", "*", what).replace(self._snapshot, "NAME")
        times = sum(seen.split(" #")[0] == name for seen, _ in self.seen)
        name += f" #{times + 1}" if times else ""
        self.seen.append((name, self._suspended))
        if name == self._kill_at:
            os.killpg(0, signal.SIGKILL)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit hook: Python tells before it does something."""
        if not self.on:
            return
        changes = args[2] & WRITES if event == "open" else CHANGES.match(event)
        names = [Path(a).name for a in args if isinstance(a, str | Path)]
        if changes and names and args[0] != os.devnull and _of_disks():
            self.before(" ".join([event, *names]))

    def before(self, what: str) -> None:
        if not self._step_ended:  # else it is the same as the point after that step
            self.reached(f"before {what}")
        self._step_ended = False

    def step(self, name: str, do: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            self.on = True
            do()
            self._suspended = name in SUSPENDED_AFTER
            self.reached(f"after {name}")
            self.on, self._step_ended = False, True

        return run


def _of_disks() -> bool:
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if "/pyxlsnap/disks/" in frame.f_code.co_filename:
            return True
    return False


def watch(points: Points) -> None:
    """Put the points into the code."""
    execute, popen, steps = qmp.QmpConnection.execute, subprocess.Popen.__init__, Creation.steps

    def executing(self: qmp.QmpConnection, command: str, *args: Any, **kwargs: Any) -> Any:
        if not command.startswith("query-"):
            points.before(f"QMP {command}")
        return execute(self, command, *args, **kwargs)

    def starting(self: Any, args: list[str], *rest: Any, **kwargs: Any) -> None:
        popen(self, args, *rest, **kwargs)
        if _of_disks():
            points.reached(f"while {Path(args[0]).name} {args[1]} runs")

    qmp.QmpConnection.execute = executing  # type: ignore[method-assign]
    subprocess.Popen.__init__ = starting  # type: ignore[assignment, method-assign]
    Creation.steps = lambda self: [  # type: ignore[method-assign]
        (name, points.step(name, do)) for name, do in steps(self)
    ]
    sys.addaudithook(points.audit)


def main() -> None:
    domain, path, *kill_at = sys.argv[1:]
    wanted = cfgfile.read(Path(path))
    points = Points(wanted.name or "", *(kill_at or [""]))
    watch(points)
    with Toolstack(operation="create", domain=domain) as host:
        create(host, CreateRequest(domain=domain, config=wanted), Callbacks())
    print(json.dumps(points.seen))


if __name__ == "__main__":
    main()
