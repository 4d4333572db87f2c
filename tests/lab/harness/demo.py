"""``make demo``: a live snapshot of a real guest on a real Xen, taken and reverted."""

import json
import sys
import time

from . import cache
from .guests import Guest, Tick
from .lab import Lab
from .snapshots import goes_back, run_script

KIND = "pvh"


def show(text: str) -> None:
    print(text, flush=True)


def counters(tick: Tick) -> str:
    disks = ", ".join(f"{name} {n}" for name, (n, _) in tick.disks.items())
    health = "nothing amiss" if tick.ok else "SOMETHING IS WRONG"
    return f"memory {tick.n}, disks {disks} (as of the tick before); {health}"


def watch(guest: Guest, seconds: float) -> Tick:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        tick = guest.wait_advance(4)
        show(f"    guest: {counters(tick)}")
    return tick


def main() -> int:
    """Tell the story; the exit status says whether it ended well."""
    with Lab(cache.progress(show)) as lab:
        return story(lab.guest(KIND))


def story(guest: Guest) -> int:
    show(guest.dom0.run("xl info | grep -E '^(xen_version|xen_extra|virt_caps)'").out.rstrip())
    show(f"\nA {KIND} guest counts in its memory and on both of its qcow2 disks:")
    before = watch(guest, 4)

    show(f"\n# pyxlsnap snapshot-create {KIND} --live --name demo")
    taken = run_script(guest.dom0, "create_watching.py", KIND, guest.log, "1", "demo")
    if taken.rc:
        print(taken.err, file=sys.stderr)
        return 1
    told = json.loads(taken.out)
    snapshot, memory = told["snapshot"], told["memory"]
    show(f"    while its memory was saved the guest counted from {memory[0]} to {memory[-1]};")
    show(f"    it was suspended for {snapshot['seconds_suspended']:.2f} s")
    for artefact in snapshot["artefacts"]:
        show(f"    {artefact['kind']}: {artefact['where']}")
    after = guest.last()

    show("\nThe guest goes on:")
    later = watch(guest, 8)

    show(f"\n# pyxlsnap snapshot-revert {KIND} {snapshot['cfgfile']}")
    mark = guest.mark()
    command = ["pyxlsnap", "snapshot-revert", KIND, snapshot["cfgfile"]]
    reverted = guest.dom0.run(command, check=False, timeout=240)
    print(reverted.err, file=sys.stderr, end="")
    if reverted.rc:
        return 1
    show("    " + reverted.out.rstrip())
    show("\nThe guest is back at the snapshot and counts on:")
    end = watch(guest, 6)
    first = goes_back(guest, mark, later)
    good = before.n < first.n <= after.n + 1 < later.n and first.ok and end.ok
    show(
        f"\nSnapshot between {before.n} and {after.n}; gone on to {later.n}; back at {first.n} in "
        f"memory and on disk; now {end.n}: {'well done' if good else 'THIS IS WRONG'}"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
