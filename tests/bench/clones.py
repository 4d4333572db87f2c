"""In dom0: clones of one guest, one and eight; how long until they count.

Two of the eight are made at a time, and a clone that has counted is paused, whichever way it is
made. Else the emulated processor is so busy that libxl waits in vain for a device model.

usage: python3 -m tests.bench.clones TASK, which is a :class:`Task` as JSON. Prints a line of JSON
for each measurement: {"round": 1, "way": "pyxlsnap, clone", "figures": {"one_s": 3.2}}.

``SCRIPTS`` in in_lab.py names all that is copied to the dom0.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from uuid import uuid4

from tests.bench.measure import FILES
from tests.bench.running import LIMIT_S, settle_log, timed

#: many are so many, and are made in so many rounds at most: a round of these takes minutes
MANY, MANY_ROUNDS = 8, 2
AT_A_TIME = 2
_POLL_S = 0.02


class Way(StrEnum):
    """What is measured: from the call to the clone that counts."""

    COLD = "pyxlsnap, clone"
    REPEATED = "pyxlsnap, clone by a Cloner"
    POOL = "pyxlsnap, clone from a pool"
    XL = "qemu-img create -b, xl restore"


@dataclass(frozen=True)
class Task:
    """What to measure."""

    domain: str
    #: its config file, and the directory of the guests' logs
    config: str
    logs: str
    #: its qcow2 files, by vdev
    disks: dict[str, str]
    rounds: int

    def log(self, name: str) -> Path:
        return Path(self.logs, f"guest-{name}.log")


def snapshot(task: Task) -> tuple[str, str]:
    """Take the snapshot, with external disk snapshots; its cfgfile and its memory file."""
    wanted = FILES / "clones.cfg"
    disks = [f"{path}.base,qcow2,{vdev}" for vdev, path in task.disks.items()]
    wanted.write_text(f"name='base'\ndisks={disks!r}\n")
    words = ("pyxlsnap", "--json", "snapshot-create", task.domain, str(wanted))
    result = json.loads(timed(*words).out)["result"]
    return result["cfgfile"], result["memory_path"]


#: makes a clone count
Make = Callable[[], object]


def command(*words: str) -> Make:
    """A command that makes a clone count."""
    return partial(timed, *words)


def seconds(task: Task, names: Sequence[str], makes: Sequence[Make]) -> float:
    """Make these clones, two at a time; how long it takes until all of them have counted.

    They are paused then.
    """
    marks = [_size(task.log(name)) for name in names]
    begun = counted = time.monotonic()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        running = [pool.submit(make) for make in makes]
        for name, mark, made in zip(names, marks, running, strict=True):
            _await_tick(task.log(name), mark, made, begun + LIMIT_S)
            counted = time.monotonic()
            made.result()
            timed("xl", "pause", name)
    return counted - begun


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _await_tick(log: Path, mark: int, made: Future[object], end: float) -> None:
    while time.monotonic() < end:
        if made.done():
            made.result()  # if it failed, nothing counts
        if log.exists():
            with log.open("rb") as file:
                file.seek(mark)
                if re.search(rb"TICK n=.* bad=0 .*\n", file.read()):
                    return
        time.sleep(_POLL_S)
    sys.exit(f"{log}: the guest does not count")


def clone(cfgfile: str, name: str, *words: str) -> list[str]:
    """The command that makes a clone."""
    return ["pyxlsnap", "snapshot-clone", cfgfile, name, "--force", *words]


def delete(names: Sequence[str]) -> None:
    """Delete clones."""
    script = "import pyxlsnap, sys; [pyxlsnap.delete_clone(n) for n in sys.argv[1:]]"
    timed("python3", "-c", script, *names)


def cold(task: Task, cfgfile: str, names: Sequence[str]) -> float:
    """Make clones from nothing."""
    taken = seconds(task, names, [command(*clone(cfgfile, name)) for name in names])
    delete(names)
    return taken


def repeated(task: Task, cfgfile: str, names: Sequence[str]) -> float:
    """Make clones from nothing by a ``Cloner`` that has made one before, deleted since.

    The first clone of a ``Cloner`` does all that is done once.
    """
    import pyxlsnap  # (for the dom0: the other scripts do without)

    with pyxlsnap.Cloner(cfgfile, names[0], force=True) as cloner:
        cloner.clone()
        delete(names[:1])
        taken = seconds(task, names, [partial(cloner.clone, name) for name in names])
    delete(names)
    return taken


def pool(task: Task, cfgfile: str, names: Sequence[str]) -> float:
    """Hand out clones that were made before, and are paused: each has run no instruction."""
    for name in names:
        timed(*clone(cfgfile, name, "--paused"))
    taken = seconds(task, names, [command("xl", "unpause", name) for name in names])
    delete(names)
    return taken


def by_hand(task: Task, memory: str, names: Sequence[str]) -> float:
    """The same with xl: an overlay for each disk, a config file, and a restore."""
    makes = [command("sh", "-ec", _by_hand(task, memory, name)) for name in names]
    taken = seconds(task, names, makes)
    for name in names:
        timed("xl", "destroy", name)
        for path in task.disks.values():
            Path(f"{path}.{name}").unlink()
    return taken


def _by_hand(task: Task, memory: str, name: str) -> str:
    """The shell's text; the config file is written before, by a person."""
    text = Path(task.config).read_text()
    images = []
    for path in task.disks.values():
        text = text.replace(f"target={path}", f"target={path}.{name}")
        images.append(f"qemu-img create -q -f qcow2 -b {path}.base -F qcow2 {path}.{name}")
    own = FILES / f"{name}.cfg"
    own.write_text(f'{text}\nname = "{name}"\nuuid = "{uuid4()}"\n')
    return "; ".join([*images, f"exec xl restore {own} {memory}"])


def measurements(
    task: Task, cfgfile: str, memory: str, number: int
) -> Iterator[tuple[Way, Callable[[Sequence[str]], float]]]:
    """What a round measures, in its order: every way first in its turn."""
    ways: list[tuple[Way, Callable[[Sequence[str]], float]]] = [
        (Way.XL, lambda names: by_hand(task, memory, names)),
        (Way.COLD, lambda names: cold(task, cfgfile, names)),
        (Way.REPEATED, lambda names: repeated(task, cfgfile, names)),
        (Way.POOL, lambda names: pool(task, cfgfile, names)),
    ]
    first = number % len(ways)
    yield from (*ways[first:], *ways[:first])


def counts(number: int) -> list[tuple[str, int]]:
    """How many clones a round makes at a time, by the name of the figure."""
    return [("one_s", 1), *([("eight_s", MANY)] if number <= MANY_ROUNDS else [])]


def main() -> None:
    """Measure."""
    task = Task(**json.loads(sys.argv[1]))
    FILES.mkdir(parents=True, exist_ok=True)
    settle_log(task.domain, task.log(task.domain))
    cfgfile, memory = snapshot(task)
    for number in range(1, task.rounds + 1):
        for way, do in measurements(task, cfgfile, memory, number):
            for key, count in counts(number):
                os.sync()
                names = [f"r{number}-{way.name.lower()}-{n}" for n in range(count)]
                found = {key: do(names)}
                print(json.dumps({"round": number, "way": way, "figures": found}), flush=True)


if __name__ == "__main__":
    main()
