"""A pool of sandboxes: clones of one snapshot, kept ready, handed out, thrown away and made anew.

Usage: sandbox.py CFGFILE NUMBER BRIDGE

Each sandbox is a clone on an isolated bridge. It is handed out for one job and then replaced, so
that no job sees what another has left. After each restore a hook sets the guest's clock.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pyxlsnap import Cloned, Moment, aio


async def set_clock(moment: Moment) -> None:
    """Tell the guest the time by a node in xenstore; an agent in the guest acts on that."""
    node = f"/local/domain/{moment.domid}/vm-data/time"
    command = ["xenstore-write", node, str(int(time.time()))]
    await asyncio.to_thread(subprocess.run, command, check=True)


class Pool:
    """Sandboxes that are ready, as many as were asked for."""

    def __init__(self, cfgfile: str, number: int, bridge: str) -> None:
        self._cfgfile, self._bridge = cfgfile, bridge
        self._names = [f"sandbox{n}" for n in range(number)]
        self._ready: asyncio.Queue[Cloned] = asyncio.Queue()
        self._hooks = aio.AsyncHooks(after_clone=set_clock)

    async def fill(self) -> None:
        """Make all sandboxes, in the place of those that an earlier run has left."""
        async with asyncio.TaskGroup() as group:
            for name in self._names:
                group.create_task(self._make(name))

    async def _make(self, name: str) -> None:
        made = await aio.clone_snapshot(
            self._cfgfile, name, bridge=self._bridge, replace=True, hooks=self._hooks, force=True
        )
        await self._ready.put(made)

    @asynccontextmanager
    async def sandbox(self) -> AsyncIterator[Cloned]:
        """One sandbox for one job; afterwards it is thrown away, and made anew."""
        made = await self._ready.get()
        try:
            yield made
        finally:
            await self._make(made.domain)

    async def close(self) -> None:
        """Delete all sandboxes."""
        for name in self._names:
            await aio.delete_clone(name)


async def main(cfgfile: str, number: int, bridge: str) -> None:
    """Use each sandbox once, and show what it was."""
    pool = Pool(cfgfile, number, bridge)
    await pool.fill()
    try:
        for _ in range(number):
            async with pool.sandbox() as made:
                print(f"{made.domain} (domid {made.domid}) is ready", flush=True)
    finally:
        await pool.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
