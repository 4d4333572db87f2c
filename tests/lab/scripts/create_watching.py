"""In dom0: take a snapshot through the API and watch the guest's log meanwhile.

usage: create_watching.py DOMAIN LOG LIVE(0|1) NAME. Prints JSON: the counter the guest had
printed when the first and when the last page of memory was reported, and the result.
"""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import pyxlsnap


def main() -> None:
    domain, log, live, name = sys.argv[1:]
    seen: list[int] = []
    phases: list[str] = []

    def watch(progress: pyxlsnap.Progress) -> None:
        phases.append(progress.phase)
        if progress.phase == "memory":
            seen.append(int(re.findall(rb"TICK n=(\d+)", Path(log).read_bytes())[-1]))

    config = pyxlsnap.SnapshotConfig(name=name)
    snapshot = pyxlsnap.create_snapshot(domain, config=config, live=live == "1", on_progress=watch)
    print(json.dumps({"memory": seen, "phases": phases, "snapshot": asdict(snapshot)}))


if __name__ == "__main__":
    main()
