"""The command line's worker is a copy of its process; that of a program is a new Python."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.support.scenarios import apart, ordinary
from tests.unit.support.standin import StandIn

pytestmark = pytest.mark.usefixtures("nothing_is_left")

# A process like that of the command line, but one that has what a worker must not have.
PROGRAM = """
import atexit, os, resource, signal, sys, threading
from pathlib import Path
here = Path({here!r})
mine = open(here / "mine", "w")
os.dup2(mine.fileno(), 200)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
signal.signal(signal.SIGUSR1, lambda *_: None)
def note(what):
    with open(here / "ended", "a") as file:
        file.write(what + " ")
atexit.register(note, "exit handler")
{first}
from pyxlsnap.cli.app import main
try:
    status = main({arguments})
finally:
    note("finally")
print("the end")
sys.exit(status)
"""
A_THREAD = "threading.Thread(target=threading.Event().wait, daemon=True).start()"
THE_WORKERS = {
    "session": True,
    "cwd": "/",
    "files": [],
    "streams": ["/dev/null", "/dev/null"],
    "SIGINT": True,
    "SIGUSR1": True,
    "root": [30, 0],
}


def run(worker: StandIn, *, first: str = "", arguments: str = "") -> tuple[str, str]:
    """Run the program; what it wrote to its streams."""
    program = PROGRAM.format(here=str(worker.here), first=first, arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", program, "-v", "snapshot-create", "vm1"],
        capture_output=True,
        text=True,
    )
    assert "the end" in done.stdout
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("first", "arguments", "name"),
    [
        ("", "", "xlsnap-worker"),
        (A_THREAD, "", Path(sys.executable).name),
        ("", "['snapshot-create', 'vm1']", Path(sys.executable).name),
    ],
    ids=["the command line", "with a thread", "called by a program"],
)
def test_it_has_nothing_of_its_callers(
    worker: StandIn, first: str, arguments: str, name: str
) -> None:
    worker.set(apart.says_what_it_has)
    said, _ = run(worker, first=first, arguments=arguments)
    assert said.count("the end") == 1
    assert ast.literal_eval(worker.said()) == {"name": name, **THE_WORKERS}
    assert (worker.here / "ended").read_text() == "finally exit handler "


def test_it_writes_nothing_that_its_caller_has_not_yet_written(worker: StandIn) -> None:
    worker.set(apart.noisy)
    said, _ = run(worker, first="print('once')")
    assert said.count("once") == 1
    assert "noise" not in said


def test_it_starts_although_its_callers_stderr_is_full(worker: StandIn) -> None:
    worker.set(apart.says_what_it_has)
    run(worker, first="sys.stderr = open('/dev/full', 'w'); sys.stderr.write('not written')")
    assert ast.literal_eval(worker.said())["name"] == "xlsnap-worker"


def test_a_copy_ends_although_its_last_words_cannot_be_written() -> None:
    code = (
        "import sys; from pyxlsnap.linux.fork import leave\n"
        "sys.stderr = open('/dev/full', 'w'); sys.stderr.write('not written')\n"
        "try: leave(3)\nfinally: print('of the original')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")


def test_it_cannot_load_its_modules(worker: StandIn) -> None:
    worker.set(ordinary.taken)
    broken = "import sys; sys.modules['pyxlsnap.worker.server'] = None"
    _, errors = run(worker, first=broken)
    line = "the worker process ended with status 1: ModuleNotFoundError: import of "
    assert f"pyxlsnap: {line}pyxlsnap.worker.server halted" in errors
    assert "everything is as before" in errors
    assert (worker.here / "ended").read_text() == "finally exit handler "
