"""What needs no Xen: the stream writer beside dd, and the commands until they ask libxl."""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pyxlsnap import paths
from tests.bench.backup import costs
from tests.bench.figures import Spreads, spreads
from tests.bench.in_lab import PAIRS, pair
from tests.bench.running import timed
from tests.bench.writer import of_memory
from tests.lab.harness import cache
from tests.project import PROJECT

#: how often each command is measured at least: it takes a moment, and the figures are small
_COMMAND_ROUNDS: Final = 9
#: memory of the made-up guests
GIB: Final = 2.0
_CFGFILE: Final = 'name = "before"\nmemory_path = "/nowhere/web1.save"\n'
#: how a command ends here when it has asked libxl
_NO_XEN: Final = "cannot talk to Xen"


def writer(rounds: int, recorded: Path, say: cache.Say) -> dict[str, Any]:
    """The stream writer and dd, on made-up streams, and on the recorded one if it is there."""
    say(f"the stream writer, beside dd, with made-up guests of {GIB:.0f} GiB")

    def told(name: str, found: Mapping[str, Spreads]) -> None:
        cpu = {who: found[who]["cpu_seconds"]["median"] for who in ("dd", "writer")}
        say(f"  {name}: CPU of dd {cpu['dd']:.2f} s, of the writer {cpu['writer']:.2f} s")

    there = [recorded] if recorded.exists() else []
    return {"gib": GIB, "streams": of_memory(GIB, rounds, recorded.parent, there, told)}


def backups(directory: Path, say: cache.Say) -> dict[str, Any]:
    """What a second memory file costs a backup, for each pair of files that is there."""
    say("what a second memory file costs a backup")
    pairs = {name: [directory / file for file in pair(name)] for name in PAIRS}
    return {name: costs(*files) for name, files in pairs.items() if all(f.exists() for f in files)}


def words(cfgfile: Path) -> dict[str, list[str]]:
    """Every command; none of them finds a Xen here."""
    commands = {
        "snapshot-create": ["snapshot-create", "web1"],
        "snapshot-revert": ["snapshot-revert", "web1", str(cfgfile)],
        "snapshot-clone": ["snapshot-clone", str(cfgfile), "web2"],
        "snapshot-recover": ["snapshot-recover", "web1"],
    }
    dry = {
        f"{name} --dry-run": [*commands[name], "--dry-run"]
        for name in ("snapshot-create", "snapshot-revert", "snapshot-clone")
    }
    return {"--help": ["--help"], **commands, **dry}


def command_rounds(rounds: int) -> int:
    """How often :func:`commands` measures, if all else is measured so often."""
    return max(rounds, _COMMAND_ROUNDS)


def commands(rounds: int, say: cache.Say) -> dict[str, Any]:
    """The processor time that each command uses until it asks libxl.

    Here this ends the command, because there is no Xen. On a Xen host nothing is measured: the
    commands would do what they say.
    """
    if (paths.PROC / "xen").exists():
        say("this is a Xen host: the commands are not measured")
        return {}
    say("the commands, until they ask libxl")
    rounds = command_rounds(rounds)
    with tempfile.TemporaryDirectory() as directory:
        cfgfile = Path(directory, "web1.cfg")
        cfgfile.write_text(_CFGFILE)
        known = words(cfgfile)
        for given in known.values():  # compiled once, as the modules of an installed package are
            _run(given, directory)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in known}
        for _ in range(rounds):
            for name, given in known.items():
                found[name].append(_run(given, directory))
        figures = {name: spreads(figures) for name, figures in found.items()}
        return figures | {"import pyxlsnap": spreads(_import(directory) for _ in range(rounds))}


def _import(compiled: str) -> dict[str, float]:
    """What the import takes beyond the start of Python."""
    done, start = (
        timed(sys.executable, "-c", text, env=_environment(compiled))
        for text in ("import pyxlsnap", "pass")
    )
    return {
        "cpu_s": max(done.cpu_seconds - start.cpu_seconds, 0.0),
        "whole_s": max(done.seconds - start.seconds, 0.0),
    }


def _environment(compiled: str) -> dict[str, str]:
    env = os.environ | {"PYTHONPATH": str(PROJECT), "PYTHONPYCACHEPREFIX": compiled}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return env


def _run(given: list[str], compiled: str) -> dict[str, float]:
    env = _environment(compiled)
    done = timed(sys.executable, "-m", "pyxlsnap", *given, may_fail=True, env=env)
    if given != ["--help"] and _NO_XEN not in done.out:
        raise RuntimeError(f"{given} did not ask libxl: {done.out}")
    return {"cpu_s": done.cpu_seconds, "whole_s": done.seconds}
