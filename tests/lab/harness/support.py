"""The README's support table, made of what the matrix (test_mixed.py) has seen.

Each cell leaves a record; ``python -m tests.lab.harness.support`` puts them into support.json, and
what that says into the README.
"""

import itertools
import json
import sys
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from .dom0 import Dom0
from .guests import STANDARD
from .image import RELEASES, wanted

PROJECT = Path(__file__).resolve().parents[3]
RECORDS = PROJECT / ".lab-support"
TABLE, README = Path(__file__).with_name("support.json"), PROJECT / "README.md"
BEGIN, END = "<!-- python -m tests.lab.harness.support -->\n", "<!-- end -->\n"


@dataclass(frozen=True, slots=True)
class Cell:
    """One round of the matrix."""

    guest: str
    live: bool
    external: bool

    @property
    def way(self) -> str:
        return f"{'live' if self.live else 'stopped'}-{'external' if self.external else 'internal'}"

    def __str__(self) -> str:
        return f"{self.guest}-{self.way}"


@dataclass(frozen=True, slots=True)
class Record:
    """What was seen in a cell."""

    xen: str
    seen: str
    disks: int
    #: under emulation, where nearly all of it is the starting of LVM's commands
    seconds_suspended: float = 0.0
    #: what was said instead of doing it
    refused: str = ""

    def __str__(self) -> str:
        return "refused" if self.refused else f"works, {self.disks} disks"


CELLS = [Cell(*cell) for cell in itertools.product(STANDARD, (False, True), (False, True))]
# A live PV guest needs a Xen with shadow paging, which Debian's is not.
REFUSED = [cell for cell in CELLS if cell.guest == "pv" and cell.live]
MATRIX = [cell for cell in CELLS if cell not in REFUSED]


def record(
    dom0: Dom0, cell: Cell, disks: int, seconds_suspended: float = 0.0, refused: str = ""
) -> None:
    """Keep what was seen in a cell, for the next table, which is of the first Xen of the lab."""
    if wanted().xen != next(iter(RELEASES)):
        return
    xen = dom0.run("xl info | sed -n 's/^xen_version *: //p'").out.strip()
    seen = Record(xen, str(date.today()), disks, round(seconds_suspended, 2), refused)
    RECORDS.mkdir(exist_ok=True)
    (RECORDS / f"{cell}.json").write_text(json.dumps(asdict(seen)) + "\n")


def load(table: Path = TABLE) -> dict[str, Record]:
    """The records by cell."""
    return {cell: Record(**seen) for cell, seen in json.loads(table.read_text()).items()}


def render(records: dict[str, Record]) -> str:
    """The table, as Markdown."""
    ways = [cell.way for cell in CELLS if cell.guest == STANDARD[0]]
    rows = [["guest", *(way.replace("-", ", ") for way in ways)], ["---"] * (1 + len(ways))]
    for guest in STANDARD:
        cells = [str(records.get(str(c), "not seen yet")) for c in CELLS if c.guest == guest]
        rows.append([guest.upper(), *cells])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    xens, dates = ({getattr(r, name) for r in records.values()} for name in ("xen", "seen"))
    when = " to ".join(sorted({min(dates), max(dates)}))
    return "\n".join([*lines, "", f"Xen {', '.join(sorted(xens))}; {when}."]) + "\n"


def put(readme: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """The README, or another page, with this table in the place of the one that it has.

    :param begin: the line before the table.
    :param end: the line after it.
    """
    head, _, rest = readme.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}{table}{end}{tail}"


def main() -> int:
    records = load() if TABLE.exists() else {}
    for cell in CELLS:
        path = RECORDS / f"{cell}.json"
        if path.exists():
            records[str(cell)] = Record(**json.loads(path.read_text()))
    known = {cell: asdict(records[cell]) for cell in map(str, CELLS) if cell in records}
    TABLE.write_text(json.dumps(known, indent=1) + "\n")
    README.write_text(put(README.read_text(), render(records)))
    missing = [str(cell) for cell in CELLS if str(cell) not in records]
    print(f"not seen yet: {', '.join(missing) or 'nothing'}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
