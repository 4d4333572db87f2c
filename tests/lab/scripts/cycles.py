"""In dom0: snapshots and reverts of one guest, again and again, all from this one process.

usage: cycles.py DOMAIN LOG CYCLES [revert DISK | clone CFGFILE FROZEN CLONE LOG_OF_CLONE]. After
each cycle the snapshot is deleted with the commands that it came with, and a line of JSON says what
this process and the host have then.

With "revert" there is one snapshot, and each cycle is a revert to it through one Reverter; DISK is
the path of the domain's disk. With "clone" each cycle makes a clone of the snapshot anew through
one Cloner; FROZEN is the path of a disk snapshot. At the end the world is changed in between; the
last line says what the refusals said.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyxlsnap

TICK = re.compile(r"TICK n=(\d+) .*\n")
WAIT_S = 300.0
#: in a name of libxl's: another in each cycle
DOMID = re.compile(r"(?<=[-.])\d+(?=\.|$)")
# Where an operation must not leave anything again and again.
KEPT_CLEAN = ("/var/lib/xen", "/var/lib/pyxlsnap", "/run/pyxlsnap", "/tmp", "/lab/disk")


class Log:
    """What the guest says."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._path.touch()  # that of a clone comes some time after the clone

    def mark(self) -> int:
        return self._path.stat().st_size

    def wait(self, mark: int, wanted: Callable[[int], bool], what: str) -> int:
        """The first counter from ``mark`` on that is wanted."""
        end = time.monotonic() + WAIT_S
        while True:
            with self._path.open("rb") as file:
                file.seek(mark)
                text = file.read().decode(errors="replace")
            counters = [int(n) for n in TICK.findall(text)]
            if "BAD" in text or time.monotonic() > end:
                sys.exit(f"waiting for {what}: {counters}\n{text[-2000:]}")
            if found := [n for n in counters if wanted(n)]:
                return found[0]
            time.sleep(0.05)


def delete(snapshot: pyxlsnap.Snapshot) -> None:
    """As a user would; the guest runs."""
    for artefact in snapshot.artefacts:
        command = artefact.delete.removeprefix("domain running: ").split("; domain off: ")[0]
        subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)


def cycle(domain: str, log: Log, number: int) -> dict[str, float]:
    """A snapshot, and back to it; the seconds that they took."""
    begun = time.monotonic()
    snapshot = pyxlsnap.create_snapshot(domain, name=f"cycle{number}")
    created = time.monotonic()
    after = log.wait(log.mark(), lambda n: True, "what comes after the snapshot")
    log.wait(log.mark(), lambda n: n > after + 1, "it to go on")
    mark, reverting = log.mark(), time.monotonic()
    reverted = pyxlsnap.revert_snapshot(domain, snapshot.cfgfile)
    ended = time.monotonic()
    log.wait(mark, lambda n: n <= after, f"it to go back to {after}")
    if snapshot.warnings or reverted.warnings:
        sys.exit(f"cycle {number}: {snapshot.warnings} {reverted.warnings}")
    delete(snapshot)
    return {"create": created - begun, "revert": ended - reverting}


def again(do: Callable[[], Any], log: Log, after: int) -> float:
    """Do it once more when the guest has gone on, which brings it back; the seconds it took."""
    log.wait(log.mark(), lambda n: n > after + 1, "it to go on")
    mark, begun = log.mark(), time.monotonic()
    done = do()
    ended = time.monotonic()
    log.wait(mark, lambda n: n <= after, f"it to go back to {after}")
    if done.warnings:
        sys.exit(str(done.warnings))
    return ended - begun


def refusals(do: Callable[[], Any], *changes: tuple[list[str], list[str]]) -> list[str]:
    """What is said after each of some changes, which are taken back."""
    found = []
    for there, back_again in changes:
        subprocess.run(there, check=True)
        try:
            do()
            found.append("")
        except pyxlsnap.Refused as e:
            found.append(str(e))
        subprocess.run(back_again, check=True)
    return found


def moved(path: str) -> tuple[list[str], list[str]]:
    return ["mv", path, f"{path}.moved"], ["mv", f"{path}.moved", path]


def tell(number: int, took: dict[str, float]) -> None:
    """What a cycle took, and what there is after it, the warm process included."""
    (pid,) = map(int, said("pgrep", "-x", "xlsnap-warm").split())
    of_warm = {f"warm_{key}": value for key, value in of_process(pid).items()}
    print(json.dumps({"cycle": number, **took, **figures(), **of_warm}), flush=True)


def revert(domain: str, log: Log, cycles: int, disk: str) -> list[str]:
    """Reverts to one snapshot, through one warm process; what the refusals said."""
    snapshot = pyxlsnap.create_snapshot(domain, name="warm")
    after = log.wait(log.mark(), lambda n: True, "what comes after the snapshot")
    with pyxlsnap.Reverter(domain, snapshot.cfgfile) as reverter:
        for number in range(1, cycles + 1):
            tell(number, {"revert": again(reverter.revert, log, after)})
        renamed = ["xl", "rename", domain, "taken"], ["xl", "rename", "taken", domain]
        refused = refusals(reverter.revert, moved(disk), renamed)
        again(reverter.revert, log, after)
    delete(snapshot)
    return refused


def clone(log: Log, cycles: int, snapshot: tuple[str, str], made: tuple[str, str]) -> list[str]:
    """Clones of one snapshot, each in the place of the last; what the refusals said.

    :param snapshot: its cfgfile, and one of its disk snapshots.
    :param made: the name of the clone, and its log.
    """
    (cfgfile, frozen), (name, its_log) = snapshot, (made[0], Log(made[1]))
    after = log.wait(log.mark(), lambda n: True, "what comes after the snapshot")
    with pyxlsnap.Cloner(cfgfile, name) as cloner:
        cloner.clone()
        for number in range(1, cycles + 1):
            tell(number, {"clone": again(cloner.clone, its_log, after)})
        memory = str(Path(cfgfile).with_suffix(".save"))
        refused = refusals(cloner.clone, moved(frozen), moved(memory))
        again(cloner.clone, its_log, after)
    pyxlsnap.delete_clone(name)
    return refused


def of_process(pid: int) -> dict[str, int]:
    """What a process has."""
    status = Path(f"/proc/{pid}/status").read_text()
    return {
        "fds": len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208
        "threads": int(re.findall(r"Threads:\s+(\d+)", status)[0]),
        "rss_kib": int(re.findall(r"VmRSS:\s+(\d+)", status)[0]),
    }


def children() -> int:
    """How many processes, zombies too, have us as their parent."""
    parents = said("ps", "-eo", "ppid=").split()
    return parents.count(str(os.getpid())) - 1  # ps itself


def figures() -> dict[str, object]:
    """What this process and the host have."""
    entries = [entry for top in KEPT_CLEAN for entry in map(str, Path(top).rglob("*"))]
    names = [DOMID.sub("N", entry) for entry in entries]
    processes = said("ps", "-eo", "stat=,comm=").splitlines()
    programs = [line for line in processes if "kworker" not in line and " ps" not in line]
    return {
        **of_process(os.getpid()),
        "children": children(),
        "files": sorted(names),
        "processes": len(programs),
        "zombies": sum(line.startswith("Z") for line in programs),
        "xenstore": said("xenstore-ls", "-f").count("\n"),
    }


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    domain, log, cycles = sys.argv[1], Log(sys.argv[2]), int(sys.argv[3])
    match sys.argv[4:]:
        case ["revert", disk]:
            refused = revert(domain, log, cycles, disk)
        case ["clone", cfgfile, frozen, name, log_of_clone]:
            refused = clone(log, cycles, (cfgfile, frozen), (name, log_of_clone))
        case _:
            for number in range(1, cycles + 1):
                took = cycle(domain, log, number)
                print(json.dumps({"cycle": number, **took, **figures()}), flush=True)
            return
    print(json.dumps({"refused": refused, **figures()}), flush=True)


if __name__ == "__main__":
    main()
