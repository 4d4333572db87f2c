"""In dom0: several guests at once, from one process.

usage: several.py create HELD LIVE..., or several.py revert DOMAIN=CFGFILE... While the first one is
suspended its worker is stopped, until live snapshots of the others are done. Prints JSON: how long
that was, and the results by domain. Nobody watches the guests afterwards: that takes its time.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from pyxlsnap import Progress, Reverted, Snapshot, aio
from tests.host_state import children_of

NAME = "together"
PATIENCE_S = 300.0
Results = Sequence[Snapshot | Reverted]


class Held:
    """A callback for progress that stops the worker when the guest has just been suspended."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()
        self._worker = 0

    def __call__(self, progress: Progress) -> None:
        if progress.phase == "domain now suspended":
            (supervisor,) = children_of(os.getpid())
            (self._worker,) = children_of(supervisor)
            os.kill(self._worker, signal.SIGSTOP)
            self.stopped.set()

    def release(self) -> None:
        if self._worker:
            os.kill(self._worker, signal.SIGCONT)


async def create(held: str, *live: str) -> tuple[float, Results]:
    holding = Held()
    one = asyncio.create_task(
        aio.create_snapshot(held, name=NAME, monitor=False, on_progress=holding)
    )
    stopped = asyncio.create_task(holding.stopped.wait())
    await asyncio.wait([one, stopped], return_when=asyncio.FIRST_COMPLETED)
    begun = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE_S):
            made = await asyncio.gather(
                *(aio.create_snapshot(d, name=NAME, live=True, monitor=False) for d in live)
            )
    finally:
        seconds = time.monotonic() - begun
        holding.release()
    return seconds, [await one, *made]


async def revert(*what: str) -> tuple[float, Results]:
    begun = time.monotonic()
    reverts = [aio.revert_snapshot(*w.split("=", 1), monitor=False) for w in what]
    reverted = await asyncio.gather(*reverts)
    return time.monotonic() - begun, reverted


def main() -> None:
    verb, *words = sys.argv[1:]
    seconds, results = asyncio.run((create if verb == "create" else revert)(*words))
    print(json.dumps({"seconds": seconds, **{r.domain: asdict(r) for r in results}}))


if __name__ == "__main__":
    main()
