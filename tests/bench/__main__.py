"""``make bench``: how long snapshots and reverts take, ours and the others'.

    python -m tests.bench [--rounds 5] [--cells base,lvm] [--no-clones] [--no-native]
        [--labs 2] [--out FILE]

In the lab: each cell of :mod:`tests.bench.cells`, and clones. Without Xen: the stream writer and
the start of the commands. The result is one JSON file, which :mod:`tests.bench.report` reads. A run
with every cell also writes the README's tables and the picture.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any

from tests.bench import in_lab, native
from tests.bench.cells import BY_NAME, CELLS, Cell
from tests.bench.report import publish
from tests.bench.targets import must_reach
from tests.lab.harness import cache
from tests.project import PROJECT

ROUNDS = 5


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.bench", None, __doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each cell")
    parser.add_argument("--cells", type=chosen, default=CELLS, help=", ".join(BY_NAME))
    parser.add_argument("--no-clones", dest="clones", action="store_false", help="no clones")
    parser.add_argument("--no-native", dest="native", action="store_false", help="the lab only")
    parser.add_argument("--labs", type=int, default=2, help="machines of the lab, for the cells")
    parser.add_argument("--out", type=Path, default=PROJECT / "build" / "bench.json")
    return parser.parse_args(words)


def chosen(text: str) -> tuple[Cell, ...]:
    """Some cells by their names, with commas; "" is none."""
    names = [name for name in text.split(",") if name]
    if wrong := [name for name in names if name not in BY_NAME]:
        raise argparse.ArgumentTypeError(f"there is no cell {', '.join(wrong)}")
    return tuple(BY_NAME[name] for name in names)


def main() -> int:
    wanted = parsed()
    say = cache.progress()
    out: Path = wanted.out
    out.parent.mkdir(parents=True, exist_ok=True)
    recorded = out.parent / in_lab.RECORDED
    for old in (in_lab.RECORDED, *chain(*map(in_lab.pair, in_lab.PAIRS))):
        (out.parent / old).unlink(missing_ok=True)
    bench: dict[str, Any] = {"date": str(date.today()), "rounds": wanted.rounds, "lab": {}}
    bench["labs"] = wanted.labs
    for jobs, labs in runs(wanted):
        with closing(in_lab.Run(jobs, out.parent, say).on(labs)) as measured:
            for name, found in measured:
                put(bench, name, found)
                keep(bench, out)  # a run that is broken off has what it has measured
    if wanted.native:
        bench["commands"] = native.commands(wanted.rounds, say)
        bench["command_rounds"] = native.command_rounds(wanted.rounds)
        bench["backup"] = native.backups(out.parent, say)
        bench["writer"] = native.writer(wanted.rounds, recorded, say)
        keep(bench, out)
    say(f"the figures are in {out}")
    for line in must_reach(bench):
        print(line)
    return finish(bench, out, whole=wanted.cells == CELLS and wanted.clones and wanted.native)


def runs(wanted: argparse.Namespace) -> list[tuple[list[in_lab.Job], int]]:
    """The jobs of the lab, and on how many machines; those of a list end before the next begin."""
    found = [(in_lab.jobs(wanted.cells, wanted.rounds, wanted.out.parent), wanted.labs)]
    if wanted.clones:  # eight at a time need all processors
        found.append((in_lab.clone_jobs(wanted.rounds), 1))
    return found


def put(bench: dict[str, Any], name: str, found: dict[str, Any]) -> None:
    """Add what was measured of a cell or of clones; the cells stay in the order of the tables."""
    if name == in_lab.CLONES:
        bench[name] = found
        return
    lab = bench["lab"] | {name: found}
    bench["lab"] = {cell.name: lab[cell.name] for cell in CELLS if cell.name in lab}


def keep(bench: dict[str, Any], out: Path) -> None:
    out.write_text(json.dumps(bench, indent=1) + "\n")


def finish(bench: dict[str, Any], out: Path, *, whole: bool) -> int:
    """Publish a run that has everything; the exit status says whether all could be measured."""
    measured = {**bench["lab"], in_lab.CLONES: bench.get(in_lab.CLONES, {})}
    failed = [name for name, found in measured.items() if "failed" in found]
    if failed:
        print(f"could not be measured: {', '.join(failed)}; see {out}")
    elif whole:
        publish(bench)
    else:
        print(f"not of every cell: the README stays; python -m tests.bench.report {out} writes it")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
