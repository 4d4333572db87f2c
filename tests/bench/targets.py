"""What a run of the bench must reach, and what it has reached. A slow day fails nothing."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from tests.bench.clones import Way as CloneWay
from tests.bench.figures import Spread
from tests.bench.measure import STEP, Way

MIB: Final = 1 << 20
#: for how long a live snapshot suspended the guest of the base cell before there was the stream
#: writer, in parts of what `xl save -c` takes: 0.24 s (the median of 45 rounds of commit 991ed66,
#: in turn with this release, which took 0.28 s; 2026-11-30), on a machine where `xl save -c` takes
#: 4.0 s. Seconds would tell how fast the machine is.
BEFORE: Final = 0.060
#: how much longer a live snapshot may suspend a guest that has four times the memory ("flat"). The
#: spread of five rounds would allow nearly twice as long; the medians of guests that are much alike
#: (128 MiB, 256 MiB, two vcpus) were within 1.1x of each other in the run of 2026-11-29.
FLAT: Final = 1.2
#: the columns of the table of clones
COUNTS: Final = {"one_s": "one", "eight_s": "eight, two at a time"}
#: CPU seconds without Xen, by command
CPU: Final = {
    "snapshot-create": 0.20,
    "snapshot-revert": 0.20,
    "--help": 0.08,
    "import pyxlsnap": 0.03,
}

#: a run of the bench, as in its JSON file
Bench = Mapping[str, Any]
#: where something was found, a cell or a stream, and how much; ``None``: it was not measured there
Found = tuple[str, float | None]


@dataclass(frozen=True, slots=True)
class Line:
    """Something that must be reached."""

    what: str
    #: the worst that was found; ``None``: it was measured nowhere
    found: float | None
    where: str
    at_most: float
    unit: str

    @classmethod
    def of(cls, what: str, found: Iterable[Found], at_most: float, unit: str = "x") -> Self:
        """The line for the worst of what was found."""
        known = [(value, where) for where, value in found if value is not None]
        value, where = max(known, default=(None, ""))
        return cls(what, value, where, at_most, unit)

    def __str__(self) -> str:
        if self.found is None:
            return f"not measured  {self.what}"
        reached = "reached    " if self.found <= self.at_most else "NOT REACHED"
        found, at_most = self.shown()
        return f"{reached}   {self.what}: {found}, at most {at_most}"

    def shown(self) -> tuple[str, str]:
        """What was found and where, and what is allowed, with the unit."""
        most = f"{self.at_most:.3f}{self.unit}"
        found = "not measured" if self.found is None else f"{self.found:.3f}{self.unit}"
        return f"{found} ({self.where})" if self.where else found, most


class Figures:
    """The figures of one cell."""

    def __init__(self, cell: Mapping[str, Any]) -> None:
        self._ways: Mapping[str, Any] = cell.get("ways", {})

    def spread(self, way: Way, key: str) -> Mapping[str, float] | None:
        """Median, minimum and maximum of one figure; ``None`` if it was not measured."""
        found: Mapping[str, float] | None = self._ways.get(way, {}).get(key)
        return found

    def median(self, way: Way, key: str) -> float | None:
        found = self.spread(way, key)
        return found["median"] if found else None

    def steps(self, way: Way) -> dict[str, float]:
        """The median seconds of each step, in the order of the steps."""
        found: Mapping[str, Spread] = self._ways.get(way, {})
        return {
            key.removeprefix(STEP).removesuffix("_s"): value["median"]
            for key, value in found.items()
            if key.startswith(STEP)
        }


def must_reach(bench: Bench) -> list[Line]:
    """Every line of what must be reached, each with the worst that was found."""
    cells = {name: Figures(cell) for name, cell in bench.get("lab", {}).items()}
    base = {name: cells[name] for name in cells if name == "base"}
    slow = {name: cells[name] for name in cells if name == "slow-disk"}
    others = {name: cells[name] for name in cells if name != "slow-disk"}
    return [
        Line.of("file, live against stopped", _each(cells, _live_to_stopped), 1.001),
        Line.of("file, above 1.002 of xl save -c's", _each(cells, _above_xl), 1.0, " MiB"),
        Line.of("on disk, against the memory that is not zero", _each(cells, _on_disk), 1.02),
        Line.of(
            "stopped, suspended, against the slowest xl save -c", _each(others, _stopped_to_xl), 1.0
        ),
        Line.of("the same with a slow disk", _each(slow, _ratio_suspended), 0.8),
        Line.of("live, suspended, against xl save -c", _each(base, _live_to_xl), BEFORE),
        *_windows(cells),
        *_reverts(cells),
        *_whole(cells),
        *(Line.of(f"CPU of {name}", [_cpu(bench, name)], most, " s") for name, most in CPU.items()),
        Line.of("CPU of the stream writer, against dd", writer_cpu(bench), 1.3),
        Line.of("memory of the writer but 2 bytes a page", _writer_memory(bench), 64.0, " MiB"),
        *(_clones_must_reach(bench) if "clones" in bench else ()),
    ]


def _windows(cells: Mapping[str, Figures]) -> list[Line]:
    """For how long a guest is suspended, against the C program, and as it has more to save."""

    def suspended(name: str, way: Way) -> float | None:
        return cells.get(name, Figures({})).median(way, "suspended_s")

    def against_c(*names: str) -> Iterator[Found]:
        for name in names:
            yield name, _ratio(suspended(name, Way.LIVE), suspended("base", Way.BARE_LIVE))

    names = ("memory-128", "memory-512")
    small, large = (suspended(name, Way.LIVE) for name in names)
    disks, none = (suspended("lvm-4", way) for way in (Way.STOPPED, Way.NO_DISKS))
    live = "live, suspended, against C on libxl (without disks)"
    lvm = "stopped, suspended, four LVM disks, against the same guest without them"
    return [
        Line.of(live, against_c("base", *names), 1.5),
        Line.of(
            "live, suspended, 512 MiB against 128 MiB", [(names[-1], _ratio(large, small))], FLAT
        ),
        Line.of(f"{live}, four disks", against_c("disks-4"), 2.0),
        Line.of(lvm, [("lvm-4", _ratio(disks, none))], 1.15),
    ]


def _reverts(cells: Mapping[str, Figures]) -> Iterator[Line]:
    for way, at_most in ((Way.REVERT, 0.9), (Way.REPEATED, 0.8)):
        yield Line.of(f"{way}, off, against xl by hand", _against(cells, way, "off_s"), at_most)


def _whole(cells: Mapping[str, Figures]) -> Iterator[Line]:
    for way in (Way.STOPPED, Way.LIVE, Way.REVERT):
        what = f"{way}, whole command, against {_example(way)}"
        yield Line.of(what, _against(cells, way, "whole_s"), 1.5)


def _against(cells: Mapping[str, Figures], way: Way, key: str) -> Iterator[Found]:
    """In each cell in which both ways were measured."""
    for name, cell in cells.items():
        yield name, _ratio(cell.median(way, key), cell.median(_example(way), key))


def _example(way: Way) -> Way:
    """What xl does in the place of a way."""
    return Way.XL_REVERT if way in (Way.REVERT, Way.REPEATED) else Way.XL_SAVE


def _cpu(bench: Bench, command: str) -> Found:
    found = bench.get("commands", {}).get(command)
    return "", found["cpu_s"]["median"] if found else None


def _clones_must_reach(bench: Bench) -> list[Line]:
    """The seconds until a clone counts, one and eight."""
    ways = {CloneWay.COLD: 1.5, CloneWay.REPEATED: 1.5, CloneWay.POOL: 1.0}
    return [
        Line.of(f"{way.removeprefix('pyxlsnap, ')}, against xl by hand", _clones(bench, way), most)
        for way, most in ways.items()
    ]


def _clones(bench: Bench, way: CloneWay) -> Iterator[Found]:
    found: Mapping[str, Any] = bench["clones"]
    for key, count in COUNTS.items():
        ours, xl = (found.get(w, {}).get(key) for w in (way, CloneWay.XL))
        yield count, ours["median"] / xl["median"] if ours and xl else None


def _each(
    cells: Mapping[str, Figures], of: Callable[[Figures], Iterable[float | None]]
) -> Iterator[Found]:
    for name, cell in cells.items():
        for value in of(cell):
            yield name, value


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _live_to_stopped(cell: Figures) -> Iterator[float | None]:
    yield _ratio(cell.median(Way.LIVE, "file_bytes"), cell.median(Way.STOPPED, "file_bytes"))


def _above_xl(cell: Figures) -> Iterator[float]:
    xl = cell.median(Way.XL_SAVE, "file_bytes")
    for way in (Way.LIVE, Way.STOPPED):
        size = cell.median(way, "file_bytes")
        if xl is not None and size is not None:
            yield (size - xl * 1.002) / MIB


def _on_disk(cell: Figures) -> Iterator[float | None]:
    for way in (Way.LIVE, Way.STOPPED):
        yield _ratio(cell.median(way, "disk_bytes"), cell.median(way, "not_zero_bytes"))


def _ratio_suspended(cell: Figures) -> Iterator[float | None]:
    ours, xl = (cell.median(way, "suspended_s") for way in (Way.STOPPED, Way.XL_SAVE))
    yield _ratio(ours, xl)


def _stopped_to_xl(cell: Figures) -> Iterator[float | None]:
    """1.0 is the largest that is allowed: the slowest of xl, or 1.10 of its median."""
    ours, xl = cell.median(Way.STOPPED, "suspended_s"), cell.spread(Way.XL_SAVE, "suspended_s")
    yield _ratio(ours, max(xl["max"], 1.1 * xl["median"])) if xl else None


def _live_to_xl(cell: Figures) -> Iterator[float | None]:
    live, xl = (cell.median(way, "suspended_s") for way in (Way.LIVE, Way.XL_SAVE))
    yield _ratio(live, xl)


def writer_cpu(bench: Bench) -> Iterator[Found]:
    for name, found in bench.get("writer", {}).get("streams", {}).items():
        yield name, _ratio(*(found[who]["cpu_seconds"]["median"] for who in ("writer", "dd")))


def _writer_memory(bench: Bench) -> Iterator[Found]:
    """What the writer uses beyond 2 bytes for each page of the made-up guests, MiB."""
    writer = bench.get("writer", {})
    for name, found in writer.get("streams", {}).items():
        pages = writer["gib"] * (1 << 18)
        yield name, found["writer"]["memory_mib"]["median"] - 2 * pages / MIB
