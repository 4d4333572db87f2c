"""In dom0: snapshots and reverts of one guest, by every way, in turn; what each takes.

usage: python3 -m tests.bench.measure TASK, which is a :class:`Task` as JSON. Prints a line of JSON
for each measurement when it is made: {"round": 1, "way": "pyxlsnap, live", "figures": {...}}. The
names of the figures have their units; :func:`main` lists them.

``SCRIPTS`` in in_lab.py names all that is copied to the dom0.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.bench.memory_file import memory_in
from tests.bench.running import LIMIT_S, Done, await_end, settle_log, timed

FILES = Path("/var/lib/xen/bench")
BARE = "/root/bare"
#: what `xl restore` starts from, and the name of the disk snapshots that belong to it
PEER_FILE, PEER = FILES / "peer.save", "peer"
#: how the name of the figure of a step begins
STEP = "step "
#: a domain that runs again is noticed within 10 ms; this is for one whose suspend was missed
NOTICE_S = 3.0


class Way(StrEnum):
    """What is measured."""

    XL_SAVE = "xl save -c"
    BARE_STOPPED = "libxl in C, stopped"
    BARE_LIVE = "libxl in C, live"
    STOPPED = "pyxlsnap, stopped"
    NO_DISKS = "pyxlsnap, stopped, without its disks"
    LIVE = "pyxlsnap, live"
    REVERT = "pyxlsnap, revert"
    REPEATED = "pyxlsnap, repeated revert"
    XL_REVERT = "xl, revert"


@dataclass(frozen=True)
class Task:
    """What to measure."""

    domain: str
    #: the guest's log
    log: str
    #: qcow2 files, or volumes as group/name
    disks: list[str]
    lvm: bool
    ways: list[str]
    rounds: int


def domid(task: Task) -> str:
    return timed("xl", "domid", task.domain).out.strip()


class Watch:
    """Looks from outside for how long a domain is suspended; it is the same for every way."""

    def __init__(self, of: str) -> None:
        words = [BARE, "watch", of]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        if self._process.stdout.readline() != "ready\n":
            sys.exit(f"{' '.join(words)} does not work")

    def seconds(self) -> dict[str, float]:
        """When the domain runs again: for how long it was suspended, if that was noticed."""
        try:
            said = self._process.communicate(timeout=NOTICE_S)[0]
        except subprocess.TimeoutExpired:
            self._process.kill()
            said = self._process.communicate()[0]
        return {"suspended_s": float(said)} if said.strip() else {}


# Taking a snapshot. Each function returns the figures, and removes what it has made but for what a
# later way of the same round needs.


def save(task: Task, *, look: bool) -> dict[str, float]:
    """``xl save -c``: the memory alone; the guest is suspended for nearly all of it.

    :param look: how much of the memory is zero, too, which takes seconds.
    """
    path, watch = FILES / "xl.save", Watch(domid(task))
    done = timed("xl", "save", "-c", task.domain, str(path))
    found = _taken(done, watch, path) | (memory_in(path) if look else {})
    path.unlink()
    return found


def bare(task: Task, how: str) -> dict[str, float]:
    """The C program: the memory alone."""
    path, of = FILES / "bare.save", domid(task)
    watch = Watch(of)
    done = timed(BARE, how, of, str(path))
    found = _taken(done, watch, path) | {"reported_suspended_s": float(done.out)}
    path.unlink()
    return found


def create(task: Task, *words: str) -> tuple[dict[str, float], dict[str, Any]]:
    """``pyxlsnap snapshot-create``: memory and disks; the figures, and the result."""
    watch = Watch(domid(task))
    command = ["pyxlsnap", "--json", "snapshot-create", task.domain, *words]
    done = timed(*command)
    result: dict[str, Any] = json.loads(done.out)["result"]
    own = {
        "reported_suspended_s": result["seconds_suspended"],
        "disk_snapshots_s": result["seconds"]["disk snapshots"],
        "after_s": after(result, "resume"),
        "disks_beside_s": result["seconds_beside"],
        **steps(result["seconds"], done.seconds),
    }
    return _taken(done, watch, Path(result["memory_path"])) | own, result


def _taken(done: Done, watch: Watch, path: Path) -> dict[str, float]:
    seconds = watch.seconds()
    os.sync()  # only then is it certain what the file takes on the disk
    found = path.stat()
    return seconds | {
        "whole_s": done.seconds,
        "cpu_s": done.cpu_seconds,
        "file_bytes": found.st_size,
        "disk_bytes": found.st_blocks * 512,
    }


def steps(seconds: dict[str, float], whole_s: float) -> dict[str, float]:
    """The seconds of each step that pyxlsnap reports, and of the command outside its steps."""
    found = {f"{STEP}{name}_s": float(taken) for name, taken in seconds.items()}
    return found | {"outside_steps_s": whole_s - sum(found.values())}


def after(result: dict[str, Any], step: str) -> float:
    """The seconds of the steps after this one."""
    steps = list(result["seconds"])
    late = steps[steps.index(step) + 1 :] if step in steps else []
    return float(sum(result["seconds"][name] for name in late))


def forget(result: dict[str, Any]) -> None:
    """Remove the files of a snapshot.

    Its disk snapshots stay, which are small and have a name of their own: to delete them would take
    longer than all that is measured.
    """
    for key in ("memory_path", "cfgfile"):
        Path(result[key]).unlink()


# Going back


def revert(task: Task, result: dict[str, Any]) -> dict[str, float]:
    """``pyxlsnap snapshot-revert``."""
    done = timed("pyxlsnap", "--json", "snapshot-revert", task.domain, result["cfgfile"])
    result = json.loads(done.out)["result"]
    return {
        "whole_s": done.seconds,
        "cpu_s": done.cpu_seconds,
        "off_s": result["seconds_off"],
        "after_s": after(result, "unpause"),
        **steps(result["seconds"], done.seconds),
    }


# The first revert of a Reverter does all that is done once.
REPEAT = """
import json, sys, time, pyxlsnap
with pyxlsnap.Reverter(*sys.argv[1:]) as reverter:
    reverter.revert()
    begun = time.monotonic()
    found = reverter.revert()
    whole = time.monotonic() - begun
print(json.dumps({"whole_s": whole, "off_s": found.seconds_off, "seconds": dict(found.seconds)}))
"""


def repeated(task: Task, result: dict[str, Any]) -> dict[str, float]:
    """The second revert of a ``pyxlsnap.Reverter``."""
    done = timed("python3", "-c", REPEAT, task.domain, result["cfgfile"])
    found: dict[str, Any] = json.loads(done.out)
    seconds = found.pop("seconds")
    return found | steps(seconds, found["whole_s"])


def xl_revert(task: Task) -> dict[str, float]:
    """The same by hand: destroy, put each disk back, restore."""
    qemu = qemu_of(task)
    begun = time.monotonic()
    done = [timed("xl", "destroy", task.domain)]
    await_end(qemu)
    for disk in task.disks:
        done += back_lvm(disk) if task.lvm else [timed("qemu-img", "snapshot", "-a", PEER, disk)]
    done.append(timed("xl", "restore", str(PEER_FILE)))
    seconds = time.monotonic() - begun
    return {"whole_s": seconds, "cpu_s": sum(d.cpu_seconds for d in done), "off_s": seconds}


def prepare_peer(task: Task) -> None:
    """Make what :func:`xl_revert` goes back to: memory and disks of one moment, the guest off."""
    qemu = qemu_of(task)
    timed("xl", "save", task.domain, str(PEER_FILE))
    await_end(qemu)
    for disk in task.disks:
        if task.lvm:
            name = f"{Path(disk).name}-{PEER}"
            timed("lvcreate", "-q", "-s", "-n", name, disk)
        else:
            timed("qemu-img", "snapshot", "-c", PEER, disk)
    timed("xl", "restore", str(PEER_FILE))
    settle(task)


def back_lvm(disk: str) -> list[Done]:
    """Put a thin volume back: a new one of its name, from the snapshot."""
    end = time.monotonic() + LIMIT_S
    done = [timed("lvremove", "-q", "-f", disk, may_fail=True)]
    while Path("/dev", disk).exists():  # blkback takes a moment to close it
        if time.monotonic() > end:
            sys.exit(f"{disk} is in use: {done[-1].out}")
        done.append(timed("lvremove", "-q", "-f", disk, may_fail=True))
    words = ["lvcreate", "-q", "-k", "n", "-s", "-n", Path(disk).name, f"{disk}-{PEER}"]
    return [*done, timed(*words)]


def qemu_of(task: Task) -> int | None:
    """The pid of the domain's QEMU; a PV or PVH guest without qcow2 disks has none."""
    node = f"/local/domain/{domid(task)}/image/device-model-pid"
    said = timed("xenstore-read", node, may_fail=True).out.strip()
    return int(said) if said.isdigit() else None


# Between two measurements


def settle(task: Task) -> None:
    """Wait until the guest runs and is well, and the disk has nothing left to write.

    A guest that says a line has read its disks: after a restore they are connected again.
    """
    os.sync()
    settle_log(task.domain, Path(task.log))


def measurements(task: Task, number: int) -> Iterator[tuple[Way, Callable[[], dict[str, float]]]]:
    """What a round measures, in its order."""
    kept: dict[str, Any] = {}

    def of_memory() -> dict[str, float]:
        """The same snapshot of the same guest, but for its disks; no revert goes back to it."""
        cfgfile = FILES / "no-disks.cfg"
        cfgfile.write_text(f"name = 'r{number}-no-disks'\ndisks = []\n")
        found, result = create(task, str(cfgfile))
        cfgfile.unlink()
        forget(result)
        return found

    def snapshot(name: str, *words: str) -> dict[str, float]:
        """The first of a round stays for the reverts."""
        found, result = create(task, "--name", f"r{number}-{name}", *words)
        if number == 1:
            found |= memory_in(Path(result["memory_path"]))
        if kept:
            forget(result)
        else:
            kept.update(result)
        return found

    yield Way.XL_SAVE, lambda: save(task, look=number == 1)
    yield Way.BARE_STOPPED, lambda: bare(task, "suspend")
    yield Way.BARE_LIVE, lambda: bare(task, "live")
    yield Way.STOPPED, lambda: snapshot("stopped")
    yield Way.NO_DISKS, of_memory
    yield Way.LIVE, lambda: snapshot("live", "--live")
    yield Way.REVERT, lambda: revert(task, kept)
    yield Way.REPEATED, lambda: repeated(task, kept)
    if kept:
        forget(kept)
    yield Way.XL_REVERT, lambda: xl_revert(task)


def main() -> None:
    """Measure; the figures of a way are some of these.

    ``whole_s`` and ``cpu_s``: the command; ``suspended_s``: the guest, seen from outside;
    ``reported_suspended_s``: the same as the program reports it; ``disk_snapshots_s``: a part of
    it, after the memory; ``disks_beside_s``: for the disks, beside the memory; ``off_s``: from
    before the destroy to the guest that runs again; ``step NAME_s``: a step, as the program reports
    it; ``outside_steps_s``: the rest of the command; ``after_s``: the steps after the one with
    which the guest runs again; ``file_bytes`` and ``disk_bytes``: the memory file, and what it
    takes on the disk; ``memory_bytes`` and ``not_zero_bytes``: the guest's memory in the file, in
    the first round.
    """
    task = Task(**json.loads(sys.argv[1]))
    FILES.mkdir(parents=True, exist_ok=True)
    settle(task)
    if Way.XL_REVERT in task.ways:
        prepare_peer(task)
    for number in range(1, task.rounds + 1):
        for way, do in measurements(task, number):
            if way not in task.ways:
                continue
            found = do()
            settle(task)
            print(json.dumps({"round": number, "way": way, "figures": found}), flush=True)
    if PEER_FILE.exists():
        PEER_FILE.unlink()


if __name__ == "__main__":
    main()
