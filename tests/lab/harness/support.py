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
    #: the versions of what else counts there; "" in records from before it was kept
    host: str = ""

    def __str__(self) -> str:
        return "refused" if self.refused else f"works, {self.disks} disks"


CELLS = [Cell(*cell) for cell in itertools.product(STANDARD, (False, True), (False, True))]
# A live PV guest needs a Xen with shadow paging, which Debian's is not.
REFUSED = [cell for cell in CELLS if cell.guest == "pv" and cell.live]
MATRIX = [cell for cell in CELLS if cell not in REFUSED]

#: the records of a release of the lab, by cell; and of all releases, by their names
Records = dict[str, Record]
Releases = dict[str, Records]

_HOST = r"""
xl info | sed -n 's/^xen_version *: //p'
/usr/libexec/xen-qemu-system-i386 --version | sed -n '1s/.*version \([0-9.]*[0-9]\).*/QEMU \1/p'
uname -r | sed 's/^\([0-9.]*[0-9]\).*/Linux \1/'
python3 --version
"""


def record(
    dom0: Dom0, cell: Cell, disks: int, seconds_suspended: float = 0.0, refused: str = ""
) -> None:
    """Keep what was seen in a cell on the release that is wanted, for the next table."""
    xen, *host = dom0.run(_HOST).out.splitlines()
    seen = Record(
        *(xen, str(date.today()), disks, round(seconds_suspended, 2), refused), ", ".join(host)
    )
    directory = RECORDS / wanted().name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{cell}.json").write_text(json.dumps(asdict(seen)) + "\n")


def load(table: Path = TABLE) -> Releases:
    """The records by release and cell."""
    return {
        release: {cell: Record(**seen) for cell, seen in records.items()}
        for release, records in json.loads(table.read_text()).items()
    }


def render(releases: Releases) -> str:
    """The table, as Markdown: a row for those on which the same was seen; a line for each below."""
    ways = [cell.way for cell in CELLS if cell.guest == STANDARD[0]]
    rows = [["host", "guest", *(way.replace("-", ", ") for way in ways)]]
    rows.append(["---"] * len(rows[0]))
    for guest in STANDARD:
        hosts: dict[tuple[str, ...], list[str]] = {}
        for release, records in releases.items():
            cells = (str(records.get(str(c), "not seen yet")) for c in CELLS if c.guest == guest)
            hosts.setdefault(tuple(cells), []).append(RELEASES[release].debian)
        rows += [[f"Debian {', '.join(h)}", guest.upper(), *cells] for cells, h in hosts.items()]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    seen = [f"- Debian {RELEASES[r].debian}: {_when(records)}" for r, records in releases.items()]
    return "\n".join([*lines, "", *seen]) + "\n"


def _when(records: Records) -> str:
    """On what the cells of a release were seen, and when."""
    xens, dates, hosts = (
        {getattr(r, name) for r in records.values()} - {""} for name in ("xen", "seen", "host")
    )
    what = ", ".join([f"Xen {' and '.join(sorted(xens))}", *sorted(hosts)])
    return f"{what}; {' to '.join(sorted({min(dates), max(dates)}))}."


def gather(releases: Releases, directory: Path = RECORDS) -> Releases:
    """The records with those that runs have left since, in the lab's order."""
    known: Releases = {}
    for release in RELEASES:
        records = dict(releases.get(release, {}))
        for cell in map(str, CELLS):
            path = directory / release / f"{cell}.json"
            if path.exists():
                records[cell] = Record(**json.loads(path.read_text()))
        if records:
            known[release] = {
                str(cell): records[str(cell)] for cell in CELLS if str(cell) in records
            }
    return known


def lacking(releases: Releases) -> list[str]:
    """The releases of the lab on which some cells have not been seen."""
    cells = set(map(str, CELLS))
    return [name for name in RELEASES if not cells <= releases.get(name, {}).keys()]


def put(readme: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """The README, or another page, with this table in the place of the one that it has.

    :param begin: the line before the table.
    :param end: the line after it.
    """
    head, _, rest = readme.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}{table}{end}{tail}"


def main() -> int:
    releases = gather(load() if TABLE.exists() else {})
    text = {
        release: {cell: asdict(seen) for cell, seen in records.items()}
        for release, records in releases.items()
    }
    TABLE.write_text(json.dumps(text, indent=1) + "\n")
    README.write_text(put(README.read_text(), render(releases)))
    seen_here = releases.get(wanted().name, {})
    missing = [str(cell) for cell in CELLS if str(cell) not in seen_here]
    print(f"not seen yet on {wanted().name}: {', '.join(missing) or 'nothing'}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
