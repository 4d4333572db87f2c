"""The messages that a command writes to stderr: lines for people, or lines of JSON for programs.

``--help`` and a wrong option need no more than this module.
"""

import json
import logging
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pyxlsnap.text import one_line

if TYPE_CHECKING:
    from pyxlsnap.cli.lines import LogLine, ProgressLine


class Messages:
    """Writes messages to stderr.

    :param as_json: each as a :class:`~pyxlsnap.cli.lines.LogLine`.
    """

    def __init__(self, *, as_json: bool) -> None:
        #: when the command was started, by ``time.monotonic``
        self.started = time.monotonic()
        self.as_json = as_json
        if as_json:  # loaded now, not by the handler of a signal
            import pyxlsnap.cli.lines  # noqa: F401

    def warn(self, text: str) -> None:
        """Write a warning of a result."""
        self.say(text, "warning", before="pyxlsnap: warning: ")

    def say(self, text: str, level: str = "error", before: str = "pyxlsnap: ") -> None:
        """Write a message, in one line.

        :param before: the beginning of the line, if it is for people.
        """
        if self.as_json:
            self._log(level, "pyxlsnap", text)
        else:
            write(before + one_line(text))

    def record(self, record: logging.LogRecord) -> None:
        """Write a log record."""
        if self.as_json:
            self._log(record.levelname.lower(), record.name, record.getMessage())
        else:
            write(f"pyxlsnap: {record.levelname}: {one_line(record.getMessage())}")

    def write(self, line: "ProgressLine | LogLine") -> None:
        """Write a line of JSON."""
        from pyxlsnap.cli.lines import document

        write(json.dumps(document(line)))

    def _log(self, level: str, logger: str, message: str) -> None:
        from pyxlsnap.cli.lines import LogLine

        seconds = round(time.monotonic() - self.started, 3)
        self.write(LogLine("log", seconds, level, logger, one_line(message)))


def write(line: str) -> None:
    """Write a line to stderr, in one piece: other threads write lines, too.

    A closed stderr is no reason to stop the operation. Nor is a signal's handler that writes while
    a line is written: Python may refuse that (RuntimeError).
    """
    try:
        sys.stderr.write(f"{line}\n")
    except (OSError, RuntimeError):
        pass


def json_wanted(argv: Sequence[str]) -> bool:
    """Whether the command line asks for lines of JSON, before the command line was checked."""
    return "--progress=json" in argv or ("--progress", "json") in pairwise(argv)


class Handler(logging.Handler):
    """Writes the records of the library."""

    def __init__(self, messages: Messages) -> None:
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            self._messages.record(record)
        except Exception:
            self.handleError(record)
