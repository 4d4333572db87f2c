"""A snapshot of each domain that is named, for cron or a timer.

usage: nightly.py DOMAIN... The exit status is that of the worst failure. The unit that runs it
should have ``KillMode=process`` (see pyxlsnap's README).
"""

import sys
from datetime import datetime

import pyxlsnap


def snapshot(domain: str, name: str) -> str:
    """Take one, live if that is possible; what came of it, as a line."""
    found = pyxlsnap.can_snapshot(domain)
    if not found.possible:
        raise pyxlsnap.Refused("; ".join(found.reasons))
    made = pyxlsnap.create_snapshot(domain, name=name, live=found.live)
    how = "live" if made.live else "stopped"
    return f"{made.cfgfile} ({how}, suspended for {made.seconds_suspended:.2f} s)"


def main() -> int:
    """Take them one after the other; one that fails does not keep the others from it."""
    name = f"nightly-{datetime.now():%Y%m%d-%H%M}"
    status = 0
    pyxlsnap.recover()  # what a crash has left
    for domain in sys.argv[1:]:
        try:
            print(f"{domain}: {snapshot(domain, name)}")
        except pyxlsnap.PyxlsnapError as e:
            print(f"{domain}: {e}", file=sys.stderr)
            status = max(status, e.exit_code)
    return status


if __name__ == "__main__":
    sys.exit(main())
