"""In dom0: run a command of pyxlsnap, and do something to it at one point of its sequence.

usage: fault.py CASE, a JSON object (tests/lab/faults.py, Case). Prints JSON: how the command ended,
and the seconds from the blow to the guest's first new line.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TICK = re.compile(rb"TICK n=\d+ .*\n")
POLL_S = 0.02
WAIT_S = 300.0
LATE_S = 1.0


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"waited {WAIT_S:.0f} s for {what}")
        time.sleep(POLL_S)


def processes(words: str) -> list[int]:
    """The processes whose command line has these words; ours has all of them."""
    return [pid for pid, line in command_lines() if words in line and pid != os.getpid()]


def command_lines() -> Iterator[tuple[int, str]]:
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            line = (directory / "cmdline").read_bytes()
        except OSError:
            continue  # it has just ended
        yield int(directory.name), line.replace(b"\0", b" ").decode(errors="replace")


def victims(who: str, sequence: int, caller: int) -> list[int]:
    workers = [sequence, parent(sequence)]
    return {
        "worker": [sequence],
        "caller": [caller],
        "worker and supervisor": workers,
        "all": [caller, *workers],
        "helper": processes("libxl-save-helper"),
    }[who]


def parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def strike(who: str, sequence: int, caller: int) -> None:
    if who in ("SIGTERM", "SIGINT"):
        os.kill(caller, signal.Signals[who])
        return
    found = victims(who, sequence, caller)
    if len(found) > 1:  # at once: none may see another die
        for pid in found:
            os.kill(pid, signal.SIGSTOP)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    if not found:
        sys.exit(f"there is no {who} to kill")


def is_there(what: str, domain: str) -> bool:
    """Whether the domain is asked to suspend, or a process of that command line runs."""
    return requested(domain) if what == "request" else bool(processes(what))


def requested(domain: str) -> bool:
    domid = subprocess.run(["xl", "domid", domain], capture_output=True, text=True).stdout.strip()
    path = f"/local/domain/{domid}/control/shutdown"
    return subprocess.run(["xenstore-read", path], capture_output=True).stdout == b"suspend\n"


def main() -> None:
    # The lab's agent was started in the background, so that its commands ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    case = json.loads(sys.argv[1])
    directory = Path(tempfile.mkdtemp(prefix="fault."))
    reached = directory / "reached"
    fault = {"POINT": case["point"], "DO": case["do"], "DIR": str(directory)}
    environment = {f"FAULT_{key}": value for key, value in fault.items()}
    with (directory / "out").open("w+") as out, (directory / "err").open("w+") as err:
        process = subprocess.Popen(
            case["command"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=os.environ | environment | {"PYTHONPATH": "/tmp/points"},
        )
        until(lambda: reached.exists() or process.poll() is not None, case["point"])
        if not reached.exists():
            sys.exit(f"never came to {case['point']!r}: {(directory / 'err').read_text()}")
        seconds = act(case, process, int(reached.read_text()), directory)
        until(lambda: process.poll() is not None, "the end of the command")
        said = {"out": (directory / "out").read_text(), "err": (directory / "err").read_text()}
    print(json.dumps({"rc": process.returncode, **said, "seconds": seconds}))


def act(
    case: dict[str, Any], process: subprocess.Popen[Any], sequence: int, directory: Path
) -> float | None:
    """All that is done at the point; seconds until the guest counts again."""
    if case["meanwhile"]:
        subprocess.run(["sh", "-ec", case["meanwhile"]], check=True)
        (directory / "go").touch()
    if what := case["wait_for"]:
        until(lambda: is_there(what, case["domain"]) or process.poll() is not None, what)
        if process.poll() is not None:
            sys.exit(f"{what} never came: {(directory / 'err').read_text()}")
    log = Path(case["log"])
    size, begun = log.stat().st_size, time.monotonic()
    if case["who"]:
        strike(case["who"], sequence, process.pid)
    if case["later"]:
        time.sleep(LATE_S)
        subprocess.run(["sh", "-ec", case["later"]], check=True)
    if case["who"] in ("", "all", "helper"):
        return None  # it may take a person to bring it back

    def counts() -> bool:
        with log.open("rb") as file:
            file.seek(size)
            return bool(TICK.search(file.read()))

    until(counts, "the guest")
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
