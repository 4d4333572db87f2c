"""Faults put into operations on the lab's guests, and what must hold after each of them."""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from . import storage
from .guests import Guest
from .lab import Lab
from .machine import Machine
from .mixed import attach, quicken_hotplug
from .reverts import Taken, check_back, take
from .snapshots import SCRIPTS, SNAPSHOTS, disk_snapshots, forget, pyxlsnap, run_script

#: the snapshot that is reverted to, and the one that is not to come about
BASE, CUT = "base", "cut"

# Nothing of it may be there when an operation is over, however it ended.
LEFT = rf"""
find /var/lib/pyxlsnap {SNAPSHOTS} /lab/disk {storage.BTRFS} /tmp/small 2>/dev/null |
  grep -E '\.journal|\.tmp|\.pre-revert|/\.[^/]*$|[./]{CUT}(\.|$)'
ps -eo stat=,pid=,args= | grep -v grep |
  grep -E '^Z|pyxlsnap\.worker|pyxlsnap snapshot|libxl-save-helper|qemu-img'
"""
LEAVES_S = 240.0


@dataclass(frozen=True)
class Case:
    """The input of scripts/fault.py."""

    command: list[str]
    domain: str
    log: str
    #: where (scripts/points), and what the process does that comes there
    point: str
    do: str = "hold"
    #: a command for the shell, while it is held; it goes on then
    meanwhile: str = ""
    #: "request", or a process by its command line: what is waited for then
    wait_for: str = ""
    #: the processes that are killed: "worker", "worker and supervisor", "caller", "all", "helper";
    #: or the name of a signal for the caller; "": none
    who: str = ""
    #: a command for the shell, soon after the blow
    later: str = ""


@dataclass(frozen=True)
class Outcome:
    """How the command ended; seconds from the kill to the guest's first new line."""

    rc: int
    out: str
    err: str
    seconds: float | None

    @property
    def error(self) -> dict[str, Any]:
        """The error that the command printed with ``--json``."""
        error: dict[str, Any] = json.loads(self.out)["error"]
        return error


def run_case(guest: Guest, case: Case) -> Outcome:
    """Run an operation into its fault."""
    guest.dom0.write(
        "/tmp/points/sitecustomize.py", (SCRIPTS / "points/sitecustomize.py").read_bytes()
    )
    done = run_script(guest.dom0, "fault.py", json.dumps(asdict(case)))
    assert done.rc == 0, done
    return Outcome(**json.loads(done.out))


class Stage:
    """A guest with disks of two kinds, and a snapshot of it to revert to."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._base: Taken | None = None
        quicken_hotplug(guest.dom0)
        attach(guest, {"xvdc": storage.raw(guest.name)})

    @property
    def base(self) -> Taken:
        if self._base is None:
            self._base = take(self.guest, "--name", BASE)
        return self._base

    def assert_clean(self) -> None:
        """Nothing is left of any operation, and somebody watches the guest: xl, or one of ours."""
        guest = self.guest
        watchers = (f"[p]yxlsnap.monitor {guest.uuid}", f"[x]l create .*/{guest.name}.cfg")
        count = "; ".join(f"pgrep -cf '{watcher}'" for watcher in watchers)
        end = time.monotonic() + LEAVES_S
        while True:
            left = guest.dom0.run(LEFT, check=False).out
            ours, xls = map(int, guest.dom0.run(count, check=False).out.split())
            # (Where both watch, ours leaves it to xl; see monitor.py.)
            if not left and ours <= 1 and ours + xls >= 1:
                return
            assert time.monotonic() < end, f"{ours} of ours and {xls} of xl watch; left: {left}"
            time.sleep(0.5)

    def assert_back(self, mark: int) -> None:
        """The guest has reverted to the snapshot since ``mark``, and the snapshot is whole."""
        self.assert_clean()
        check_back(self.guest, self.base, mark)
        assert disk_snapshots(self.guest) == {vdev: [BASE] for vdev in self.guest.disks}

    def forget(self, name: str) -> None:
        """Delete a snapshot; the base stays."""
        forget(self.guest, name)
        self.guest.dom0.run(["rm", "-f", f"{storage.raw(self.guest.name)}.{name}"])

    def recover(self) -> str:
        """``snapshot-recover``, which must end well; what it said."""
        done = pyxlsnap(self.guest.dom0, "snapshot-recover", self.guest.name)
        assert done.rc == 0, done
        return done.out


class Stages:
    """One stage for each kind of guest, while its machine lives."""

    def __init__(self) -> None:
        self._made: dict[tuple[Machine, str], Stage] = {}

    def get(self, lab: Lab, kind: str) -> Stage:
        guest = lab.guest(kind)
        key = (lab.machine, kind)
        if key not in self._made:
            self._made[key] = Stage(guest)
        return self._made[key]
