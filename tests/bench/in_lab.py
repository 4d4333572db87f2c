"""Measures cell after cell, on a booted machine of the lab or on several."""

import json
import subprocess
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.bench import clones as clones_in_dom0
from tests.bench.cells import BASE, CLONED, Cell
from tests.bench.figures import Round, spreads
from tests.bench.guest import BenchGuest
from tests.bench.measure import BARE, FILES, STEP, Task
from tests.lab.harness import cache
from tests.lab.harness.dom0 import Dom0
from tests.lab.harness.guests import FIRST_TICK, STANDARD
from tests.lab.harness.lab import Lab
from tests.lab.harness.machine import Machine
from tests.lab.harness.mixed import quicken_hotplug

HERE = Path(__file__).parent
#: where the scripts find each other, as modules
PACKAGE = "/root/bench"
SCRIPTS = ("measure.py", "memory_file.py", "running.py", "clones.py")
# Of the longest measurement, with what is before and after it.
LIMIT_S = 900.0
#: the name of what is measured of clones, beside those of the cells
CLONES = "clones"
#: what is recorded for the stream writer: the memory file of the base cell, by `xl save -c`
RECORDED = "base.save"
#: how two memory files for backups are made, by the beginning of their names
PAIRS = {
    "pyxlsnap": "printf 'memory_path = \"%s\"\n' {path} >{path}.cfg; "
    "pyxlsnap snapshot-create {domain} {path}.cfg --live --name backup{number}",
    "xl": "xl save -c {domain} {path}",
}
#: seconds that the guest runs between them, by its own count
TICKS_APART = 10
# How much the dom0 may keep in memory that is not yet on a slow disk; else it would take half of a
# memory file at once.
DIRTY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """Something to be measured on a machine of the lab."""

    name: str
    what: str
    measure: Callable[[Lab, cache.Say], dict[str, Any]]


def jobs(cells: Iterable[Cell], rounds: int, keep: Path) -> list[Job]:
    """What is to be measured of the cells.

    :param keep: the directory for :data:`RECORDED`.
    """

    def of(cell: Cell) -> Job:
        return Job(cell.name, cell.what, lambda lab, say: of_cell(lab, cell, rounds, keep, say))

    return [of(cell) for cell in cells]


def clone_jobs(rounds: int) -> list[Job]:
    """What is to be measured of clones."""
    return [Job(CLONES, CLONED.what, lambda lab, say: of_clones(lab, rounds, say))]


#: the name of a job, and its figures
Measured = tuple[str, dict[str, Any]]


class Run:
    """A run of the bench, on several machines at a time; one thread for each.

    All ways of a job are measured on one machine, in turn.
    """

    def __init__(self, todo: Sequence[Job], keep: Path, say: cache.Say) -> None:
        self._todo = todo
        self._waiting = list(reversed(todo))
        self._keep = keep
        self._say = say
        self._found: SimpleQueue[Measured | BaseException] = SimpleQueue()
        self._ended = False

    def on(self, labs: int) -> Generator[Measured]:
        """Do the jobs; yields the figures of each, or why there are none.

        However this ends, no machine is left, and no job is begun any more.
        """
        with ThreadPoolExecutor(max(labs, 1)) as pool, ExitStack() as ending:
            machines = [
                ending.enter_context(Lab(self._say)) for _ in range(min(labs, len(self._todo)))
            ]
            ending.callback(self._end)  # before the machines are closed
            for lab in machines:
                pool.submit(self._work, lab)
            for _ in self._todo:
                one = self._found.get()
                if isinstance(one, BaseException):
                    raise one
                yield one

    def _end(self) -> None:
        self._ended = True
        self._waiting.clear()

    def _work(self, lab: Lab) -> None:
        with lab:  # an ended run may have closed the machine before this one
            try:
                prepare(lab, self._say)
                while self._waiting:
                    with suppress(IndexError):  # the other thread was quicker
                        job = self._waiting.pop()
                        self._found.put((job.name, self._measured(job, lab)))
            except BaseException as error:
                self._found.put(error)

    def _measured(self, job: Job, lab: Lab) -> dict[str, Any]:
        """The other jobs can be measured if this one fails."""

        def say(text: str) -> None:
            self._say(f"{job.name}: {text}")

        begun = time.monotonic()
        say(f"{job.what}; starting its guest")
        try:
            found = job.measure(lab, say)
        except Exception as error:
            if self._ended:
                raise
            found = {"failed": f"{error}", "logs": f"{self._keep / f'failed-{job.name}'}"}
            lab.collect_logs(Path(found["logs"]))
            lab.reset()
            prepare(lab, self._say)
        said = f"failed: {found['failed']}" if "failed" in found else "measured"
        say(f"{said}, after {time.monotonic() - begun:.0f} s")
        return found


def prepare(lab: Lab, say: cache.Say) -> None:
    """Make room for other guests than the lab's own, and bring there what measures."""
    say("destroying the lab's own guests, compiling the C program")
    dom0 = lab.dom0
    for name in STANDARD:
        dom0.run(["xl", "destroy", name])
    quicken_hotplug(dom0)
    for name in SCRIPTS:
        dom0.write(f"{PACKAGE}/tests/bench/{name}", (HERE / name).read_bytes())
    dom0.write(f"{BARE}.c", (HERE / "bare.c").read_bytes())
    libraries = "$(pkg-config --cflags --libs xenlight xentoollog)"
    dom0.run(f"gcc -O2 -Wall -o {BARE} {BARE}.c {libraries}", timeout=300)


def of_clones(lab: Lab, rounds: int, say: cache.Say) -> dict[str, Any]:
    """Measure clones of one guest; the figures of each way."""
    guest = BenchGuest(lab.dom0, CLONED)
    guest.create()
    guest.wait_first(FIRST_TICK)
    logs = str(Path(guest.log).parent)
    task = clones_in_dom0.Task(guest.name, guest.config, logs, guest.disks, rounds)
    found = run(lab.dom0, task, clones_in_dom0.Way, say)
    guest.destroy()
    return {way: spreads(figures) for way, figures in found.items()}


def xen(dom0: Dom0) -> str:
    """The version of the Xen under it."""
    return dom0.run("xl info | sed -n 's/^xen_version *: //p'").out.strip()


def of_cell(lab: Lab, cell: Cell, rounds: int, keep: Path, say: cache.Say) -> dict[str, Any]:
    """Start the guest of a cell, measure, destroy it."""
    guest = BenchGuest(lab.dom0, cell)
    guest.create()
    guest.wait_first(FIRST_TICK)
    task = Task(guest.name, guest.log, guest.names, cell.lvm, list(cell.ways), rounds)
    with slow_disk(lab.machine, cell.disk_mib):
        found = run(lab.dom0, task, cell.ways, say)
    if cell is BASE:
        record_pairs(guest, keep, say)
        record(guest, keep, say)
    guest.destroy()
    ways = {way: spreads(figures) for way, figures in found.items()}
    return {"what": cell.what, "xen": xen(lab.dom0), "ways": ways}


def run(
    dom0: Dom0, task: Task | clones_in_dom0.Task, ways: Iterable[str], say: cache.Say
) -> dict[str, list[Round]]:
    """Run the script of a task; the figures of each round, by way.

    :raises CommandFailed: the script failed.
    """
    found: dict[str, list[Round]] = {way: [] for way in ways}
    words = ["python3", "-u", "-m", type(task).__module__, json.dumps(asdict(task))]
    with dom0.start(words, cwd=PACKAGE) as running:
        running.end_input()
        for line in running.lines(timeout=LIMIT_S):
            one = json.loads(line)
            figures: Round = one["figures"]
            found[one["way"]].append(figures)
            say(f"{one['round']} of {task.rounds}, {one['way']}: {shown(figures)}")
        running.wait(check=True)
    return found


def shown(figures: Round) -> str:
    """The seconds of a round but for those of the steps, for people."""
    return ", ".join(
        f"{key} {value:.2f}"
        for key, value in figures.items()
        if key.endswith("_s") and not key.startswith(STEP)
    )


@contextmanager
def slow_disk(machine: Machine, mib: int) -> Iterator[None]:
    """Let the disk of the dom0 take only so many MiB a second meanwhile; 0: no limit."""
    if not mib:
        yield
        return
    writeback = "/proc/sys/vm/dirty_background_bytes", "/proc/sys/vm/dirty_bytes"
    was = "/proc/sys/vm/dirty_background_ratio", "/proc/sys/vm/dirty_ratio"
    ratios = [machine.dom0.run(["cat", path]).out.strip() for path in was]
    background, limit = writeback
    machine.dom0.run(f"echo {DIRTY_BYTES // 2} >{background}; echo {DIRTY_BYTES} >{limit}")
    throttle(machine, mib << 20)
    try:
        yield
    finally:
        throttle(machine, 0)
        ways = zip(ratios, was, strict=True)  # they take the place of the limits in bytes
        machine.dom0.run("; ".join(f"echo {ratio} >{path}" for ratio, path in ways))


def throttle(machine: Machine, bytes_per_second: int) -> None:
    """Have QEMU limit what the machine writes to its disk; 0: no limit."""
    limits = dict.fromkeys(("bps", "bps_rd", "iops", "iops_rd", "iops_wr"), 0)
    machine.qmp("block_set_io_throttle", device="d0", bps_wr=bytes_per_second, **limits)


def record_pairs(guest: BenchGuest, keep: Path, say: cache.Say) -> None:
    """Keep two memory files of the guest, by each of :data:`PAIRS`: what a backup would get."""
    for name, command in PAIRS.items():
        say(f"keeping memory files for the backups: {name}")
        paths = [f"{FILES}/{name}-{number}.save" for number in (1, 2)]
        for number, path in enumerate(paths, 1):
            guest.wait_advance(TICKS_APART)
            text = command.format(domain=guest.name, path=path, number=number)
            guest.dom0.run(text, timeout=LIMIT_S)
        for path, file in zip(paths, pair(name), strict=True):
            fetch(guest.dom0, path, keep / file)


def pair(name: str) -> tuple[str, str]:
    """The names of the two files of one of :data:`PAIRS`."""
    return f"{name}-1.save", f"{name}-2.save"


def fetch(dom0: Dom0, path: str, to: Path) -> None:
    """Take a file out of the dom0, where it is removed."""
    dom0.run(f"zstd -q -1 --rm {path}", timeout=LIMIT_S)
    with dom0.start(["cat", f"{path}.zst"]) as running:
        running.end_input()
        running.wait(LIMIT_S, check=True)
    unpack = ["zstd", "-q", "-d", "-f", "-o", str(to)]
    subprocess.run(unpack, input=running.out_bytes, check=True)
    dom0.run(["rm", f"{path}.zst"])


def record(guest: BenchGuest, keep: Path, say: cache.Say) -> None:
    """Save the guest, which ends: its stream is one that the stream writer is measured with."""
    say("keeping a memory file for the stream writer")
    path = f"{FILES}/{RECORDED}"
    guest.dom0.run(["xl", "save", guest.name, path], timeout=LIMIT_S)
    fetch(guest.dom0, path, keep / RECORDED)
