"""Take a snapshot of each domain that is named, and keep the newest ones; for cron or a timer.

usage: nightly.py KEEP DOMAIN... The exit status is that of the worst failure. Set
``KillMode=process`` in the unit that runs the script (see SYSTEMD in pyxlsnap(1)). Only snapshots
of this script are deleted, and only after a new one was taken.
"""

import sys
from datetime import datetime
from pathlib import Path

import pyxlsnap

PREFIX = "nightly-"


def snapshot(domain: str) -> pyxlsnap.Snapshot:
    """Take a snapshot, live if possible."""
    name = f"{PREFIX}{datetime.now():%Y%m%d-%H%M%S}"
    found = pyxlsnap.can_snapshot(domain)
    if not found.possible:
        raise pyxlsnap.Refused("; ".join(found.reasons))
    made = pyxlsnap.create_snapshot(domain, name=name, live=found.live)
    for warning in made.warnings:
        print(f"{domain}: warning: {warning}", file=sys.stderr)
    how = "live" if made.live else "stopped"
    print(f"{domain}: {made.cfgfile} ({how}, suspended for {made.seconds_suspended:.2f} s)")
    return made


def rotate(domain: str, newest: pyxlsnap.Snapshot, keep: int) -> None:
    """Delete the older snapshots of this script; the names are in the order of time."""
    there = sorted(Path(newest.cfgfile).parent.glob(f"{PREFIX}*.cfg"))
    for cfgfile in there[:-keep]:
        pyxlsnap.delete_snapshot(cfgfile)
        print(f"{domain}: deleted {cfgfile}")


def report(about: str, error: pyxlsnap.PyxlsnapError) -> int:
    """Print an error; returns its exit status."""
    print(f"{about}: {error}", file=sys.stderr)
    if isinstance(error, pyxlsnap.NeedsAttention) and error.finish:
        print(f"{about}: to finish: {error.finish}", file=sys.stderr)
    return error.exit_code


def main() -> int:
    """Take the snapshots one after the other. If one fails, the others are still taken."""
    status, keep = 0, max(1, int(sys.argv[1]))
    try:
        pyxlsnap.recover()  # finish what a crash interrupted
    except pyxlsnap.PyxlsnapError as e:  # the other domains can be snapshotted
        status = report("recovery", e)
    for domain in sys.argv[2:]:
        try:
            rotate(domain, snapshot(domain), keep)
        except pyxlsnap.PyxlsnapError as e:
            status = max(status, report(domain, e))
    return status


if __name__ == "__main__":
    sys.exit(main())
