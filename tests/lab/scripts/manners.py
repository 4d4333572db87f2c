"""In dom0: be a host that has children, signals, threads and an event loop of its own.

usage: manners.py low DOMAIN OTHER, or manners.py high DOMAIN. The first does the verbs of libxl in
this process, on both domains at once, the second operations in workers. Prints JSON.
"""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyxlsnap
from pyxlsnap import Toolstack
from pyxlsnap.guest.destroy import destroy
from tests.host_state import changed, children, host_state, inherited_since

PAUSE_S = 0.05
#: has room for the memory of guests
ROOM = "/lab"
MUST_REACH_QEMU = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


def failure(do: Callable[[], object]) -> str:
    """How a call fails."""
    try:
        do()
    except pyxlsnap.PyxlsnapError as e:
        return f"{type(e).__name__}: {e}"
    return "it did not fail"


# libxl in this process


class Children:
    """Programs of the host's own, each of which must end with its own status."""

    def __init__(self) -> None:
        self.ended = 0
        self.wrong: list[tuple[int, int]] = []
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(PAUSE_S):
            status = self.ended % 250
            self._ended(status, subprocess.run(["sh", "-c", f"exit {status}"]).returncode)

    async def run_in_loop(self) -> None:
        while not self.stop.is_set():
            status = self.ended % 250
            child = await asyncio.create_subprocess_exec("sh", "-c", f"exit {status}")
            self._ended(status, await child.wait())
            await asyncio.sleep(PAUSE_S)

    def _ended(self, wanted: int, status: int) -> None:
        self.ended += 1
        if status != wanted:
            self.wrong.append((wanted, status))


class Lines(logging.Handler):
    """Of which operations and domains libxl has said something."""

    def __init__(self) -> None:
        super().__init__()
        self.about: set[tuple[str, str]] = set()
        logger = logging.getLogger("pyxlsnap.libxl")
        logger.addHandler(self)
        logger.setLevel(logging.DEBUG)

    def emit(self, record: logging.LogRecord) -> None:
        self.about.add((vars(record)["operation"], vars(record)["domain"]))


def suspend_and_resume(domain: str, *, live: bool) -> bool:
    """Whether it was suspended in between."""
    with (
        Toolstack(operation="suspend", domain=domain) as host,
        tempfile.TemporaryFile(dir=ROOM) as file,
    ):
        guest = host.find(domain)
        guest.suspend(file.fileno(), live=live)
        suspended = guest.info().suspended
        guest.resume()
        return suspended


def save_and_restore(domain: str) -> int:
    """Its new domid."""
    with (
        Toolstack(operation="restore", domain=domain) as host,
        tempfile.TemporaryFile(dir=ROOM) as file,
    ):
        guest = host.find(domain)
        config = guest.config()
        guest.suspend(file.fileno(), live=False)
        destroy(guest)
        file.seek(0)
        new = host.restore(config, file.fileno())
        new.unpause()
        return new.domid


async def operate(found: dict[str, Any], domain: str, other: str) -> None:
    programs, more = Children(), Children()
    busy = asyncio.gather(asyncio.to_thread(programs.run), more.run_in_loop())
    found["suspended"] = await asyncio.gather(
        asyncio.to_thread(suspend_and_resume, domain, live=False),
        asyncio.to_thread(suspend_and_resume, other, live=True),
    )
    found["restored"] = await asyncio.to_thread(save_and_restore, domain)
    programs.stop.set()
    more.stop.set()
    await busy
    found["programs"] = [programs.ended, more.ended]
    found["wrong"] = programs.wrong + more.wrong


def fork(found: dict[str, Any], before: dict[str, object]) -> None:
    """A host that forks: the child may have a Toolstack of its own only."""
    with Toolstack() as host:
        found["inherited"] = inherited_since(before)
        if not (pid := os.fork()):
            told = failure(host.domains)
            host.close()
            with Toolstack() as own:
                sys.exit(42 if told.startswith("ForkedError") and own.domains() else 1)
        found["child"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found["domains"] = len(host.domains())


def ignore(found: dict[str, Any]) -> None:
    """A host that ignores SIGCHLD, from the beginning or later."""
    with Toolstack() as host:
        previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        found["refused"] = [failure(Toolstack), failure(host.domains)]
        signal.signal(signal.SIGCHLD, previous)


def low(domain: str, other: str) -> dict[str, Any]:
    seen: list[int] = []
    signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
    found: dict[str, Any] = {}
    lines = Lines()
    before = host_state()
    fork(found, before)
    ignore(found)
    asyncio.run(operate(found, domain, other))
    found["signals"] = len(seen)
    found["lines"] = sorted(lines.about)
    found["changed"] = changed(before, host_state())
    return found


# Operations in workers


def abort(progress: pyxlsnap.Progress) -> None:
    """The end of the worker as libxl's abort() would be it."""
    if progress.phase == "memory":
        (supervisor,) = children()
        (worker,) = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        os.kill(int(worker), signal.SIGABRT)


def kept_from_qemu(domain: str) -> list[str]:
    """Signals that the QEMU of a domain does not hear of."""
    path = f"/local/domain/$(xl domid {domain})/image/device-model-pid"
    read = ["sh", "-c", f"xenstore-read {path}"]
    with subprocess.Popen(read, stdout=subprocess.PIPE, text=True) as reading:
        assert reading.stdout
        pid = reading.stdout.read().strip()
    status = Path(f"/proc/{pid}/status").read_text()
    masks = [int(status.split(f"{name}:")[1].split()[0], 16) for name in ("SigBlk", "SigIgn")]
    return [n.name for n in MUST_REACH_QEMU if any(mask >> (n - 1) & 1 for mask in masks)]


def high(domain: str) -> dict[str, Any]:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    found: dict[str, Any] = {}
    before = host_state()

    def look(progress: pyxlsnap.Progress) -> None:
        if progress.phase == "domain now suspended":
            found["meanwhile"] = changed(before, host_state())
            found["inherited"] = inherited_since(before)

    found["aborted"] = failure(lambda: pyxlsnap.create_snapshot(domain, on_progress=abort))
    made = pyxlsnap.create_snapshot(domain, name="manners", monitor=False, on_progress=look)
    found["reverted"] = pyxlsnap.revert_snapshot(domain, made.cfgfile, monitor=False).domid
    found["changed"] = changed(before, host_state())
    found["kept from QEMU"] = kept_from_qemu(domain)
    return found


def main() -> None:
    level, *domains = sys.argv[1:]
    print(json.dumps(low(*domains) if level == "low" else high(*domains)))


if __name__ == "__main__":
    main()
