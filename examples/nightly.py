"""Take a snapshot of each domain that is named, for cron or a timer.

usage: nightly.py DOMAIN... The exit status is that of the worst failure. Set ``KillMode=process``
in the unit that runs the script (see pyxlsnap's README). The script deletes nothing: the artefacts
of a snapshot (``made.artefacts``) have the commands that delete it.
"""

import sys
from datetime import datetime

import pyxlsnap


def snapshot(domain: str) -> str:
    """Take a snapshot, live if possible; returns the result as a line of text."""
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
    """Print an error; returns its exit status."""
    print(f"{about}: {error}", file=sys.stderr)
    if isinstance(error, pyxlsnap.NeedsAttention) and error.finish:
        print(f"{about}: to finish: {error.finish}", file=sys.stderr)
    return error.exit_code


def main() -> int:
    """Take the snapshots one after the other. If one fails, the others are still taken."""
    status = 0
    try:
        pyxlsnap.recover()  # finish what a crash interrupted
    except pyxlsnap.PyxlsnapError as e:  # the other domains can be snapshotted
        status = report("recovery", e)
    for domain in sys.argv[1:]:
        try:
            print(f"{domain}: {snapshot(domain)}")
        except pyxlsnap.PyxlsnapError as e:
            status = max(status, report(domain, e))
    return status


if __name__ == "__main__":
    sys.exit(main())
