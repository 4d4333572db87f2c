"""What a command writes to stderr: lines for people, or lines of JSON for programs.

With ``--progress=json`` every line is a JSON object: a :class:`ProgressLine` or a :class:`LogLine`.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Literal

from pyxlsnap.cli.progress import Bar, Meter, ProgressLine, Thinned
from pyxlsnap.dataclass import dataclass
from pyxlsnap.results import Progress
from pyxlsnap.text import one_line

#: the version of the lines
LINE_VERSION = 1


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of ``--progress=json`` with a message: a log record, a warning, or why it failed."""

    #: always "log"
    event: Literal["log"]
    #: seconds since the command was started
    seconds: float
    #: "debug", "info", "warning", "error" or "critical"
    level: str
    #: the logger; "pyxlsnap.libxl" for the lines of libxl
    logger: str
    #: the text for people
    message: str


class Output:
    """Writes to stderr as ``--progress`` says.

    :param how: a value of the option.
    """

    def __init__(self, how: str) -> None:
        self._json = how == "json"
        self._started = time.monotonic()
        self._meter = Meter()
        self._bar = Bar() if how == "auto" and sys.stderr.isatty() else None
        self._show: Callable[[ProgressLine], None] | None = None
        if self._json or self._bar:
            self._show = Thinned(self._object if self._json else self._bar)  # type: ignore[arg-type]

    def progress(self, progress: Progress) -> None:
        """Show the progress of the operation."""
        if self._show is not None:
            self._show(self._meter(progress))

    def warn(self, text: str) -> None:
        """Write a warning of a result."""
        self.say(text, "warning", before="pyxlsnap: warning: ")

    def say(self, text: str, level: str = "error", before: str = "pyxlsnap: ") -> None:
        """Write a message, in one line.

        :param before: the beginning of the line, if it is for people.
        """
        if self._json:
            self._log(level, "pyxlsnap", text)
        else:
            write(before + one_line(text))

    def record(self, record: logging.LogRecord) -> None:
        """Write a log record."""
        if self._json:
            self._log(record.levelname.lower(), record.name, record.getMessage())
        else:
            write(f"pyxlsnap: {record.levelname}: {one_line(record.getMessage())}")

    def close(self) -> None:
        """End the bar, so that what follows is on a line of its own."""
        if self._bar is not None:
            self._bar.close()

    def _log(self, level: str, logger: str, message: str) -> None:
        seconds = round(time.monotonic() - self._started, 3)
        self._object(LogLine("log", seconds, level, logger, one_line(message)))

    def _object(self, line: ProgressLine | LogLine) -> None:
        write(json.dumps(document(line)))


def document(line: ProgressLine | LogLine) -> dict[str, Any]:
    """The object of a line."""
    return {"pyxlsnap": LINE_VERSION, **asdict(line)}


def write(line: str) -> None:
    """Write a line to stderr, in one piece: other threads write lines, too.

    A closed stderr is no reason to stop the operation. Nor is a signal's handler that writes while
    a line is written: Python may refuse that (RuntimeError).
    """
    try:
        sys.stderr.write(f"{line}\n")
    except (OSError, RuntimeError):
        pass


def wanted(argv: Sequence[str]) -> str:
    """How the command line wants its stderr, before the command line was checked."""
    pairs = pairwise(argv)
    as_json = "--progress=json" in argv or ("--progress", "json") in pairs
    return "json" if as_json else "none"


class Handler(logging.Handler):
    """Writes the records of the library."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            self._output.record(record)
        except Exception:
            self.handleError(record)
