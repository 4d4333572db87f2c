"""The command line: what the RFC asks for, word for word, and no more.

stdout carries the result only; everything else goes to stderr.
"""

import argparse
import json
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import FrameType
from typing import Any

from pyxlsnap import api
from pyxlsnap.cancel import Cancel
from pyxlsnap.cli import render
from pyxlsnap.errors import Interrupted, NeedsAttention, OperationFailed, PyxlsnapError, UsageError
from pyxlsnap.results import Plan, Progress, Recovered, Reverted, Snapshot
from pyxlsnap.serialize import to_wire
from pyxlsnap.text import one_line
from pyxlsnap.version import VERSION

#: of the JSON documents on stdout
JSON_VERSION = 1

_EXIT_CODES = """\
exit status:
  0  done
  1  failed; everything is as before
  2  usage or config file wrong; nothing was tried
  3  refused, and why; nothing was tried
  4  failed and needs a person: what is left is listed, with the command that finishes it
  5  risky; --force would do it; nothing was tried
  130, 143  interrupted (SIGINT, SIGTERM) and rolled back
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)  # --f is not --force


def build_parser() -> argparse.ArgumentParser:
    """The parser, for the command and for whoever generates its documentation."""
    parser = _Parser(
        prog="pyxlsnap",
        description="Whole-domain snapshots for Xen: memory and disks at one instant.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"pyxlsnap {VERSION}", help="say which version it is"
    )
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice: all")
    parser.add_argument("--json", action="store_true", help="the result as one JSON document")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    create = commands.add_parser(
        "snapshot-create", help="take a snapshot of a running or paused domain"
    )
    create.add_argument("domain", help="name, domid or uuid")
    create.add_argument("cfgfile", nargs="?", help="what to snapshot, and where to")
    create.add_argument(
        "--name", metavar="name", help="the snapshot's name; the cfgfile's goes first"
    )
    create.add_argument(
        "--live", action="store_true", help="let the domain run while its memory is saved"
    )
    create.add_argument(
        "--max-downtime",
        type=_seconds,
        metavar="seconds",
        help="refuse if the domain is expected to stand still for longer",
    )
    create.set_defaults(run=_create)
    _add_common(create)

    revert = commands.add_parser("snapshot-revert", help="bring a domain back to a snapshot")
    revert.add_argument("domain", help="name, domid or uuid; it may be off")
    revert.add_argument("cfgfile", help="the file that snapshot-create wrote")
    revert.add_argument(
        "--running", action="store_true", help="let it run afterwards, even if it was paused"
    )
    revert.add_argument("--force", action="store_true", help="try harder on risky reverts")
    revert.add_argument(
        "--keep-current", action="store_true", help="take a snapshot of the domain as it is first"
    )
    revert.set_defaults(run=_revert)
    _add_common(revert)

    recover = commands.add_parser(
        "snapshot-recover", help="finish what an operation that was killed had begun"
    )
    recover.add_argument(
        "domain", nargs="?", help="name, domid or uuid; it may be off; default: every domain"
    )
    recover.set_defaults(run=_recover)
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, say what would be done, and change nothing",
    )
    parser.add_argument(
        "--no-monitor",
        dest="monitor",
        action="store_false",
        help="start no process that acts on the guest's own reboot, power-off or crash",
    )


def _create(arguments: argparse.Namespace, progress: "_Bar", cancel: Cancel) -> Snapshot | Plan:
    what: dict[str, Any] = {
        "cfgfile": arguments.cfgfile,
        "name": arguments.name,
        "live": arguments.live,
        "max_downtime": arguments.max_downtime,
        "cancel": cancel,
    }
    if arguments.dry_run:
        return api.plan_create(arguments.domain, **what)
    return api.create_snapshot(
        arguments.domain, **what, monitor=arguments.monitor, on_progress=progress
    )


def _revert(arguments: argparse.Namespace, progress: "_Bar", cancel: Cancel) -> Reverted | Plan:
    how: dict[str, Any] = {
        "running": arguments.running,
        "force": arguments.force,
        "keep_current": arguments.keep_current,
        "cancel": cancel,
    }
    if arguments.dry_run:
        return api.plan_revert(arguments.domain, arguments.cfgfile, **how)
    return api.revert_snapshot(
        arguments.domain,
        arguments.cfgfile,
        **how,
        monitor=arguments.monitor,
        on_progress=progress,
    )


def _recover(arguments: argparse.Namespace, _progress: "_Bar", _cancel: Cancel) -> Recovered:
    return api.recover(arguments.domain)


class _Bar:
    """A progress bar on a terminal, nothing on a pipe."""

    def __init__(self) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(unit="B", unit_scale=True, unit_divisor=1024)
        self._phase: tuple[str, int] = ("", 0)

    def __call__(self, progress: Progress) -> None:
        if self._bar is None:
            return
        if (phase := (progress.phase, progress.iteration)) != self._phase:
            self._phase = phase
            again = f", pass {progress.iteration + 1}" if progress.iteration else ""
            self._bar.reset(progress.bytes_expected or None)
            self._bar.set_description(progress.phase + again)
        self._bar.update(progress.bytes_done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _Signals:
    """The first SIGINT or SIGTERM cancels; later ones do not disturb the rollback."""

    def __init__(self, cancel: Cancel) -> None:
        self._cancel = cancel
        self.caught = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._catch)

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        if not self.caught:
            self.caught = number
            _say("interrupted: ending as soon as it is safe")
            threading.Thread(target=self._cancel.set, daemon=True).start()


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr)
    except OSError:
        pass  # nobody listens: that is no reason to stop


def _write(text: str) -> str:
    """Write to stdout; why that failed, "" if it did not."""
    try:
        print(text, flush=True)
        return ""
    except OSError as e:
        # What is still buffered must not fail once more when Python ends, with a status of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return str(e.strerror)


def _document(command: str, **content: Any) -> str:
    return json.dumps({"pyxlsnap": JSON_VERSION, "command": command, **content}, indent=2)


def _fail(error: PyxlsnapError) -> None:
    _say(f"pyxlsnap: {error}")
    if isinstance(error, NeedsAttention) and error.finish:
        _say(f"pyxlsnap: to finish: {error.finish}")


def _exit_code(error: PyxlsnapError, signals: _Signals) -> int:
    if isinstance(error, Interrupted) and signals.caught:
        return 128 + signals.caught
    return error.exit_code


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"pyxlsnap: {record.levelname}: {one_line(record.getMessage())}"


def _set_up_logging(verbose: int) -> None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=level, handlers=[handler])
    if not verbose:  # what matters of libxl's messages is in the error
        logging.getLogger("pyxlsnap.libxl").setLevel(logging.CRITICAL)


def _open_missing_streams() -> None:
    """Python has ``None`` for what was closed when it started, and a file may get that number."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one's
            setattr(sys, name, os.fdopen(fd, "r" if name == "stdin" else "w"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    _open_missing_streams()
    as_json = "--json" in (sys.argv[1:] if argv is None else argv)
    command = ""
    signals = _Signals(cancel := Cancel())
    try:
        arguments = build_parser().parse_args(argv)
        command = arguments.command
        _set_up_logging(arguments.verbose)
        result = _with_bar(lambda bar: arguments.run(arguments, bar, cancel))
        for warning in getattr(result, "warnings", ()):
            _say(f"pyxlsnap: warning: {one_line(warning)}")
        if as_json:
            text = _document(command, exit_code=0, result=asdict(result))
        else:
            text = "\n".join(map(one_line, render.lines(result)))
        if why := _write(text):
            raise _unwritten(result, why)
    except PyxlsnapError as error:
        _fail(error)
        code = _exit_code(error, signals)
        if as_json:
            _write(_document(command, exit_code=code, error=to_wire(error)))
        return code
    return 0


def _unwritten(result: render.Result, why: str) -> OperationFailed:
    """What was done cannot be taken back, and who reads the result has not got it."""
    left = [line.strip() for line in render.lines(result)]
    what = f"the result could not be written to stdout ({why})"
    if isinstance(result, Plan):
        return OperationFailed(f"{what}; nothing was done", step="output")
    return NeedsAttention(f"{what}, but it is done: {'; '.join(left)}", step="output", left=left)


def _with_bar(run: Callable[[_Bar], Any]) -> Any:
    bar = _Bar()
    try:
        return run(bar)
    finally:
        bar.close()
