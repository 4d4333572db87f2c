"""A snapshot of each domain that is named, for cron or a timer.

usage: nightly.py DOMAIN... The exit status is that of the worst failure. The unit that runs it
should have ``KillMode=process`` (see pyxlsnap's README). It deletes nothing: when a snapshot is no
longer wanted, the command line's output has the commands for it.
"""

import sys
from datetime import datetime

import pyxlsnap


def snapshot(domain: str) -> str:
    """Take one, live if that is possible; what came of it, as a line."""
    name = f"nightly-{datetime.now():%Y%m%d-%H%M%S}"
    found = pyxlsnap.can_snapshot(domain)
    if not found.possible:
        raise pyxlsnap.Refused("; ".join(found.reasons))
    made = pyxlsnap.create_snapshot(domain, name=name, live=found.live)
    for warning in made.warnings:
        print(f"{domain}: warning: {warning}", file=sys.stderr)
    how = "live" if made.live else "stopped"
    return f"{made.cfgfile} ({how}, suspended for {made.seconds_suspended:.2f} s)"


def report(about: str, error: pyxlsnap.PyxlsnapError) -> int:
    """Say what went wrong; its exit status."""
    print(f"{about}: {error}", file=sys.stderr)
    if isinstance(error, pyxlsnap.NeedsAttention) and error.finish:
        print(f"{about}: to finish: {error.finish}", file=sys.stderr)
    return error.exit_code


def main() -> int:
    """Take them one after the other; one that fails does not keep the others from it."""
    status = 0
    try:
        pyxlsnap.recover()  # what a crash has left
    except pyxlsnap.PyxlsnapError as e:  # of one domain; the others can be snapshotted
        status = report("recovery", e)
    for domain in sys.argv[1:]:
        try:
            print(f"{domain}: {snapshot(domain)}")
        except pyxlsnap.PyxlsnapError as e:
            status = max(status, report(domain, e))
    return status


if __name__ == "__main__":
    sys.exit(main())
