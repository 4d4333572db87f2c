"""The progress of a command, for people and for programs."""

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import pyxlsnap
from docs.schema import schema
from pyxlsnap.cancel import Cancel
from pyxlsnap.cli import app
from pyxlsnap.cli.lines import ProgressLine, document
from pyxlsnap.cli.output import Output
from pyxlsnap.cli.progress import Bar, Meter, Thinned, figures, title
from pyxlsnap.linux.waiting import until
from pyxlsnap.results import Progress
from tests.unit.support.scenarios import deaths, ordinary
from tests.unit.support.standin import StandIn

ROOT = Path(pyxlsnap.__file__).parent.parent
COMMAND = [sys.executable, "-m", "pyxlsnap"]
MIB = 1 << 20
LINE = Draft202012Validator({"$ref": "#/$defs/Line", "$defs": schema()["$defs"]})
#: a live snapshot of 100 MiB, a report each second
LIVE = (
    Progress("checking"),
    Progress("memory", 0, 100 * MIB),
    Progress("memory", 50 * MIB, 100 * MIB),
    Progress("memory", 100 * MIB, 100 * MIB),
    Progress("memory", 5 * MIB, 10 * MIB, 1),
    Progress("domain now suspended", iteration=1),
    Progress("memory", 1 * MIB, 1 * MIB, 2),
    Progress("resumed"),
)


def measured(reports: Iterable[Progress]) -> list[ProgressLine]:
    """The lines of reports that come a second apart."""
    clock: Iterator[float] = iter(range(1000))
    meter = Meter(next(clock), lambda: next(clock))
    return [meter(report) for report in reports]


# What is measured


def test_the_events_of_a_live_snapshot() -> None:
    found = [(line.event, line.step, line.pass_number) for line in measured(LIVE)]
    assert found == [
        ("step", "checking", None),
        ("pass", "memory", 1),
        ("progress", "memory", 1),
        ("progress", "memory", 1),
        ("pass", "memory", 2),
        ("step", "domain now suspended", None),
        ("pass", "memory", 3),
        ("step", "resumed", None),
    ]


def test_rate_and_time_left_are_those_of_the_pass() -> None:
    _, begun, half, done, *_ = measured(LIVE)
    assert (begun.rate, begun.seconds_left, begun.percent) == (None, None, 0)
    assert (half.rate, half.seconds_left, half.percent) == (50 * MIB, 1, 50)
    assert (done.rate, done.seconds_left, done.percent) == (50 * MIB, 0, 100)
    assert [line.seconds for line in (begun, half, done)] == [2, 3, 4]


def test_only_a_pass_of_a_suspended_guest_is_the_last_one() -> None:
    assert [line.last_pass for line in measured(LIVE) if line.pass_number] == [
        *[False] * 4,
        True,
    ]


def test_the_only_pass_of_a_stopped_snapshot_is_the_last_one() -> None:
    stopped = (Progress("domain now suspended"), Progress("memory", 1, 2))
    assert measured(stopped)[1].last_pass


@given(
    st.lists(
        st.builds(
            Progress,
            st.sampled_from(["memory", "disks", "domain now suspended"]),
            st.integers(0, 1 << 50),
            st.integers(0, 1 << 50),
            st.integers(0, 3),
        )
    )
)
def test_every_report_has_a_line_of_the_schema(reports: list[Progress]) -> None:
    for line in measured(reports):
        LINE.validate(as_document(line))


def as_document(line: ProgressLine) -> Any:
    return json.loads(json.dumps(document(line)))


@pytest.mark.parametrize("member", [*ProgressLine.__dataclass_fields__, "pyxlsnap"])
def test_the_schema_takes_no_line_without_a_member_or_with_another(member: str) -> None:
    line = as_document(measured(LIVE)[2])
    LINE.validate(line)
    assert not LINE.is_valid({k: v for k, v in line.items() if k != member})
    assert not LINE.is_valid(line | {member: [[]]})
    assert not LINE.is_valid(line | {"more": 1})


def test_few_lines_are_shown_of_many_reports() -> None:
    shown: list[ProgressLine] = []
    thinned = Thinned(shown.append)
    meter = Meter(0.0, lambda: 0.0)
    for n in range(10_001):
        thinned(meter(Progress("memory", n, 10_000)))
    assert [line.percent for line in shown] == list(range(101))


def test_each_second_has_a_line_if_the_total_is_unknown() -> None:
    shown: list[ProgressLine] = []
    thinned = Thinned(shown.append)
    clock = iter(n / 10 for n in range(1000))
    meter = Meter(next(clock), lambda: next(clock))
    for n in range(31):
        thinned(meter(Progress("memory", n + 1, 0)))
    assert [line.bytes_done for line in shown] == [1, 11, 21, 31]


# What people see


def test_the_words_of_a_live_snapshot() -> None:
    assert [(title(line), figures(line)) for line in measured(LIVE)] == [
        ("checking", ""),
        ("memory, pass 1", ""),
        ("memory, pass 1", "50.0 MiB/s, 0:01 left of this pass"),
        ("memory, pass 1", "50.0 MiB/s, 0:00 left of this pass"),
        ("memory, pass 2", ""),
        ("domain now suspended", ""),
        ("memory, last pass", ""),
        ("resumed", ""),
    ]


def test_the_words_of_a_stopped_snapshot() -> None:
    reports = (
        Progress("domain now suspended"),
        Progress("memory", 0, 200 * MIB),
        Progress("memory", MIB, 200 * MIB),
    )
    line = measured(reports)[-1]
    assert (title(line), figures(line)) == ("memory", "1.0 MiB/s, 3:19 left")


@pytest.mark.parametrize(
    ("options", "drawn"), [((), True), (("--progress=none",), False), (("--progress=json",), False)]
)
def test_a_bar_is_drawn_on_a_terminal(
    worker: StandIn, options: tuple[str, ...], drawn: bool
) -> None:
    worker.set(ordinary.half_a_pass)
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 25, 100, 0, 0))
    found = subprocess.run(
        [*COMMAND, *options, "snapshot-create", "vm1"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=ROOT,
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert found.returncode == 0
    assert b"memory" not in found.stdout
    assert ("memory, pass 3:  50%|" in shown) == drawn
    assert (" left of this pass" in shown) == drawn


# What programs read


def json_lines(
    *words: str, code: int, options: tuple[str, ...] = ("--progress=json",)
) -> list[dict[str, Any]]:
    """Run a command: every line on stderr is one of the schema."""
    found = subprocess.run(
        [*COMMAND, *options, *words], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert found.returncode == code, found.stderr
    read = [json.loads(line) for line in found.stderr.splitlines()]
    for line in read:
        LINE.validate(line)
    return read


def test_steps_passes_and_warnings_are_lines(worker: StandIn) -> None:
    worker.set(ordinary.three_passes)
    *passes, warning = json_lines("snapshot-create", "vm1", code=0)
    assert [(line["event"], line["pass_number"]) for line in passes] == [
        ("pass", 1),
        ("pass", 2),
        ("pass", 3),
    ]
    assert (warning["level"], warning["message"]) == ("warning", "careful")


def test_a_log_record_is_a_line(worker: StandIn) -> None:
    worker.set(create=ordinary.logs)
    options = ("-vv", "--progress", "json")
    lines = json_lines("snapshot-create", "vm1", code=0, options=options)
    (record,) = [line for line in lines if line["logger"] == "pyxlsnap.libxl"]
    assert (record["level"], record["message"]) == ("debug", "a\\nb")


@pytest.mark.parametrize("words", [("snapshot-list",), ("snapshot-create", "vm1", "--name=1")])
def test_a_usage_error_is_a_line(words: tuple[str, ...]) -> None:
    (line,) = json_lines(*words, code=2)
    assert (line["event"], line["level"]) == ("log", "error")
    assert not line["message"].startswith("pyxlsnap: ")


def test_a_dead_worker_is_a_line(worker: StandIn) -> None:
    worker.set(deaths.aborted_in_c)
    (line,) = json_lines("snapshot-create", "vm1", code=1)
    assert line["message"].startswith("the worker process was killed by signal 6")


def test_a_signal_is_a_line(worker: StandIn) -> None:
    worker.set(ordinary.signalled)
    (worker.here / "signal").write_text("2")
    said, failed = json_lines("snapshot-create", "vm1", code=130)
    assert said["message"] == "interrupted: ending as soon as it is safe"
    assert (said["level"], failed["message"]) == ("warning", "the snapshot was interrupted")


def test_the_command_that_finishes_it_is_a_line(worker: StandIn) -> None:
    worker.set(ordinary.fails_and_needs_a_person)
    failed, finish = json_lines("snapshot-create", "vm1", code=4)
    assert (failed["message"], finish["message"]) == ("stuck", "to finish: do this")


def test_a_wrong_value_is_refused() -> None:
    found = subprocess.run(
        [*COMMAND, "--progress=xml", "snapshot-create", "vm1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert found.returncode == 2
    assert "--progress: invalid choice: 'xml'" in found.stderr


def test_without_tqdm_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    bar = Bar()
    bar(measured(LIVE)[0])
    bar.close()


# Nobody reads


class _Unread(Output):
    """Waits for a reader of stderr, until the operation is cancelled."""

    def __init__(self, cancel: Cancel) -> None:
        super().__init__("none", 0.0)
        self._cancel = cancel
        self.cancelled = False

    def say(self, text: str, level: str = "error", before: str = "") -> None:
        self.cancelled = until(self._cancel.is_set, within_s=10, poll_s=0.01)


def test_a_signal_cancels_though_nobody_reads_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    output = _Unread(cancel := Cancel())
    app._Signals(cancel, output)._catch(signal.SIGTERM, None)
    assert output.cancelled
