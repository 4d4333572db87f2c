"""In dom0: commands with their times, and the waits between two measurements."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

#: a guest must say so many lines that all is well before the next measurement
TICKS = 2
WAIT_S = 300.0
#: limit of anything that is not itself measured
LIMIT_S = 600.0


@dataclass(frozen=True)
class Done:
    """A command that has worked."""

    seconds: float
    #: of the command and of the children that it has waited for
    cpu_seconds: float
    out: str


def timed(*words: str, may_fail: bool = False, env: dict[str, str] | None = None) -> Done:
    """Run a command to its end.

    :raises SystemExit: it failed; what it said.
    """
    # Into files: a daemon that the command leaves behind would keep a pipe open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        begun = time.monotonic()
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)  # else Popen would wait for it
        out.seek(0)
        err.seek(0)
        if process.returncode and not may_fail:
            sys.exit(f"{' '.join(words)}: status {process.returncode}\n{err.read()}{out.read()}")
        said = out.read() + (err.read() if may_fail else "")
    return Done(seconds, used.ru_utime + used.ru_stime, said)


def await_end(pid: int | None) -> None:
    """Wait for the end of a QEMU: until then it may write to its images."""
    end = time.monotonic() + LIMIT_S
    while pid and Path(f"/proc/{pid}").exists():
        if time.monotonic() > end:
            sys.exit(f"the QEMU of the domain, {pid}, does not end")
        time.sleep(0.02)


def settle_log(domain: str, log: Path) -> None:
    """Wait until a guest has said some lines that all is well."""
    mark, end = log.stat().st_size, time.monotonic() + WAIT_S
    while True:
        with log.open("rb") as file:
            file.seek(mark)
            said = file.read().split(b"\n")[:-1]
        lines = [line for line in said if b"TICK n=" in line and b" boot=" in line]
        if any(b" bad=0 " not in line for line in lines) or time.monotonic() > end:
            sys.exit(f"{domain} is not well, or says nothing: {said[-5:]}")
        if len(lines) >= TICKS:
            return
        time.sleep(0.05)
