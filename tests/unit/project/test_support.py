"""The README's support table says what the matrix in the lab has seen, and nothing else."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from tests.lab.harness.image import RELEASES
from tests.lab.harness.support import (
    BEGIN,
    CELLS,
    END,
    MATRIX,
    README,
    REFUSED,
    gather,
    lacking,
    load,
    put,
    render,
)

FIRST = next(iter(RELEASES))
CELL = str(CELLS[0])


def test_every_cell_of_the_matrix_has_been_seen_on_the_first_release() -> None:
    assert list(load()[FIRST]) == [str(cell) for cell in CELLS]


def test_there_is_no_release_that_the_lab_does_not_have() -> None:
    assert set(load()) <= set(RELEASES)


def test_what_was_refused_is_what_cannot_be() -> None:
    for release, records in load().items():
        seen = [cell for cell in CELLS if str(cell) in records]
        assert [cell for cell in seen if records[str(cell)].refused] == [
            cell
            for cell in seen
            if cell in REFUSED or (cell.guest == "hvm" and not RELEASES[release].loads_hvm)
        ]
        assert all(records[str(c)].seconds_suspended > 0 for c in seen if c in MATRIX)


def test_the_readme_has_the_table_that_follows() -> None:
    assert README.read_text() == put(README.read_text(), render(load()))


def test_a_cell_without_a_result_shows() -> None:
    records = load()[FIRST]
    without = {name: record for name, record in records.items() if name != CELL}
    assert render({FIRST: records}).count("not seen yet") == 0
    assert render({FIRST: without}).count("not seen yet") == 1


def test_another_result_makes_another_table() -> None:
    records = load()[FIRST]
    worse = render({FIRST: records | {CELL: replace(records[CELL], refused="no")}})
    assert worse.count("refused") == render({FIRST: records}).count("refused") + 1


def test_each_release_has_a_date_of_its_own() -> None:
    record = load()[FIRST][CELL]
    newer = replace(record, xen="4.20.4", seen="2026-11-29", host="QEMU 11.1.3, Linux 7.2.13")
    table = render({FIRST: {CELL: record}, "unstable": {CELL: newer}})
    assert "- Debian 12: Xen 4.17.7; 2026-11-23.\n" in table
    assert "- Debian unstable: Xen 4.20.4, QEMU 11.1.3, Linux 7.2.13; 2026-11-29.\n" in table
    assert [line for line in table.splitlines() if "unstable | PV |" in line] == [
        "| Debian 12, unstable | PV | works, 5 disks | not seen yet | not seen yet | not seen yet |"
    ]


def test_releases_have_one_row_where_the_same_was_seen_on_them() -> None:
    records = load()[FIRST]
    other = records | {CELL: replace(records[CELL], refused="no")}
    table = render({FIRST: records, "4.20": other, "unstable": records}).splitlines()
    assert [line.split(" | ")[:3] for line in table if line.startswith("| Debian")] == [
        ["| Debian 12, unstable", "PV", "works, 5 disks"],
        ["| Debian 13", "PV", "refused"],
        ["| Debian 12, 13, unstable", "PVH", "works, 5 disks"],
        ["| Debian 12, 13, unstable", "HVM", "works, 5 disks"],
    ]


def test_what_a_run_has_left_replaces_what_was_known_of_its_release(tmp_path: Path) -> None:
    known = load()
    newer = replace(known[FIRST][CELL], seen="2099-01-01", disks=1)
    (tmp_path / "unstable").mkdir()
    (tmp_path / "unstable" / f"{CELL}.json").write_text(json.dumps(asdict(newer)))
    assert gather({FIRST: known[FIRST]}, tmp_path) == {
        FIRST: known[FIRST],
        "unstable": {CELL: newer},
    }


def test_a_release_is_lacking_until_every_cell_has_been_seen() -> None:
    records = load()[FIRST]
    without = {name: record for name, record in records.items() if name != CELL}
    assert lacking(dict.fromkeys(RELEASES, records)) == []
    assert lacking({FIRST: records}) == [name for name in RELEASES if name != FIRST]
    assert lacking(dict.fromkeys(RELEASES, without)) == list(RELEASES)


def test_nothing_but_the_table_is_replaced() -> None:
    assert put(f"a\n{BEGIN}old\n{END}b\n", "new\n") == f"a\n{BEGIN}new\n{END}b\n"
