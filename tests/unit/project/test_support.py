"""The README's support table says what the matrix in the lab has seen, and nothing else."""

from dataclasses import replace

from tests.lab.harness.support import BEGIN, CELLS, END, MATRIX, README, REFUSED, load, put, render


def test_every_cell_of_the_matrix_has_been_seen() -> None:
    assert list(load()) == [str(cell) for cell in CELLS]


def test_what_was_refused_is_what_cannot_be() -> None:
    records = load()
    assert [cell for cell in CELLS if records[str(cell)].refused] == REFUSED
    assert all(records[str(cell)].seconds_suspended > 0 for cell in MATRIX)


def test_the_readme_has_the_table_that_follows() -> None:
    assert README.read_text() == put(README.read_text(), render(load()))


def test_a_cell_without_a_result_shows() -> None:
    records = load()
    cell = str(CELLS[0])
    without = {name: record for name, record in records.items() if name != cell}
    assert render(without).count("not seen yet") == render(records).count("not seen yet") + 1


def test_another_result_makes_another_table() -> None:
    records = load()
    cell = str(CELLS[0])
    worse = render(records | {cell: replace(records[cell], refused="no")})
    assert worse.count("refused") == render(records).count("refused") + 1


def test_nothing_but_the_table_is_replaced() -> None:
    assert put(f"a\n{BEGIN}old\n{END}b\n", "new\n") == f"a\n{BEGIN}new\n{END}b\n"
