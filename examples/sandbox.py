"""A pool of sandboxes: clones of one snapshot, kept ready, handed out, thrown away and made anew.

Usage: sandbox.py CFGFILE BRIDGE...

Each sandbox is a clone on an isolated bridge; there are as many as bridges are named. Several may
be on one bridge, but not those of a guest with an emulated network device: it keeps the MAC address
of the snapshot. A sandbox is kept paused, and has run no instruction until it is handed out: then
its clock is set, and it runs. It serves one job and is then replaced, so that no job sees what
another has left.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from pyxlsnap import Cloned, DomainNotFound, Moment, PyxlsnapError, Toolstack, aio


async def set_clock(moment: Moment) -> None:
    """Tell the guest the time by a node in xenstore; an agent in the guest acts on that."""
    assert moment.domid is not None
    await asyncio.to_thread(write_clock, moment.domid)


def write_clock(domid: int) -> None:
    """Write the node."""
    node = f"/local/domain/{domid}/vm-data/time"
    subprocess.run(["xenstore-write", node, str(int(time.time()))], check=True)


def start(made: Cloned) -> None:
    """Let a sandbox run that was kept ready: its clock is of now, not of when it was made."""
    write_clock(made.domid)
    with Toolstack() as host:
        host.find(made.uuid).unpause()


class Pool:
    """Sandboxes that are ready, one for each bridge."""

    def __init__(self, cfgfile: str, bridges: Sequence[str]) -> None:
        # Each makes one sandbox, paused, in the place of the one before.
        self._cloners = {
            f"sandbox{n}": aio.Cloner(cfgfile, f"sandbox{n}", bridge=bridge, paused=True)
            for n, bridge in enumerate(bridges)
        }
        #: sandboxes; or the name of one that could not be made anew, and why
        self._ready: asyncio.Queue[Cloned | tuple[str, Exception]] = asyncio.Queue()
        self._hooks = aio.AsyncHooks(after_clone=set_clock)
        self._making: set[asyncio.Task[None]] = set()

    async def fill(self) -> None:
        """Make all sandboxes, in the place of those that an earlier run has left."""
        async with asyncio.TaskGroup() as group:
            for name in self._cloners:
                group.create_task(self._make(name))

    async def _make(self, name: str) -> None:
        made = await self._cloners[name].clone(hooks=self._hooks)
        await self._ready.put(made)

    async def _make_anew(self, name: str) -> None:
        """Make a sandbox beside the jobs: who waits for one gets the error, too."""
        try:
            await self._make(name)
        except Exception as e:
            await self._ready.put((name, e))

    def _begin(self, name: str) -> None:
        making = asyncio.create_task(self._make_anew(name))
        self._making.add(making)
        making.add_done_callback(self._making.discard)

    @asynccontextmanager
    async def sandbox(self) -> AsyncIterator[Cloned]:
        """One sandbox for one job; afterwards it is thrown away, and made anew beside the next.

        :raises PyxlsnapError: a sandbox could not be made anew. That is tried again meanwhile.
        """
        made = await self._ready.get()
        if isinstance(made, tuple):
            name, error = made
            self._begin(name)
            raise error
        try:
            await asyncio.to_thread(start, made)
            yield made
        finally:
            self._begin(made.domain)

    async def close(self) -> None:
        """Delete all sandboxes: also the others, if one cannot be deleted.

        :raises ExceptionGroup: some are left; each error says what.
        """
        await asyncio.gather(*self._making)
        failed = []
        for name, cloner in self._cloners.items():
            await cloner.close()
            try:
                await aio.delete_clone(name)
            except DomainNotFound:
                continue  # it could not be made
            except PyxlsnapError as e:
                failed.append(e)
        if failed:
            raise ExceptionGroup("sandboxes are left", failed)


async def main(cfgfile: str, *bridges: str) -> None:
    """Use each sandbox once, and show what it was."""
    pool = Pool(cfgfile, bridges)
    try:
        await pool.fill()
        for _ in bridges:
            async with pool.sandbox() as made:
                print(f"{made.domain} (domid {made.domid}) is ready", flush=True)
    finally:
        await pool.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
