"""Runs a command: signals, output and exit status.

Only the result goes to stdout; everything else goes to stderr.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from types import FrameType
from typing import TYPE_CHECKING, Any

from pyxlsnap.cancel import Cancel
from pyxlsnap.cli.parser import build_parser
from pyxlsnap.cli.stderr import Handler, Messages, json_wanted
from pyxlsnap.errors import Interrupted, NeedsAttention, OperationFailed, PyxlsnapError
from pyxlsnap.text import one_line

if TYPE_CHECKING:
    from pyxlsnap.cli.render import Result

#: the version of the JSON documents on stdout
JSON_VERSION = 1


class _Signals:
    """The first SIGINT or SIGTERM cancels the operation; later ones do not disturb the rollback.

    A signal that was ignored when the command started stays ignored: ``nohup``, and a shell that
    starts a job in the background, rely on this.
    """

    def __init__(self, cancel: Cancel, messages: Messages) -> None:
        self._cancel = cancel
        self.messages = messages
        self.caught = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._catch)

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        if not self.caught:
            self.caught = number
            # First, as nobody may read stderr.
            threading.Thread(target=self._cancel.set, daemon=True).start()
            self.messages.say("interrupted: ending as soon as it is safe", "warning", before="")


def _write(text: str) -> str | None:
    """Write to stdout.

    :return: why the write failed, ``None`` if the text was written.
    """
    try:
        print(text, flush=True)
    except OSError as e:
        # Python flushes its buffer again when it exits: a second failure would change the status.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return str(e.strerror)
    return None


def _document(command: str, **content: Any) -> str:
    import json

    return json.dumps({"pyxlsnap": JSON_VERSION, "command": command, **content}, indent=2)


def _fail(error: PyxlsnapError, messages: Messages) -> None:
    messages.say(str(error))
    if isinstance(error, NeedsAttention) and error.finish:
        messages.say(f"to finish: {error.finish}")


def _exit_code(error: PyxlsnapError, signals: _Signals) -> int:
    if isinstance(error, Interrupted) and signals.caught:
        return 128 + signals.caught
    return error.exit_code


def _set_up_logging(verbose: int, messages: Messages) -> None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, handlers=[Handler(messages)])
    if not verbose:  # the error has those messages of libxl that matter
        logging.getLogger("pyxlsnap.libxl").setLevel(logging.CRITICAL)


def _open_missing_streams() -> None:
    """Open /dev/null for each standard stream that was closed when Python started.

    Python has ``None`` for such a stream, and another file would get its descriptor.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)  # the lowest free number is the stream's own
            setattr(sys, name, os.fdopen(fd, "r" if name == "stdin" else "w"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    _open_missing_streams()
    if argv is None:  # the process is ours, and not that of a program that calls this function
        return _run(sys.argv[1:], may_fork=True)
    return _run(argv, may_fork=False)


def _run(argv: Sequence[str], *, may_fork: bool) -> int:
    as_json = "--json" in argv
    command = ""
    signals = _Signals(cancel := Cancel(), Messages(as_json=json_wanted(argv)))
    try:
        arguments = build_parser().parse_args(argv)
        command = arguments.command
        # Only here: a wrong command line and --help need none of the modules below.
        from pyxlsnap.cli.commands import RUN
        from pyxlsnap.cli.output import Output
        from pyxlsnap.worker.start import fork_allowed

        output = signals.messages = Output(arguments.progress, signals.messages.started)
        _set_up_logging(arguments.verbose, output)
        with fork_allowed(may_fork), closing(output):
            result = RUN[command](arguments, output.progress, cancel)
        _show(command, result, output, as_json=as_json)
    except PyxlsnapError as error:
        _fail(error, signals.messages)
        code = _exit_code(error, signals)
        if as_json:
            from pyxlsnap.serialize import error_to_plain

            _write(_document(command, exit_code=code, error=error_to_plain(error)))
        return code
    return 0


def _show(command: str, result: "Result", messages: Messages, *, as_json: bool) -> None:
    """:raises OperationFailed, NeedsAttention: the result could not be written."""
    for warning in getattr(result, "warnings", ()):
        messages.warn(warning)
    if as_json:
        from dataclasses import asdict

        text = _document(command, exit_code=0, result=asdict(result))
    else:
        from pyxlsnap.cli import render

        text = "\n".join(map(one_line, render.lines(result)))
    if (why := _write(text)) is not None:
        raise _unwritten(result, why)


def _unwritten(result: "Result", why: str) -> OperationFailed:
    """The error for a result that could not be written: the operation itself is done."""
    from pyxlsnap.cli import render
    from pyxlsnap.results import Plan

    left = [line.strip() for line in render.lines(result)]
    what = f"the result could not be written to stdout ({why})"
    if isinstance(result, Plan):
        return OperationFailed(f"{what}; nothing was done", step="output")
    return NeedsAttention(
        f"{what}, but the operation is done: {'; '.join(left)}", step="output", left=left
    )
