"""The parser of the command line: the commands of the RFC with their arguments and options."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from pyxlsnap.errors import UsageError
from pyxlsnap.version import VERSION

if TYPE_CHECKING:
    from pyxlsnap.model import DiskRequest

#: the values of ``--progress``
HOW = ("auto", "json", "none")

_EXIT_CODES = """\
exit status:
  0  done
  1  failed; everything is as before, except what the guest itself did
  2  the command line or the config file is wrong; nothing was tried
  3  refused, with the reason; nothing was tried
  4  failed and needs a person: the message lists what is left and the command that finishes it
  5  risky: --force is needed; nothing was tried
  130, 143  interrupted (SIGINT, SIGTERM) and rolled back
"""


class _Parser(argparse.ArgumentParser):
    """Raises an error of ours for a wrong command line, in the place of printing and exiting."""

    def error(self, message: str) -> Any:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)  # --f is not --force


def build_parser() -> argparse.ArgumentParser:
    """Build the parser, for the command and for the documentation generated from the parser."""
    parser = _Parser(
        prog="pyxlsnap",
        description="Whole-domain snapshots for Xen: memory and disks at one instant.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"pyxlsnap {VERSION}",
        help="print the version and exit",
    )
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="print more messages; twice: all"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument(
        "--progress",
        choices=HOW,
        default="auto",
        metavar="how",
        help="progress on standard error: json: lines of JSON; none: nothing; "
        "auto: a bar if that is a terminal",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_create(
        commands.add_parser("snapshot-create", help="take a snapshot of a running or paused domain")
    )
    _add_revert(commands.add_parser("snapshot-revert", help="revert a domain to a snapshot"))
    _add_clone(commands.add_parser("snapshot-clone", help="make a new domain from a snapshot"))
    _add_recover(
        commands.add_parser(
            "snapshot-recover", help="finish or roll back an operation that was killed"
        )
    )
    return parser


def _add_create(create: argparse.ArgumentParser) -> None:
    create.add_argument("domain", help="name, domid or uuid")
    create.add_argument("cfgfile", nargs="?", help="config file with the disks and paths to use")
    create.add_argument(
        "--name", metavar="name", help="name of the snapshot; a name in the cfgfile overrides it"
    )
    create.add_argument(
        "--live", action="store_true", help="let the domain run while its memory is saved"
    )
    create.add_argument(
        "--max-downtime",
        type=_seconds,
        metavar="seconds",
        help="refuse if the domain is expected to be suspended for longer",
    )
    create.add_argument(
        "--max-rate",
        type=_rate,
        metavar="MiB/s",
        help="with --live: write the memory no faster while the domain runs",
    )
    _add_common(create)


def _add_revert(revert: argparse.ArgumentParser) -> None:
    revert.add_argument("domain", help="name, domid or uuid; the domain may be off")
    revert.add_argument("cfgfile", help="the file that snapshot-create wrote")
    _add_state(revert)
    revert.add_argument("--force", action="store_true", help="try harder on risky reverts")
    revert.add_argument(
        "--keep-current",
        action="store_true",
        help="first take a snapshot of the domain's present state",
    )
    _add_common(revert)


def _add_clone(clone: argparse.ArgumentParser) -> None:
    clone.add_argument("cfgfile", help="the file that snapshot-create wrote")
    clone.add_argument("name", help="name of the new domain")
    clone.add_argument(
        "--disk",
        dest="disks",
        type=_disk,
        action="append",
        default=[],
        metavar="path,format,device",
        help="where the clone's disk is made, by a copy if there is no quicker way; for each disk",
    )
    clone.add_argument("--bridge", metavar="name", help="bridge for all its network devices")
    clone.add_argument(
        "--replace",
        action="store_true",
        help="destroy a clone of this name and snapshot first, with its disks",
    )
    _add_state(clone)
    clone.add_argument("--force", action="store_true", help="make the clone although it is risky")
    _add_common(clone)


def _add_state(parser: argparse.ArgumentParser) -> None:
    state = parser.add_mutually_exclusive_group()
    state.add_argument(
        "--running",
        action="store_true",
        help="run the domain afterwards, even if it was paused in the snapshot",
    )
    state.add_argument(
        "--paused",
        action="store_true",
        help="leave the domain paused, even if it ran in the snapshot",
    )


def _disk(text: str) -> "DiskRequest":
    from pyxlsnap import disk_item  # --help needs none of it

    try:
        found = disk_item.parse(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e
    if found.internal:
        raise argparse.ArgumentTypeError(f"{text!r} has no path: give path,format,device")
    return found


def _add_recover(recover: argparse.ArgumentParser) -> None:
    recover.add_argument(
        "domain",
        nargs="?",
        help="name, domid or uuid; the domain may be off; default: every domain",
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything and print the plan, but change nothing",
    )
    parser.add_argument(
        "--no-monitor",
        dest="monitor",
        action="store_false",
        help="start no process that acts on the guest's own reboot, power-off or crash",
    )


def _seconds(text: str) -> float:
    return _number(text, 0, "a number of seconds")


def _rate(text: str) -> float:
    return _number(text, 1, "a number of MiB a second, at least 1")


def _number(text: str, least: float, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number
