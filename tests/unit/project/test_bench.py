"""The bench as far as it needs no Xen: what it measures, and what it says of the figures."""

import argparse
import copy
import dataclasses
import io
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import docutils.core
import pytest

import pyxlsnap
from docs.timeline import Span
from pyxlsnap import paths
from pyxlsnap.cli.parser import build_parser
from pyxlsnap.memory import write_header
from pyxlsnap.xen.xlcfg import parse_cfg
from tests.bench import backup, clones, in_lab, measure, native, running
from tests.bench.__main__ import chosen, parsed, runs
from tests.bench.__main__ import put as put_in
from tests.bench.cells import BASE, BY_NAME, CELLS, Cell
from tests.bench.figures import spreads
from tests.bench.guest import BenchGuest
from tests.bench.in_lab import HERE
from tests.bench.measure import Way
from tests.bench.memory_file import memory_in
from tests.bench.report import (
    BACK,
    BEGIN,
    PAGE,
    PAGE_BEGIN,
    PAGE_END,
    SAVES,
    render,
    seconds,
    summary,
    times_of,
)  # fmt: skip
from tests.bench.targets import CPU, MIB, must_reach
from tests.lab.harness.dom0 import Dom0
from tests.lab.harness.support import END, README, put
from tests.unit.support import streams
from tests.unit.support.memory_files import CONFIG
from tests.unit.support.written import METADATA


def spread(value: float) -> dict[str, float]:
    return {"median": value, "min": value - 0.1, "max": value + 0.1}


def made_up() -> dict[str, Any]:
    """A run of the bench in which everything was reached."""
    xl = {
        "suspended_s": spread(8.0),
        "whole_s": spread(9.0),
        "cpu_s": spread(4.0),
        "file_bytes": spread(264 * MIB),
        "disk_bytes": spread(264 * MIB),
        "memory_bytes": spread(256 * MIB),
        "not_zero_bytes": spread(60 * MIB),
    }
    stopped = xl | {"file_bytes": spread(259 * MIB), "disk_bytes": spread(61 * MIB)}
    live = stopped | {"suspended_s": spread(0.33)}
    back = {"whole_s": spread(18.0), "cpu_s": spread(6.0), "off_s": spread(12.5)}
    again = {"whole_s": spread(13.0), "off_s": spread(11.0)}
    by_hand = {"whole_s": spread(14.0), "cpu_s": spread(4.0), "off_s": spread(14.0)}
    base: dict[str, Any] = {"what": BASE.what, "xen": "4.17.7", "ways": {
        "xl save -c": xl, "pyxlsnap, stopped": stopped, "pyxlsnap, live": live,
        "pyxlsnap, revert": back, "pyxlsnap, repeated revert": again, "xl, revert": by_hand,
        "libxl in C, live": {"suspended_s": spread(0.40)},
    }}  # fmt: skip
    slow = copy.deepcopy(base) | {"what": "slow disk"}
    slow["ways"]["pyxlsnap, stopped"]["suspended_s"] = spread(6.0)
    stream = {
        who: {"cpu_seconds": spread(cpu), "memory_mib": spread(12), "gib_per_second": spread(1.5)}
        for who, cpu in (("dd", 1.0), ("writer", 1.25))
    }
    made: dict[str, Any] = {
        "date": "2026-11-29",
        "rounds": 5,
        "lab": {
            "base": base,
            "memory-128": {"what": "small", "xen": "4.17.7", "ways": {"pyxlsnap, live": live}},
            "memory-512": {"what": "large", "xen": "4.17.7", "ways": {"pyxlsnap, live": live}},
            "disks-4": {"what": "four", "xen": "4.17.7", "ways": {"pyxlsnap, live": live}},
            "lvm-4": {
                "what": "LVM",
                "xen": "4.17.7",
                "ways": {
                    "pyxlsnap, stopped": stopped,
                    "pyxlsnap, stopped, without its disks": stopped,
                },
            },
            "slow-disk": slow,
        },
        "writer": {"gib": 2.0, "streams": {"no page is zero": stream}},
        "commands": {name: {"cpu_s": spread(most - 0.01)} for name, most in CPU.items()},
    }
    parted: dict[str, Any] = json.loads(json.dumps(made))  # no figure stands in two places
    return parted


def test_everything_that_must_be_reached_can_be() -> None:
    lines = must_reach(made_up())
    assert [str(line).split("  ")[0] for line in lines] == ["reached"] * 21


LAB = ("lab", "base", "ways")
# Which figure too many is noticed in which line.
WORSE = [
    ((*LAB, "pyxlsnap, live", "file_bytes"), 260 * MIB, 0),
    ((*LAB, "pyxlsnap, stopped", "file_bytes"), 266 * MIB, 1),
    ((*LAB, "pyxlsnap, live", "disk_bytes"), 62 * MIB, 2),
    ((*LAB, "pyxlsnap, stopped", "suspended_s"), 8.9, 3),
    (("lab", "slow-disk", "ways", "pyxlsnap, stopped", "suspended_s"), 6.5, 4),
    ((*LAB, "pyxlsnap, live", "suspended_s"), 0.52, 5),
    (("lab", "memory-128", "ways", "pyxlsnap, live", "suspended_s"), 0.61, 6),
    (("lab", "memory-512", "ways", "pyxlsnap, live", "suspended_s"), 0.40, 7),
    (("lab", "disks-4", "ways", "pyxlsnap, live", "suspended_s"), 0.81, 8),
    (("lab", "lvm-4", "ways", "pyxlsnap, stopped", "suspended_s"), 9.3, 9),
    ((*LAB, "pyxlsnap, revert", "off_s"), 12.7, 10),
    (("lab", "slow-disk", "ways", "pyxlsnap, revert", "off_s"), 12.7, 10),
    ((*LAB, "pyxlsnap, repeated revert", "off_s"), 11.3, 11),
    ((*LAB, "pyxlsnap, stopped", "whole_s"), 13.6, 12),
    (("lab", "slow-disk", "ways", "pyxlsnap, stopped", "whole_s"), 13.6, 12),
    ((*LAB, "pyxlsnap, live", "whole_s"), 13.6, 13),
    ((*LAB, "pyxlsnap, revert", "whole_s"), 21.1, 14),
    (("commands", "snapshot-create", "cpu_s"), 0.21, 15),
    (("commands", "import pyxlsnap", "cpu_s"), 0.04, 18),
    (("writer", "streams", "no page is zero", "writer", "cpu_seconds"), 1.4, 19),
    (("writer", "streams", "no page is zero", "writer", "memory_mib"), 66, 20),
]


@pytest.mark.parametrize(("where", "value", "line"), WORSE)
def test_what_is_not_reached_is_said(where: tuple[str, ...], value: float, line: int) -> None:
    bench = made_up()
    place = bench
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = spread(value)
    lines = must_reach(bench)
    assert [n for n, of in enumerate(lines) if str(of).startswith("NOT REACHED")] == [line]
    named = {"lab": f" ({where[1]})", "writer": f" ({where[2]})", "commands": ""}[where[0]]
    assert f"{named}, at most" in str(lines[line])


def test_the_worst_of_all_guests_is_judged() -> None:
    bench = made_up()
    for name, off_s in (("base", 12.0), ("slow-disk", 14.0), ("disks-4", 16.8)):
        bench["lab"][name]["ways"]["pyxlsnap, revert"] = {"off_s": spread(off_s)}
    bench["lab"]["disks-4"]["ways"]["xl, revert"] = {"off_s": spread(12.0)}
    assert "1.400x (disks-4), at most 0.900x" in str(must_reach(bench)[10])


def test_lvm_disks_are_judged_by_the_same_guest() -> None:
    bench = made_up()
    bench["lab"]["base"]["ways"]["pyxlsnap, stopped"]["suspended_s"] = spread(1.0)
    assert str(must_reach(bench)[9]).startswith("reached")
    del bench["lab"]["lvm-4"]["ways"]["pyxlsnap, stopped, without its disks"]  # an older run
    assert str(must_reach(bench)[9]).startswith("not measured")


def test_within_the_spread_of_xl_is_near_enough() -> None:
    bench = made_up()
    ways = bench["lab"]["base"]["ways"]
    ways["pyxlsnap, stopped"]["suspended_s"] = spread(9.5)
    ways["xl save -c"]["suspended_s"]["max"] = 9.6
    assert str(must_reach(bench)[3]).startswith("reached")


def test_what_was_not_measured_is_not_reached() -> None:
    failed: dict[str, Any] = {
        "date": "2026-11-29",
        "rounds": 5,
        "lab": {"base": {"failed": "no ticks"}},
    }
    for bench in (failed, {}):
        assert {str(line).split("  ")[0] for line in must_reach(bench)} == {"not measured"}
    row = "| live, suspended, against xl save -c | not measured | 0.060x |"
    assert row in plain(render(failed))
    tables = [line for line in render(failed).splitlines() if line.startswith("+==")]
    assert len(tables) == 1  # of what must be reached
    assert times_of(failed) is None


def plain(text: str) -> str:
    """Tables without the spaces that only align the columns."""
    return re.sub(" +", " ", text)


def test_the_readme_gets_the_figures_and_nothing_else_changes() -> None:
    readme = README.read_text()
    assert readme.count(BEGIN) == 1
    new = put(readme, summary(made_up()), BEGIN)
    before, _, rest = new.partition(BEGIN)
    tables, _, after = rest.partition(END)
    assert readme.startswith(before + BEGIN)
    assert readme.endswith(END + after)
    assert len(new.splitlines()) <= 200
    assert (
        "| 8.0 (7.9 to 8.1) |  | 8.0 (7.9 to 8.1) | 0.40 (0.30 to 0.50) | 0.33 (0.23 to 0.43) |"
        in tables
    )
    assert "12.5 (12.4 to 12.6)" in tables
    assert "`xl` by hand: 14.0" in tables
    assert "Xen 4.17.7; 2026-11-29; 5 rounds" in tables
    assert put(new, "Not measured yet.\n", BEGIN) == put(readme, "Not measured yet.\n", BEGIN)


def test_the_page_gets_all_figures_and_nothing_else_changes() -> None:
    page = PAGE.read_text()
    assert (page.count(PAGE_BEGIN), page.count(PAGE_END)) == (1, 1)
    new = put(page, render(made_up()), PAGE_BEGIN, PAGE_END)
    before, _, rest = new.partition(PAGE_BEGIN)
    tables, _, after = rest.partition(PAGE_END)
    assert page.startswith(before + PAGE_BEGIN)
    assert page.endswith(PAGE_END + after)
    tables = plain(tables)
    rows = [line for line in tables.splitlines() if line.startswith(f"| {BASE.what} ")]
    assert rows == [
        f"| {BASE.what} | 8.0 (7.9 to 8.1) | | 8.0 (7.9 to 8.1) "
        "| 0.40 (0.30 to 0.50) | 0.33 (0.23 to 0.43) |",
        f"| {BASE.what} | 14.0 (13.9 to 14.1) | 12.5 (12.4 to 12.6) | 11.0 (10.9 to 11.1) |",
        f"| {BASE.what} | 9.0 (8.9 to 9.1) | 9.0 (8.9 to 9.1) | 9.0 (8.9 to 9.1) |",
        f"| {BASE.what} | 14.0 (13.9 to 14.1) | 18.0 (17.9 to 18.1) |",
    ]
    assert "| pyxlsnap, live | 9.0 (8.9 to 9.1) | 4.0 (3.9 to 4.1) | 259.0 | 61.0 |" in tables
    assert "``snapshot-create`` 0.19, ``snapshot-revert`` 0.19," in tables
    assert "| live, suspended, against xl save -c | 0.041x (base) | 0.060x |" in tables
    assert "Xen 4.17.7; 2026-11-29; 5 rounds" in tables
    assert problems(render(made_up())) == []


STEPS = {
    "pyxlsnap, stopped": {"journal": 0.1, "suspend": 7.5, "disk snapshots": 0.2},
    "pyxlsnap, live": {"journal": 0.1, "suspend": 9.25, "disk snapshots": 0.3},
    "pyxlsnap, revert": {"destroy": 3.0, "disks": 1.0},
    "pyxlsnap, repeated revert": {"destroy": 2.5, "disks": 0.75},
}


def test_the_page_says_where_the_seconds_go() -> None:
    bench = made_up()
    assert "step" not in render(bench)  # an older run has none
    base = bench["lab"]["base"]["ways"]
    for way, steps in STEPS.items():
        base[way] |= {key: spread(value) for key, value in measure.steps(steps, 20.0).items()}
    for way in ("pyxlsnap, stopped", "pyxlsnap, live"):
        base[way] |= {"disk_snapshots_s": spread(0.2), "disks_beside_s": spread(1.5)}
    lvm = {"suspended_s": spread(5.0), "disk_snapshots_s": spread(4.0), "disks_beside_s": spread(0)}
    bench["lab"]["lvm-4"]["ways"]["pyxlsnap, live"] = lvm
    text = plain(render(bench))
    assert matching(text, r"^\| (step|suspend|disks) ?\b") == [
        "| step, s | pyxlsnap, stopped | pyxlsnap, live |",
        "| suspend | 7.50 | 9.25 |",
        "| step, s | pyxlsnap, revert | pyxlsnap, repeated revert |",
        "| disks | 1.00 | 0.75 |",
    ]
    assert "| outside the steps | 12.20 | 10.35 |" in text
    assert "| outside the steps | 16.00 | 16.75 |" in text
    assert "| the whole | 18.00 | 13.00 |" in text
    one = "0.20 (0.10 to 0.30) | 1.5 (1.4 to 1.6)"
    assert matching(text, r"\| pyxlsnap, (stopped|live|r.*) \|.* to .*to ")[-5:] == [
        f"| {BASE.what} | pyxlsnap, stopped | 8.0 (7.9 to 8.1) | {one} |",
        f"| {BASE.what} | pyxlsnap, live | 0.33 (0.23 to 0.43) | {one} |",
        f"| {BASE.what} | pyxlsnap, revert | 12.5 (12.4 to 12.6) | 1.0 (0.9 to 1.1) | |",
        f"| {BASE.what} | pyxlsnap, repeated revert | 11.0 (10.9 to 11.1) "
        "| 0.75 (0.65 to 0.85) | |",
        "| LVM | pyxlsnap, live | 5.0 (4.9 to 5.1) | 4.0 (3.9 to 4.1) | 0.00 (-0.10 to 0.10) |",
    ]
    assert problems(render(bench)) == []


def matching(text: str, pattern: str) -> list[str]:
    return [line for line in text.splitlines() if re.search(pattern, line)]


def problems(text: str) -> list[str]:
    """What docutils says of reStructuredText."""
    stream = io.StringIO()
    settings = {"warning_stream": stream, "report_level": 2}
    docutils.core.publish_doctree(text, settings_overrides=settings)
    return stream.getvalue().splitlines()


def test_the_picture_has_every_guest_and_way(tmp_path: Path) -> None:
    """Only `make bench` needs what draws it."""
    pytest.importorskip("matplotlib")
    from tests.bench.picture import draw

    bench = made_up()
    bench["lab"]["hvm"] = {"failed": "no ticks"}
    pictures = [tmp_path / "docs" / name for name in ("one.svg", "two.svg")]
    for path in pictures:
        draw(bench, path)
    text = pictures[0].read_text()
    for what in (BASE.what, "small", "LVM", *SAVES):
        assert f"<!-- {what} -->" in text  # (the letters are drawn)
    assert "no ticks" not in text
    assert pictures[1].read_text() == text


def test_the_time_line_has_the_medians() -> None:
    bench = made_up()
    assert times_of(bench) is None
    ways = bench["lab"]["base"]["ways"]
    ways["pyxlsnap, live"] |= {"reported_suspended_s": spread(0.5), "after_s": spread(1.0)}
    ways["pyxlsnap, revert"] |= {"after_s": spread(0.5)}
    times = times_of(bench)
    assert times
    assert times.create == Span(before=7.5, stopped=0.5, after=1.0)
    assert times.revert == Span(before=5.0, stopped=12.5, after=0.5)
    assert "2026-11-29" in times.source


def test_a_figure_is_shown_with_its_spread() -> None:
    rounds = [{"whole_s": s, "cpu_s": s / 100} for s in (12.0, 10.0, 11.5)] + [{"cpu_s": 0.2}]
    found = spreads(rounds)
    assert found["whole_s"] == {"median": 11.5, "min": 10.0, "max": 12.0}
    assert seconds(found["whole_s"]) == "11.5 (10.0 to 12.0)"
    assert seconds(found["cpu_s"]) == "0.12 (0.10 to 0.20)"


TOGETHER = ({"filled_mib", "dirty_kib"}, {"memory_mib", "filled_mib", "disk_mib"}, {"disks", "lvm"})


@pytest.mark.parametrize("cell", CELLS[1:], ids=lambda cell: cell.name)
def test_a_cell_differs_from_the_first_in_one_thing(cell: Cell) -> None:
    fields = {field.name for field in dataclasses.fields(Cell)} - {"name", "what", "ways"}
    other = {name for name in fields if getattr(cell, name) != getattr(BASE, name)}
    assert len(other) == 1 or other in TOGETHER


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_cell_can_be_measured(cell: Cell) -> None:
    """A revert goes back to a snapshot of the same round, and no PV guest is saved live."""
    assert BY_NAME[cell.name] is cell
    assert {Way.STOPPED, Way.LIVE} & set(cell.ways) or Way.REVERT not in cell.ways
    if cell.kind == "pv":
        assert not {Way.LIVE, Way.BARE_LIVE} & set(cell.ways)
    task = measure.Task("bench", "log", [], cell.lvm, list(cell.ways), 1)
    order = [way for way, _ in measure.measurements(task, 1)]
    assert sorted(order) == sorted(Way)
    assert order.index(Way.LIVE) < order.index(Way.REVERT) < order.index(Way.REPEATED)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_xl_starts_the_guest_of_the_cell(cell: Cell) -> None:
    """Of several lines for one key the last one counts: parsed as xl does."""
    guest = BenchGuest(Dom0(0), cell)
    text = guest.config_text().encode()
    strings = ("type", "memory", "vcpus", "extra")
    found = parse_cfg(text, file="bench.cfg", strings=strings, lists=("disk",))
    assert found["type"] == cell.kind
    assert found["memory"] == str(cell.memory_mib)
    assert found["vcpus"] == str(cell.vcpus)
    load = f"disks={cell.disks} filled={cell.filled_mib} dirty={cell.dirty_kib}"
    assert str(found["extra"]).endswith(load)
    kind, place = ("raw", "/dev/lab/bench-") if cell.lvm else ("qcow2", "/lab/disk/bench-")
    assert len(found["disk"]) == cell.disks == len(guest.names)
    assert all(f"format={kind}," in disk and place in disk for disk in found["disk"])


def test_only_cells_that_there_are_can_be_chosen() -> None:
    assert chosen("lvm-4,base") == (BY_NAME["lvm-4"], BASE)
    assert chosen("") == ()
    with pytest.raises(argparse.ArgumentTypeError, match="there is no cell zfs"):
        chosen("base,zfs")


def test_the_memory_that_is_not_zero_is_counted(tmp_path: Path) -> None:
    zero = streams.pages_at([(7, 0), (8, 0xF), (9, 0)], fill=b"\0")
    full = streams.pages_at([(1, 0), (2, 0), (3, 0xF), (4, 0)])
    for kind, records in ((1, streams.pv_records), (2, streams.hvm_records)):
        path = tmp_path / f"{kind}.save"
        with path.open("wb") as file:
            write_header(file, config_json=CONFIG, metadata=METADATA)
            file.write(streams.stream(kind, records([zero, full])))
        assert memory_in(path) == {"memory_bytes": 5 * 4096, "not_zero_bytes": 3 * 4096}


def test_the_scripts_find_in_the_dom0_all_that_they_import(tmp_path: Path) -> None:
    there = tmp_path / "tests" / "bench"
    there.mkdir(parents=True)
    for name in in_lab.SCRIPTS:
        (there / name).write_bytes((HERE / name).read_bytes())
    words = [sys.executable, "-S", "-c", "import tests.bench.measure, tests.bench.clones"]
    subprocess.run(words, cwd=tmp_path, check=True, env={})


# What stands for the programs of a dom0: it tells no more than measure.py asks.
PROGRAMS = {
    "xl": """case $1 in domid) echo 5 ;; save) for last; do :; done; cp "$SAVED" "$last" ;; esac""",
    "python3": """test -e "$4" &&
echo '{"whole_s": 7.5, "off_s": 6.0, "seconds": {"restore": 4.5, "unpause": 0.5}}'""",
    "xenstore-read": "exit 1",
    "qemu-img": """echo "$@" >>"$CALLS" """,
    "bare": """case $1 in
watch) echo ready; sleep 0.1; echo 0.125 ;;
*) cp "$SAVED" "$3"; echo 0.120 ;;
esac""",
    "pyxlsnap": """case $2 in
snapshot-create) test "$5" || grep -qxF 'disks = []' "$4" || exit 1
at=$SNAPSHOT.${5:-none}; cp "$SAVED" "$at.save"; echo >"$at.cfg"
echo '{"result": {"seconds_suspended": 0.11,
"seconds": {"disk snapshots": 0.05, "resume": 0.01, "watch": 0.25},
"seconds_beside": 0.02,
"memory_path": "'$at.save'", "cfgfile": "'$at.cfg'"}}' ;;
snapshot-revert) test -e "$4" && echo '{"result": {"seconds_off": 6.5,
"seconds": {"unpause": 1, "monitor": 0.5}}}' ;;
esac""",
}


@pytest.fixture
def dom0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for what is saved, with programs that pretend, and a guest that ticks."""
    for name, text in PROGRAMS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    saved = tmp_path / "any.save"
    with saved.open("wb") as file:
        write_header(file, config_json=CONFIG, metadata=METADATA)
        file.write(streams.hvm_stream())
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name, path in (
        ("SAVED", saved),
        ("CALLS", tmp_path / "calls"),
        ("SNAPSHOT", tmp_path / "s"),
    ):
        monkeypatch.setenv(name, str(path))
    files = tmp_path / "files"
    monkeypatch.setattr(measure, "BARE", "bare")
    monkeypatch.setattr(measure, "FILES", files)
    monkeypatch.setattr(measure, "PEER_FILE", files / "peer.save")
    monkeypatch.setattr(os, "sync", lambda: None)
    with (tmp_path / "log").open("wb") as log:
        ticks = (
            "while echo 'TICK n=1 up=1 mem=ok xvda=0:ok bad=0 boot=1f6c09aa'; do sleep 0.02; done"
        )
        with subprocess.Popen(["sh", "-c", ticks], stdout=log) as ticking:
            yield tmp_path
            ticking.kill()


def test_each_way_is_measured_in_turn(
    dom0: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = measure.Task("bench", str(dom0 / "log"), ["a.qcow2", "b.qcow2"], False, list(Way), 2)
    monkeypatch.setattr(sys, "argv", ["measure.py", json.dumps(dataclasses.asdict(task))])
    measure.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    order = [way for way, _ in measure.measurements(task, 1)]
    assert [(line["round"], line["way"]) for line in lines] == [
        (number, str(way)) for number in (1, 2) for way in order
    ]
    found = {line["way"]: line["figures"] for line in lines if line["round"] == 1}
    saves = {way for way in Way if way not in BACK}
    assert {found[way]["suspended_s"] for way in saves} == {0.125}
    size = (dom0 / "any.save").stat().st_size
    assert {found[way]["file_bytes"] for way in saves} == {size}
    assert found[Way.BARE_LIVE]["reported_suspended_s"] == 0.12
    assert found[Way.LIVE]["reported_suspended_s"] == 0.11
    assert found[Way.LIVE]["after_s"] == 0.25
    assert (found[Way.REVERT]["off_s"], found[Way.REVERT]["after_s"]) == (6.5, 0.5)
    steps = {"step restore_s": 4.5, "step unpause_s": 0.5, "outside_steps_s": 2.5}
    assert found[Way.REPEATED] == {"whole_s": 7.5, "off_s": 6.0} | steps
    assert found[Way.LIVE]["step disk snapshots_s"] == 0.05
    assert found[Way.REVERT]["step monitor_s"] == 0.5
    whole = found[Way.REVERT]["whole_s"]
    assert found[Way.REVERT]["outside_steps_s"] == pytest.approx(whole - 1.5)
    assert in_lab.shown(found[Way.REPEATED]) == "whole_s 7.50, off_s 6.00, outside_steps_s 2.50"
    assert found[Way.XL_REVERT]["off_s"] == found[Way.XL_REVERT]["whole_s"] > 0
    assert {found[way]["not_zero_bytes"] for way in (Way.XL_SAVE, Way.STOPPED, Way.LIVE)} == {4096}
    images = [f"snapshot -{verb} peer {disk}.qcow2" for verb in "caa" for disk in "ab"]
    assert (dom0 / "calls").read_text().splitlines() == images
    assert not list((dom0 / "files").iterdir()) + list(dom0.glob("s.*"))


def test_a_guest_that_is_not_well_ends_the_measurement(dom0: Path) -> None:
    log = dom0 / "bad"
    log.write_text("")
    task = measure.Task("bench", str(log), [], False, [], 1)
    write = f"sleep 0.1; echo 'TICK n=2 up=9 mem=BAD bad=1 boot=1f6c09aa' >>{log}"
    with subprocess.Popen(["sh", "-c", write]), pytest.raises(SystemExit, match="not well"):
        measure.settle(task)


def test_a_command_that_fails_ends_the_measurement() -> None:
    assert running.timed("sh", "-c", "echo said").out == "said\n"
    with pytest.raises(SystemExit, match=r"status 3\nwhy"):
        running.timed("sh", "-c", "echo why >&2; exit 3")


def test_the_processor_time_of_children_counts() -> None:
    busy = "import time; end = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    done = running.timed("sh", "-c", '"$0" -c "$1"; true', sys.executable, busy)
    assert done.cpu_seconds >= 0.2


@pytest.mark.soak
def test_every_command_asks_libxl() -> None:
    found = native.commands(1, print)
    assert all(figures["cpu_s"]["median"] > 0 for figures in found.values())
    assert len(found) == 9


def test_every_command_is_measured() -> None:
    (commands,) = (a for a in build_parser()._actions if a.dest == "command")
    assert commands.choices
    assert set(commands.choices) < set(native.words(Path("web1.cfg")))


@pytest.mark.parametrize(("rounds", "measured"), [(1, 9), (5, 9), (20, 20)])
def test_the_commands_are_measured_nine_times_at_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int, measured: int
) -> None:
    """Each was run once before that."""
    calls: list[str] = []

    def run(given: list[str], compiled: str) -> dict[str, float]:
        calls.append(" ".join(given))
        return {"cpu_s": 0.1, "whole_s": 0.1}

    def imported(compiled: str) -> dict[str, float]:
        return run(["import"], compiled)

    monkeypatch.setattr(paths, "PROC", tmp_path)  # no Xen host
    monkeypatch.setattr(native, "_run", run)
    monkeypatch.setattr(native, "_import", imported)
    found = native.commands(rounds, lambda _: None)
    assert calls.count("--help") == calls.count("snapshot-create web1") == measured + 1
    assert calls.count("import") == measured == native.command_rounds(rounds)
    bench = made_up() | {"commands": found, "command_rounds": measured}
    assert f"until it asks libxl, seconds, median of {measured} rounds: ``--help``" in render(bench)


def test_the_c_program_compiles() -> None:
    source = HERE / "bare.c"
    gcc = ["gcc", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", str(source)]
    subprocess.run(gcc, check=True)


@pytest.mark.soak
def test_the_writer_is_measured_beside_dd(tmp_path: Path) -> None:
    words = ["--gib", "0.0625", "--rounds", "1", "--directory", str(tmp_path), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.writer", *words],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert len(found) == 4
    for result in found.values():
        dd, writer = (
            {key: value["median"] for key, value in result[who].items()} for who in ("dd", "writer")
        )
        assert 64 < writer["file_mib"] < 67
        assert 64 < dd["file_mib"] < 64 * 1.3 + 2
        assert dd["disk_mib"] > 63
        assert writer["memory_mib"] < 64
        assert writer["gib_per_second"] > 0
    assert found["a third is zero, 30 % come again"]["writer"]["disk_mib"]["median"] < 48
    assert not list(tmp_path.iterdir())


def test_clones_are_compared_with_xl_by_hand() -> None:
    def spread(value: float) -> dict[str, float]:
        return {"median": value, "min": value, "max": value}

    figures = {way: {"one_s": spread(2.0), "eight_s": spread(8.0)} for way in clones.Way}
    figures[clones.Way.COLD]["eight_s"] = spread(16.0)
    cold, repeated, pool = must_reach({"clones": figures})[-3:]
    assert (cold.found, cold.where, cold.at_most) == (2.0, "eight, two at a time", 1.5)
    assert (repeated.found, repeated.at_most) == (1.0, 1.5)
    assert (pool.found, pool.at_most) == (1.0, 1.0)
    assert "2.0 (2.0 to 2.0)" in (text := render({"clones": figures, "date": "", "rounds": 1}))
    assert "16.0 (16.0 to 16.0)" in text
    assert "rounds of eight: 1" in text


def test_eight_clones_are_made_in_some_rounds_only() -> None:
    assert clones.counts(clones.MANY_ROUNDS) == [("one_s", 1), ("eight_s", 8)]
    assert clones.counts(clones.MANY_ROUNDS + 1) == [("one_s", 1)]
    text = render({"clones": {"x": {}}, "date": "", "rounds": 5})
    assert "| pyxlsnap, clone from a pool " in text
    assert f"rounds of eight: {clones.MANY_ROUNDS}" in text


def test_a_clone_by_hand_has_disks_a_name_and_a_uuid_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clones, "FILES", tmp_path)
    config = tmp_path / "bench.cfg"
    config.write_text('name = "bench"\ndisk = [ "format=qcow2,target=/d/a" ]\n')
    task = clones.Task("bench", str(config), "/logs", {"xvda": "/d/a"}, 1)
    text = clones._by_hand(task, "/m.save", "c1")
    assert text.startswith("qemu-img create -q -f qcow2 -b /d/a.base -F qcow2 /d/a.c1; ")
    assert text.endswith(f"xl restore {tmp_path}/c1.cfg /m.save")
    own = (tmp_path / "c1.cfg").read_text()
    assert "target=/d/a.c1" in own
    assert own.rindex('name = "c1"') > own.index('name = "bench"')


def test_clones_are_counted_until_each_of_them_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[str] = []

    def timed(*words: str) -> running.Done:
        if words[:2] == ("xl", "pause"):
            paused.append(words[2])
            return running.Done(0.0, 0.0, "")
        return running.timed(*words)

    monkeypatch.setattr(clones, "timed", timed)
    task = clones.Task("bench", "", str(tmp_path), {}, 1)
    logs = [task.log(name) for name in ("a", "b")]
    logs[0].write_text("TICK n=1 bad=0 boot=x\n")  # of an earlier clone of that name
    say = "echo 'TICK n=2 mem=ok bad=0 boot=x' >>"
    makes = [clones.command("sh", "-c", f"{say}{log}") for log in logs]
    assert 0 < clones.seconds(task, ["a", "b"], makes) < 60
    assert all("n=2" in log.read_text() for log in logs)
    assert paused == ["a", "b"]


def test_a_cloner_has_made_a_clone_before_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    task = clones.Task("bench", "", str(tmp_path), {}, 1)

    @contextmanager
    def cloner(cfgfile: str, first: str, *, force: bool) -> Iterator[SimpleNamespace]:
        assert (cfgfile, force) == ("/s.cfg", True)

        def clone(name: str = first) -> None:
            done.append(f"clone {name}")
            task.log(name).write_text(f"{len(done)} TICK n=1 bad=0 boot=x\n" * len(done))

        yield SimpleNamespace(clone=clone)
        done.append("close")

    monkeypatch.setattr(pyxlsnap, "Cloner", cloner)
    monkeypatch.setattr(clones, "delete", lambda names: done.append(f"delete {' '.join(names)}"))
    monkeypatch.setattr(clones, "timed", lambda *words: done.append(" ".join(words)))
    assert 0 < clones.repeated(task, "/s.cfg", ["a"]) < 60
    before = ["clone a", "delete a"]
    assert done == [*before, "clone a", "xl pause a", "close", "delete a"]
    done.clear()
    assert 0 < clones.repeated(task, "/s.cfg", ["a", "b"]) < 60
    assert done[:2] == before
    made = ["clone a", "clone b", "xl pause a", "xl pause b"]
    assert sorted(done[2:-2]) == made
    assert done[-2:] == ["close", "delete a b"]


def test_a_clone_that_fails_is_not_waited_for(tmp_path: Path) -> None:
    task = clones.Task("bench", "", str(tmp_path), {}, 1)
    with pytest.raises(SystemExit, match="status 3"):
        clones.seconds(task, ["a"], [clones.command("sh", "-c", "exit 3")])


class FakeLab:
    """A machine of the lab that only ends."""

    booted: ClassVar[list["FakeLab"]] = []

    def __init__(self, say: Callable[[str], None]) -> None:
        self.ended, self.resets = threading.Event(), 0
        self.booted.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()

    def reset(self) -> None:
        self.resets += 1

    def collect_logs(self, dest: Path) -> None:
        pass


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> list[FakeLab]:
    """Those that were booted."""
    booted: list[FakeLab] = []
    monkeypatch.setattr(FakeLab, "booted", booted)
    monkeypatch.setattr(in_lab, "Lab", FakeLab)
    monkeypatch.setattr(in_lab, "prepare", lambda lab, say: None)
    return booted


def job(name: str, measure: Callable[[], dict[str, Any]] = dict) -> in_lab.Job:
    return in_lab.Job(name, "a guest", lambda lab, say: measure())


def of_run(todo: list[in_lab.Job], labs: int) -> Generator[in_lab.Measured]:
    return in_lab.Run(todo, Path("/nowhere"), lambda _: None).on(labs)


@pytest.mark.parametrize("labs", [1, 2, 9])
def test_each_job_is_done_once(machines: list[FakeLab], labs: int) -> None:
    todo = [job(str(n), lambda n=n: {"n": n}) for n in range(5)]  # type: ignore[misc]
    assert sorted(of_run(todo, labs)) == [(str(n), {"n": n}) for n in range(5)]
    assert len(machines) == min(labs, 5)
    assert all(lab.ended.is_set() for lab in machines)


def test_two_are_done_at_a_time(machines: list[FakeLab]) -> None:
    both = threading.Barrier(2)

    def wait() -> dict[str, Any]:
        both.wait(10)
        return {}

    assert sorted(dict(of_run([job("a", wait), job("b", wait)], 2))) == ["a", "b"]


def fail() -> dict[str, Any]:
    raise RuntimeError("no")


def test_after_a_job_that_fails_the_others_are_done(machines: list[FakeLab]) -> None:
    found = dict(of_run([job("bad", fail), job("good")], 1))
    assert (found["bad"]["failed"], found["good"]) == ("no", {})
    assert [lab.resets for lab in machines] == [1]


def test_a_run_that_is_broken_off_begins_nothing_more(machines: list[FakeLab]) -> None:
    """Then the machines end. That is no failure of the jobs that they do."""
    both = threading.Barrier(3)
    never: list[str] = []

    def until_ended(lab: Any, say: object) -> dict[str, Any]:
        both.wait(10)
        assert lab.ended.wait(10)
        raise OSError("the machine has ended")

    long = [in_lab.Job(name, "", until_ended) for name in ("a", "b")]
    todo = [job("first"), *long, job("never", lambda: {"": never.append("")})]  # type: ignore[func-returns-value]
    with closing(of_run(todo, 2)) as running:
        assert next(running)[0] == "first"
        both.wait(10)
    assert [lab.resets for lab in machines] == [0, 0]
    assert never == []


@pytest.mark.parametrize("number", [1, 2])
def test_a_machine_that_does_not_boot_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, machines: list[FakeLab], number: int
) -> None:
    def boot(say: Callable[[str], None]) -> FakeLab:
        if len(machines) + 1 == number:
            raise RuntimeError("no")
        return FakeLab(say)

    monkeypatch.setattr(in_lab, "Lab", boot)
    with pytest.raises(RuntimeError, match="no"):
        list(of_run([job("a"), job("b")], 2))
    assert all(lab.ended.is_set() for lab in machines)


def test_a_machine_that_cannot_be_prepared_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, machines: list[FakeLab]
) -> None:
    monkeypatch.setattr(in_lab, "prepare", lambda lab, say: fail())
    with pytest.raises(RuntimeError, match="no"):
        list(of_run([job("a"), job("b")], 2))
    assert all(lab.ended.is_set() for lab in machines)


def test_clones_are_measured_after_the_cells_and_with_nothing_beside_them() -> None:
    cells, clones = runs(parsed(["--labs", "2"]))
    assert ([job.name for job in cells[0]], cells[1]) == ([cell.name for cell in CELLS], 2)
    assert ([job.name for job in clones[0]], clones[1]) == ([in_lab.CLONES], 1)
    assert runs(parsed(["--no-clones", "--cells", ""])) == [([], 2)]


def test_the_cells_stay_in_the_order_of_the_tables() -> None:
    bench: dict[str, Any] = {"lab": {}}
    for name in ("pv", in_lab.CLONES, "base", "memory-128"):
        put_in(bench, name, {"of": name})
    assert list(bench["lab"]) == ["base", "memory-128", "pv"]
    assert bench[in_lab.CLONES] == {"of": in_lab.CLONES}


@pytest.fixture
def two_files(tmp_path: Path) -> tuple[Path, Path]:
    """Of 4 MiB, the last of zeros; the second file has one block that the first has not."""
    first, second = tmp_path / "first", tmp_path / "second"
    content = random.Random(1).randbytes(3 << 20) + bytes(1 << 20)
    first.write_bytes(content)
    second.write_bytes(b"x" * backup.RECORD + content[backup.RECORD :])
    return first, second


@pytest.mark.parametrize("way", backup.WAYS)
def test_what_a_second_file_costs(two_files: tuple[Path, Path], way: str) -> None:
    first, second = two_files
    try:
        found = {file: backup.WAYS[way](first, file) for file in two_files}
    except FileNotFoundError as e:
        pytest.skip(f"{e.filename} is not installed")
    assert found[first] <= 4096
    assert backup.RECORD - 4096 <= found[second] <= (4 << 20) + 4096  # borg: pieces of 2 MiB


def test_only_what_is_installed_is_asked(
    two_files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = backup.costs(*two_files)
    assert found.keys() == {"file", "equal blocks of 128 KiB"}
    bench = made_up() | {"backup": {"pyxlsnap": found, "xl": found}}
    assert "equal blocks of 128 KiB" in plain(render(bench))
