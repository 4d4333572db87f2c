"""A small daemon: live snapshots of several guests on a schedule, and its status on a unix socket.

usage: daemon.py SOCKET SECONDS KEEP DOMAIN... Each connection to the socket gets one JSON document.
SIGTERM ends the daemon: running operations are rolled back first. Set ``KillMode=process`` in its
unit. The daemon keeps the newest KEEP of its snapshots of each guest, also those of an earlier run.
"""

import asyncio
import json
import signal
import sys
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pyxlsnap
from pyxlsnap import aio

PREFIX = "daemon-"


@dataclass
class Guest:
    """What the daemon knows about a guest."""

    domain: str
    doing: str = "waiting"
    percent: int = 0
    error: str = ""
    #: the command that a person has to run; the daemon takes no more snapshots
    finish: str = ""
    #: cfgfiles, the newest last
    snapshots: list[str] = field(default_factory=list)

    def progress(self, progress: pyxlsnap.Progress) -> None:
        """Called in the event loop."""
        self.doing = progress.phase
        if progress.bytes_expected:
            self.percent = 100 * progress.bytes_done // progress.bytes_expected


class Daemon:
    """Each guest has its own task; the tasks do not wait for each other."""

    def __init__(self, domains: list[str], every_s: float, keep: int) -> None:
        self._guests = [Guest(domain) for domain in domains]
        self._every_s = every_s
        self._keep = max(1, keep)

    async def run(self, path: str) -> None:
        """Serve the status and take snapshots until the task is cancelled."""
        await self._recover()
        async with await asyncio.start_unix_server(self._tell, path), asyncio.TaskGroup() as group:
            for guest in self._guests:
                group.create_task(self._look_after(guest))

    async def _recover(self) -> None:
        """Finish interrupted operations. If one needs a person, the daemon starts all the same."""
        try:
            await aio.recover()
        except pyxlsnap.PyxlsnapError as e:
            print(e, file=sys.stderr)

    async def _look_after(self, guest: Guest) -> None:
        while True:
            if not guest.finish:
                await self._try(guest)
            await asyncio.sleep(self._every_s)

    async def _try(self, guest: Guest) -> None:
        try:
            await self._snapshot(guest)
            guest.error = ""
        except pyxlsnap.NeedsAttention as e:
            guest.error, guest.finish = str(e), e.finish or "look at what is left"
        except Exception as e:  # the next snapshot may work
            guest.error = str(e) or type(e).__name__
        guest.doing, guest.percent = "waiting", 0

    async def _snapshot(self, guest: Guest) -> None:
        found = await aio.can_snapshot(guest.domain)
        made = await aio.create_snapshot(
            guest.domain,
            name=f"{PREFIX}{datetime.now():%Y%m%d-%H%M%S}",
            live=found.live,
            on_progress=guest.progress,
        )
        there = sorted(Path(made.cfgfile).parent.glob(f"{PREFIX}*.cfg"))  # in the order of time
        guest.snapshots = list(map(str, there))
        guest.doing = "deleting"
        for cfgfile in there[: -self._keep]:
            await aio.delete_snapshot(cfgfile)
            guest.snapshots.remove(str(cfgfile))

    async def _tell(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        status = [vars(guest) for guest in self._guests]
        writer.write(json.dumps(status, indent=2).encode() + b"\n")
        await writer.drain()
        writer.close()


async def main() -> None:
    """Run until SIGTERM."""
    path, every_s, keep, *domains = sys.argv[1:]
    daemon = asyncio.create_task(Daemon(domains, float(every_s), int(keep)).run(path))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, daemon.cancel)
    try:
        await daemon
    except asyncio.CancelledError:
        print("ended", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
