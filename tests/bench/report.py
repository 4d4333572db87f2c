"""The tables that README and docs/how-fast.rst have of a run of the bench.

    python -m tests.bench.report [FILE]     # build/bench.json

A report, not a test: a slow day fails nothing.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from docs import timeline
from docs.timeline import Span, Times
from tests.bench.cells import BY_NAME, CLONED
from tests.bench.clones import MANY_ROUNDS
from tests.bench.clones import Way as CloneWay
from tests.bench.measure import STEP, Way
from tests.bench.targets import COUNTS, MIB, Bench, Figures, must_reach, writer_cpu
from tests.lab.harness.support import README, put

BEGIN: Final = "<!-- python -m tests.bench.report -->\n"
PICTURE: Final = "docs/how-fast.svg"
#: the page with all tables, and the comments around them
PAGE: Final = README.parent / "docs" / "how-fast.rst"
PAGE_BEGIN, PAGE_END = ".. python -m tests.bench.report\n", ".. end\n"
#: the ways to revert, and ours among them
BACK: Final = (Way.XL_REVERT, Way.REVERT, Way.REPEATED)
AGAIN: Final = (Way.REVERT, Way.REPEATED)
#: what the disks cost: a way, for how long the guest stands still, and the disks' share of it; and
#: for how long they are under way beside the memory
OF_DISKS: Final = (
    *(
        (way, "suspended_s", "disk_snapshots_s", "disks_beside_s")
        for way in (Way.STOPPED, Way.NO_DISKS, Way.LIVE)
    ),
    *((way, "off_s", f"{STEP}disks_s", "") for way in AGAIN),
)
#: the columns of the tables
SAVES: Final = (Way.XL_SAVE, Way.BARE_STOPPED, Way.STOPPED, Way.BARE_LIVE, Way.LIVE)
HEADS: Final = {
    Way.XL_SAVE: "`xl save -c`",
    Way.BARE_STOPPED: "C on libxl, stopped",
    Way.BARE_LIVE: "C on libxl, live",
    Way.STOPPED: "pyxlsnap, stopped",
    Way.NO_DISKS: "pyxlsnap, stopped, without its disks",
    Way.LIVE: "pyxlsnap, live",
    Way.REVERT: "pyxlsnap",
    Way.REPEATED: "pyxlsnap, repeated",
    Way.XL_REVERT: "`xl` by hand",
}

# The tables: a few lines for README (Markdown), everything for docs/how-fast.rst


def seconds(spread: Mapping[str, float] | None) -> str:
    """The median of some seconds, with minimum and maximum."""
    if spread is None:
        return ""
    digits = 1 if spread["median"] >= 1 else 2
    low, middle, high = (f"{spread[key]:.{digits}f}" for key in ("min", "median", "max"))
    return f"{middle} ({low} to {high})"


def markdown(rows: list[list[str]]) -> str:
    """Some rows, the first of them the heads, as Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table(rows: list[list[str]]) -> str:
    """Some rows, the first of them the heads, as a grid of reStructuredText."""
    cells = [[cell.replace("`", "``") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"+{'+'.join('-' * (width + 2) for width in widths)}+"]
    for number, row in enumerate(cells):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(f"| {' | '.join(padded)} |")
        lines.append(lines[0].replace("-", "=") if number == 0 else lines[0])
    return "".join(f"{line}\n" for line in lines)


def summary(bench: Bench) -> str:
    """What README says of a run: the picture, and the first guest."""
    base = Figures(bench.get("lab", {}).get("base", {}))
    saved = [seconds(base.spread(way, "suspended_s")) for way in SAVES]
    back = [seconds(base.spread(way, "off_s")) for way in (Way.XL_REVERT, Way.REVERT)]
    rows = [
        ["seconds, in the emulated lab", *(HEADS[way] for way in SAVES)],
        ["a snapshot suspended the guest", *saved],
        ["a revert stopped the guest", f"`xl` by hand: {back[0]}", "", back[1], "", ""],
    ]
    picture = f"![For how long a guest is suspended]({PICTURE})\n\n"
    return f"{picture}{markdown(rows)}\n{_when(bench)}"


def render(bench: Bench) -> str:
    """What docs/how-fast.rst says of a run: its tables, and how they were made."""
    lab: Mapping[str, Any] = bench.get("lab", {})
    cells = {name: (cell["what"], Figures(cell)) for name, cell in lab.items() if "ways" in cell}
    base = Figures(lab.get("base", {}))
    parts = [
        f"\n.. image:: {Path(PICTURE).name}\n   :alt: For how long a guest is suspended\n",
        "Seconds for which a snapshot suspended the guest, median (minimum to maximum). Each guest "
        "differs from the first in what its line says:\n",
        _table_of(cells, SAVES, "suspended_s"),
        "Seconds for which a revert stopped the guest:\n",
        _table_of(cells, BACK, "off_s"),
        "Seconds of the whole command:\n",
        _table_of(cells, (Way.XL_SAVE, Way.STOPPED, Way.LIVE), "whole_s"),
        _table_of(cells, (Way.XL_REVERT, Way.REVERT), "whole_s"),
        "The first guest, by every way:\n",
        _every_way(base),
        *_steps(base),
        *_of_disks(cells),
        _clone_table(bench),
        _backup_table(bench),
        _native(bench).replace("`", "``"),
        "The targets, each with the worst that was found (for sizes and times: of the medians):\n",
        table([["target", "found", "at most"], *([x.what, *x.shown()] for x in must_reach(bench))]),
        _when(bench),
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _when(bench: Bench) -> str:
    lab: Mapping[str, Any] = bench.get("lab", {})
    xens = ", ".join(sorted({cell["xen"] for cell in lab.values() if "xen" in cell}))
    labs = bench.get("labs", 1)
    alone = ", for clones one" if bench.get("clones") else ""
    machines = f"; {labs} machines of the lab at a time{alone}" if labs > 1 else ""
    return f"Xen {xens}; {bench['date']}; {bench['rounds']} rounds, in turn{machines}.\n"


def times_of(bench: Bench) -> Times | None:
    """The time line of the first guest; ``None`` if a figure is missing."""
    base = Figures(bench.get("lab", {}).get("base", {}))
    create = _span(base, Way.LIVE, "reported_suspended_s")
    revert = _span(base, Way.REVERT, "off_s")
    if not (create and revert):
        return None
    what = bench["lab"]["base"]["what"]
    return Times(
        guest=f"the first guest of the bench ({what}), in the emulated lab",
        source=f"medians of make bench: {_when(bench).strip()}",
        create=create,
        revert=revert,
    )


def _span(cell: Figures, way: Way, stopped: str) -> Span | None:
    whole, during, after = (cell.median(way, key) for key in ("whole_s", stopped, "after_s"))
    if whole is None or during is None or after is None:
        return None
    return Span(before=max(whole - during - after, 0.0), stopped=during, after=after)


def _table_of(cells: Mapping[str, tuple[str, Figures]], ways: tuple[Way, ...], key: str) -> str:
    rows = [["guest", *(HEADS[way] for way in ways)]]
    for what, figures in cells.values():
        found = [seconds(figures.spread(way, key)) for way in ways]
        if any(found):
            rows.append([what, *found])
    return table(rows) if len(rows) > 1 else ""


def _every_way(base: Figures) -> str:
    rows = [["", "whole command, s", "CPU, s", "file, MiB", "on disk, MiB"]]
    for way in Way:
        whole = base.spread(way, "whole_s")
        if whole is None:
            continue
        name = f"{HEADS[way]}, revert" if way in BACK else HEADS[way]
        sizes = [base.median(way, key) for key in ("file_bytes", "disk_bytes")]
        shown = ["" if size is None else f"{size / MIB:.1f}" for size in sizes]
        rows.append([name, seconds(whole), seconds(base.spread(way, "cpu_s")), *shown])
    return table(rows) if len(rows) > 1 else ""


def _steps(base: Figures) -> Iterator[str]:
    """The steps of a create and of a revert; nothing if they were not measured (older runs)."""
    tables = [_step_table(base, ways) for ways in ((Way.STOPPED, Way.LIVE), AGAIN)]
    if any(tables):
        yield (
            "Where the seconds of the first guest go, by step (medians, which need not add up to "
            "the median of the whole). Outside the steps are the plan and, but for a repeated "
            "revert, the starts of Python and of its worker:\n"
        )
        yield from tables


def _step_table(base: Figures, ways: tuple[Way, ...]) -> str:
    found = [base.steps(way) for way in ways]
    names = dict.fromkeys(name for steps in found for name in steps)
    rows = [[name, *(_median(steps.get(name)) for steps in found)] for name in names]
    for name, key in (("outside the steps", "outside_steps_s"), ("the whole", "whole_s")):
        rows.append([name, *(_median(base.median(way, key)) for way in ways)])
    return table([["step, s", *ways], *rows]) if names else ""


def _median(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _of_disks(cells: Mapping[str, tuple[str, Figures]]) -> Iterator[str]:
    """What several disks cost, beside the first guest, which has one."""
    rows = [
        [
            what,
            str(way),
            *(seconds(figures.spread(way, key)) for key in (stopped, during, beside)),
        ]
        for name, (what, figures) in cells.items()
        if name == "base" or (name in BY_NAME and BY_NAME[name].disks > 1)
        for way, stopped, during, beside in OF_DISKS
        if figures.spread(way, during)
    ]
    if rows:
        yield (
            'Seconds for the disks. "The disks alone" are a part of the seconds for which the '
            "guest was suspended (after its memory was written) or off (before its memory was "
            'restored). "Beside" is while its memory was written:\n'
        )
        yield table([["guest", "", "suspended, or off", "the disks alone", "beside"], *rows])


def _clone_table(bench: Bench) -> str:
    found = bench.get("clones")
    if not found:
        return ""
    few = f"rounds of eight: {min(MANY_ROUNDS, bench['rounds'])}"
    rows = [[f"seconds until clones count ({CLONED.what}; {few})", *COUNTS.values()]]
    rows += [[str(way), *(seconds(found.get(way, {}).get(k)) for k in COUNTS)] for way in CloneWay]
    return table(rows)


#: the head of what a file takes by itself
_FILE: Final = "the file itself"


def _backup_table(bench: Bench) -> str:
    """What a second memory file of the first guest costs a backup that has the first one."""
    pairs: Mapping[str, Any] = bench.get("backup", {})
    if not pairs:
        return ""
    ways = list(next(iter(pairs.values())))
    rows = [["what a second memory file adds to a backup, MiB", *pairs]]
    rows += [
        [_FILE if way == "file" else way, *(f"{found[way] / MIB:.1f}" for found in pairs.values())]
        for way in ways
    ]
    return table(rows)


def _native(bench: Bench) -> str:
    """What was measured without Xen, and so without emulation."""
    commands = bench.get("commands", {})
    cpu = [f"`{name}` {found['cpu_s']['median']:.2f}" for name, found in commands.items()]
    rounds = bench.get("command_rounds", bench["rounds"])
    what = f"Processor time of a command until it asks libxl, seconds, median of {rounds} rounds"
    lines = [f"{what}: {', '.join(cpu)}."]
    streams = bench.get("writer", {}).get("streams", {})
    speeds = [found["writer"]["gib_per_second"]["median"] for found in streams.values()]
    ratio = max((value for _, value in writer_cpu(bench) if value), default=0.0)
    if speeds:
        lines.append(
            f"The stream writer takes {min(speeds):.1f} to {max(speeds):.1f} GiB a second from a "
            f"pipe, and uses {ratio:.2f} of the processor time of `dd` at most."
        )
    return "".join(f"{line}\n" for line in lines[0 if cpu else 1 :])


def publish(bench: Bench) -> None:
    """Put a run into README and docs/how-fast.rst, and draw the pictures."""
    from tests.bench.picture import draw  # needs matplotlib, which only `make bench` installs

    draw(bench, README.parent / PICTURE)
    README.write_text(put(README.read_text(), summary(bench), BEGIN))
    PAGE.write_text(put(PAGE.read_text(), render(bench), PAGE_BEGIN, PAGE_END))
    if times := times_of(bench):
        times.publish()
    print(f"wrote README, docs/{PAGE.name}, {PICTURE} and docs/{timeline.PICTURE.name}")


def main() -> int:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else README.parent / "build" / "bench.json"
    bench: Bench = json.loads(path.read_text())
    for line in must_reach(bench):
        print(line)
    publish(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
