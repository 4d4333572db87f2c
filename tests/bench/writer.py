"""Measures the stream writer beside dd: both read a stream from a pipe and write it to one disk.

    python -m tests.bench.writer [--gib 2] [--rounds 5] [--directory DIR] [--recorded FILE] [--json]

It needs no Xen. The streams are made up; ``--recorded`` adds the stream of a memory file, such as
one of ``xl save``. For each stream, dd and the writer take turns. The result has medians, each with
the minimum and the maximum. What the system writes to the disk afterwards is not in the times.
"""

import argparse
import fcntl
import json
import multiprocessing
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pyxlsnap.memory import read_header
from pyxlsnap.memory.writer import StreamWriter
from tests.bench.figures import Spreads, spreads
from tests.unit.support import streams
from tests.unit.support.written import header_of

_MIB: Final = 1 << 20
#: pages in a record of libxc
_BATCH: Final = 1024
#: bytes that dd reads at a time: what the pipe holds
_PIPE: Final = 1 << 20
#: pages of a pool from which the streams take theirs: more than a processor's caches hold
_POOL: Final = 64 * _BATCH
#: pages of zeros are in runs of this length
_ZEROS: Final = 64

Parts = Iterator[bytes | memoryview]


@dataclass(frozen=True)
class MadeUp:
    """The stream of a guest with ``pages`` pages."""

    pages: int
    pv: bool = False
    #: one run of pages of so many is of zeros; 0: none is
    zero_runs: int = 0
    #: how much of the memory comes again
    again: float = 0.0

    def __call__(self) -> Parts:
        pool = bytearray(os.urandom(_BATCH * streams.PAGE) * (_POOL // _BATCH))
        if self.zero_runs:
            size = _ZEROS * streams.PAGE
            for at in range(0, len(pool), size * self.zero_runs):
                pool[at : at + size] = bytes(size)
        mark = b"the pages"
        records = (streams.pv_records if self.pv else streams.hvm_records)([mark])
        before, _, after = streams.stream(1 if self.pv else 2, records).partition(mark)
        yield before
        yield from self._pages(memoryview(pool))
        yield after

    def _pages(self, pool: memoryview) -> Parts:
        batches = range(0, self.pages, _BATCH)
        for first in (*batches, *batches[: int(len(batches) * self.again)]):
            entries = array("Q", range(first, first + _BATCH)).tobytes()
            length = 8 + len(entries) + _BATCH * streams.PAGE
            yield array("I", (1, length, _BATCH, 0)).tobytes() + entries
            at = first % _POOL * streams.PAGE
            yield pool[at : at + _BATCH * streams.PAGE]


@dataclass(frozen=True)
class Recorded:
    """The stream of a memory file."""

    path: Path

    def __call__(self) -> Parts:
        with self.path.open("rb") as file:
            file.seek(read_header(file, str(self.path)).stream_offset)
            while part := file.read(_MIB):
                yield part


@dataclass(frozen=True)
class Run:
    """One stream, received and written once."""

    seconds: float
    cpu_seconds: float
    gib_per_second: float
    #: memory that was used, beyond what the process had before
    memory_mib: float
    #: size of the file, and the space that it takes on the disk
    file_mib: float
    disk_mib: float


def _send(parts: Callable[[], Parts], fd: int) -> None:
    for part in list(parts()) if isinstance(parts, MadeUp) else parts():
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(fd, rest) :]


def _measured(
    parts: Callable[[], Parts], receive: Callable[[int, Path], tuple[int, float]], path: Path
) -> Run:
    """Let ``receive`` take the stream from a pipe; it returns its size, and the processor time."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _PIPE)
    fork = multiprocessing.get_context("fork")
    sender = fork.Process(target=_send, args=(parts, write))
    sender.start()
    os.close(write)
    select.select([read], [], [])  # the stream is made up
    Path("/proc/self/clear_refs").write_text("5")  # begin a new peak
    memory, begun = _status("VmRSS"), time.monotonic()
    received, cpu = receive(read, path)
    seconds = time.monotonic() - begun
    os.close(read)
    sender.join()
    found = path.stat()
    path.unlink()
    return Run(
        seconds=seconds,
        cpu_seconds=cpu,
        gib_per_second=received / seconds / (_MIB << 10),
        memory_mib=(_status("VmHWM") - memory) / _MIB,
        file_mib=found.st_size / _MIB,
        disk_mib=found.st_blocks * 512 / _MIB,
    )


def _status(key: str) -> int:
    """A value of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def _cpu(whose: int) -> float:
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def _dd(pipe: int, path: Path) -> tuple[int, float]:
    before = _cpu(resource.RUSAGE_CHILDREN)
    command = ["dd", f"bs={_PIPE}", f"of={path}", "status=none"]
    subprocess.run(command, stdin=pipe, check=True)
    return path.stat().st_size, _cpu(resource.RUSAGE_CHILDREN) - before


def _writer(pipe: int, path: Path) -> tuple[int, float]:
    os.set_blocking(pipe, False)
    stop = os.eventfd(0)
    before = _cpu(resource.RUSAGE_THREAD)
    with path.open("w+b") as file:
        writer = StreamWriter(file.fileno(), header_of(file), str(path))
        writer.run(pipe, stop)
    os.close(stop)
    return writer.written.received, _cpu(resource.RUSAGE_THREAD) - before


RECEIVERS: Final = {"dd": _dd, "writer": _writer}


def measure(parts: Callable[[], Parts], rounds: int, directory: Path) -> dict[str, list[Run]]:
    """Let both receive the stream, in turn."""
    found: dict[str, list[Run]] = {name: [] for name in RECEIVERS}
    for n in range(rounds):
        for name, receive in RECEIVERS.items():
            found[name].append(_measured(parts, receive, directory / f"{name}-{n}"))
    return found


def summary(runs: list[Run]) -> dict[str, dict[str, float]]:
    """Median, minimum and maximum of each value."""
    return spreads(asdict(run) for run in runs)


def of_memory(
    gib: float,
    rounds: int,
    directory: Path | None = None,
    recorded: Sequence[Path] = (),
    on_stream: Callable[[str, Mapping[str, Spreads]], None] = lambda _name, _found: None,
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Measure with made-up guests of ``gib`` GiB, and with the streams of memory files.

    :param on_stream: called after each stream, with its name and what was found.
    :returns: by stream, then by who has received it.
    """
    inputs = made_up(gib) | {path.name: Recorded(path) for path in recorded}
    results: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        for name, parts in inputs.items():
            runs = measure(parts, rounds, Path(scratch))
            results[name] = {who: summary(found) for who, found in runs.items()}
            on_stream(name, results[name])
    return results


def made_up(gib: float) -> dict[str, Callable[[], Parts]]:
    """The streams, by their names."""
    pages = int(gib * (1 << 18)) // _BATCH * _BATCH
    return {
        "no page is zero": MadeUp(pages),
        "a third is zero": MadeUp(pages, zero_runs=3),
        "a third is zero, 30 % come again": MadeUp(pages, zero_runs=3, again=0.3),
        "PV, a third is zero": MadeUp(pages, pv=True, zero_runs=3),
    }


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser("tests.bench.writer", None, __doc__.partition("\n")[0])
    parser.add_argument("--gib", type=float, default=2, help="memory of the made-up guests")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="on the disk to write to")
    parser.add_argument("--recorded", type=Path, action="append", default=[])
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    results = of_memory(
        wanted.gib,
        wanted.rounds,
        wanted.directory,
        wanted.recorded,
        (lambda _name, _found: None) if wanted.json else _print,
    )
    if wanted.json:
        json.dump(results, sys.stdout, indent=1)


def _print(name: str, result: Mapping[str, Spreads]) -> None:
    print(f"{name}: CPU of the writer {_ratio(result, 'cpu_seconds'):.2f} of that of dd")
    for who, values in result.items():
        columns = "  ".join(
            f"{key} {v['median']:.2f} ({v['min']:.2f} to {v['max']:.2f})"
            for key, v in values.items()
        )
        print(f"  {who:6}  {columns}")


def _ratio(result: Mapping[str, Spreads], key: str) -> float:
    return result["writer"][key]["median"] / result["dd"][key]["median"]


if __name__ == "__main__":
    main()
