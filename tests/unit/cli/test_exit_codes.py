"""Every exit status of the documentation, by the whole way from the command line.

Each message names the culprit and the way out; what is refused or failed has changed nothing.
"""

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from pyxlsnap import errors
from pyxlsnap.cli.parser import build_parser
from pyxlsnap.errors import PyxlsnapError
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.model import Disk
from pyxlsnap.model import SnapshotConfig as Config
from tests.unit.support import operations, scenes
from tests.unit.support.guest import config_of
from tests.unit.support.hosted import ROOT, Hosted, Scene, state
from tests.unit.support.trees import tree
from tests.unit.support.values import UUID

# What is documented


def documented(lines: str, pattern: str) -> set[int]:
    """The statuses that a text has."""
    found = re.findall(pattern, lines, re.MULTILINE)
    return {int(code) for codes in found for code in codes.split(", ")}


#: the man page has its statuses from the help; test_docs.py compares
HELP = documented(build_parser().epilog or "", r"^  (\d+(?:, \d+)*)  ")
PAGE = documented((ROOT / "docs/troubleshooting.rst").read_text(), r"^\*\*(\d+(?:, \d+)*)\*\*$")
README = documented((ROOT / "README.md").read_text(), r"(?:Exit status|;) (\d)\b")


def test_the_pages_and_the_help_have_the_same() -> None:
    assert len(HELP) == 8
    assert PAGE == HELP
    assert README <= HELP
    assert {0, 1, 4, 5} <= README


def test_every_status_has_a_scenario() -> None:
    assert {s.code for s in SCENARIOS} == HELP


def test_every_error_ends_with_a_documented_status() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    codes = {c.exit_code for c in classes if issubclass(c, PyxlsnapError)}
    # 143 is the same as 130, by another signal; 0 is no error's.
    assert codes == HELP - {0, 143}


# What is there beforehand


def nothing(_: Hosted) -> None:
    pass


def cfgfile(text: str) -> Callable[[Hosted], None]:
    def write(host: Hosted) -> None:
        (host.world.root / "a.cfg").write_text(text.format(memory_file(host)))

    return write


def held(host: Hosted) -> None:
    DomainLock(UUID, domain="vm1")  # until this process closes it: the fixture does


def truncated(host: Hosted) -> None:
    memory = memory_file(host)
    os.truncate(memory, memory.stat().st_size - 5)


def killed(host: Hosted) -> None:
    found = host.run("snapshot-create", "vm1", "--name=other", scene=scenes.everybody_is_killed)
    assert found.returncode == -signal.SIGKILL
    assert host.guest.suspended


def suspended(host: Hosted) -> None:
    host.guest.suspended = True


def unmeasured(host: Hosted) -> None:
    """The snapshot of the small world may have taken less than any limit."""
    (host.world.root / "run" / f"{UUID}.times").unlink()


def much_memory(host: Hosted) -> None:
    host.guest.memory_kb = 1 << 50


def another_xen(host: Hosted) -> None:
    host.world.host.version = (4, 99)


def another_disk(host: Hosted) -> None:
    before = host.guest.configuration
    disks = (*before.disks, Disk("xvdz", "/dev/null", "raw"))
    host.guest.configuration = config_of(*disks, kernel=str(host.world.kernel))


def memory_file(host: Hosted) -> Path:
    return host.world.directory / UUID / "snap.save"


@dataclass(frozen=True)
class Scenario:
    """One command, and what it must say."""

    name: str
    code: int
    #: ``CFG`` is the cfgfile of the snapshot that is there
    words: str
    #: each is in the message: the culprit, and the way out
    says: tuple[str, ...] = ()
    scene: Scene = scenes.plain
    before: Callable[[Hosted], None] = field(default=nothing, repr=False)


CREATE = "snapshot-create vm1 --name other"
REVERT = "snapshot-revert vm1 CFG"
CLONE = "snapshot-clone CFG vm1-a"
AS_BEFORE = "everything is as before"
SCENARIOS = (
    Scenario("create", 0, CREATE, ("snapshot other of vm1", "revert: pyxlsnap snapshot-revert")),
    Scenario("create-dry", 0, f"{CREATE} --dry-run", ("would take snapshot other of vm1",)),
    Scenario("revert", 0, REVERT, ("vm1 is back at snap and running",)),
    Scenario("revert-dry", 0, f"{REVERT} --dry-run", ("would revert vm1 to snap",)),
    Scenario("revert-keeping", 0, f"{REVERT} --keep-current", ("undo this revert: pyxlsnap",)),
    Scenario("clone", 0, CLONE, ("vm1-a is cloned from snap and running", "delete: xl destroy")),
    Scenario("clone-dry", 0, f"{CLONE} --dry-run", ("would make the clone vm1-a of snap",)),
    Scenario("recover", 0, "snapshot-recover vm1", ("resumed vm1",), before=killed),
    Scenario("recover-all", 0, "snapshot-recover", ("resumed vm1", UUID), before=killed),
    Scenario("recover-nothing", 0, "snapshot-recover", ("nothing to recover",)),
    Scenario("disk", 1, CREATE, ("vm1", "xvdb: the pool is full", AS_BEFORE), scenes.disk_fails),
    Scenario("late", 1, CREATE, ("vm1", "xvda: no, said", AS_BEFORE), scenes.last_step_fails),
    Scenario("worker", 1, CREATE, ("worker process was killed", AS_BEFORE),
             scenes.worker_is_killed),
    Scenario("destroy", 1, REVERT, ("vm1 to snap failed", "nothing was changed"),
             scenes.no_destroy),
    Scenario("option", 2, "snapshot-create vm1 --nonsense", ("--nonsense", "pyxlsnap --help")),
    Scenario("command", 2, "snapshot-list", ("snapshot-list", "snapshot-create", "--help")),
    Scenario("name", 2, "snapshot-create vm1 --name 123", ("'123'", "add a letter")),
    Scenario("name-text", 2, "snapshot-create vm1 --name a/b", ("'a/b'", "only letters, digits")),
    Scenario("seconds", 2, f"{CREATE} --max-downtime soon", ("--max-downtime", "'soon'", "--help")),
    Scenario("no-cfgfile", 2, "snapshot-create vm1 no.cfg", ("/no.cfg: cannot be read: No such",)),
    Scenario("key", 2, "snapshot-create vm1 a.cfg", ("/a.cfg: nam:", "did you mean name?"),
             before=cfgfile("nam = 'x'\n")),
    Scenario("syntax", 2, "snapshot-create vm1 a.cfg", ("/a.cfg", "1: ", "syntax error"),
             before=cfgfile("name = = 'x'\n")),
    Scenario("item", 2, "snapshot-create vm1 a.cfg", ("/a.cfg: disk 'xvda'", "path,format,device"),
             before=cfgfile("disks = ['xvda']\n")),
    Scenario("vdev", 2, "snapshot-create vm1 a.cfg", ("vm1 has no disk xvdz", "xvda, xvdb"),
             before=cfgfile("disks = [',,xvdz']\n")),
    Scenario("no-memory", 2, "snapshot-revert vm1 a.cfg",
             ("/a.cfg: memory_path", "use the cfgfile that snapshot-create wrote"),
             before=cfgfile("name = 'snap'\n")),
    Scenario("other-name", 2, "snapshot-revert vm1 a.cfg",
             ("/a.cfg: name", "'else'", "'snap'", "use the cfgfile of snapshot"),
             before=cfgfile("name='else'\nmemory_path='{}'\n")),
    Scenario("no-domain", 3, "snapshot-create vm9", ("'vm9'", "did you mean 'vm1'?")),
    Scenario("like-none", 3, "snapshot-create web", ("no domain 'web' (see `xl list`)",)),
    Scenario("other-domain", 3, "snapshot-revert vm9 CFG", ("'vm9'", "'vm1': use this name")),
    Scenario("recover-none", 3, "snapshot-recover vm9", ("'vm9'", "see `xl list`")),
    Scenario("busy", 3, CREATE,
             ("vm1 is under way", f"{UUID}.lock", "wait until that operation has ended"),
             before=held),
    Scenario("recover-busy", 3, "snapshot-recover vm1",
             ("under way", "wait until that operation has ended"), before=held),
    Scenario("taken", 3, "snapshot-create vm1 --name snap",
             ("snap.save exists", "left as it is", "choose another name")),
    Scenario("damaged", 3, REVERT, ("snap.save: truncated", "use another copy"), before=truncated),
    Scenario("memory-gone", 3, REVERT, ("snap.save: cannot be read: No such file",),
             before=lambda host: memory_file(host).unlink()),
    Scenario("unfinished", 3, CREATE,
             ("create of vm1 (snapshot other)", f"run `pyxlsnap snapshot-recover {UUID}` first"),
             before=killed),
    Scenario("suspended", 3, CREATE,
             ("vm1 is suspended", f"`pyxlsnap snapshot-recover {UUID}`"), before=suspended),
    Scenario("slow", 3, f"{CREATE} --max-downtime 0.001",
             ("vm1 is expected", "0.001 s", "take a live snapshot (--live)"), before=unmeasured),
    Scenario("space", 3, CREATE, ("MiB free", "name another place with memory_path"),
             before=much_memory),
    Scenario("directory", 3, "snapshot-create vm1 a.cfg", ("memory_path /none/m", "make it first"),
             before=cfgfile("memory_path = '/none/m'\n")),
    Scenario("resume", 4, CREATE, ("vm1", "cannot be resumed", "nothing was deleted"),
             scenes.no_resume),
    Scenario("restore", 4, REVERT, ("vm1 is off", "the snapshot is intact"), scenes.no_restore),
    Scenario("xen", 5, REVERT, ("vm1 is risky", "4.99", "anyway, add --force"), before=another_xen),
    Scenario("disks", 5, REVERT, ("vm1", "xvdz", "anyway, add --force"), before=another_disk),
    Scenario("ctrl-c", 130, CREATE, ("vm1 was interrupted", AS_BEFORE), scenes.sigint),
    Scenario("stopped", 143, CREATE, ("vm1 was interrupted", AS_BEFORE), scenes.sigterm),
)  # fmt: skip


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hosted:
    """A host with a guest of two disks, which has gone on since its snapshot ``snap``."""
    found = Hosted(tmp_path, monkeypatch)
    guest = found.world.guest(found.world.image("xvda", "then"), found.world.image("xvdb", "then"))
    guest.memory = "then"
    operations.create(found.world.host, "vm1", Config("snap"))
    found.world.storage.content |= {"xvda": "now", "xvdb": "now"}
    guest.memory = "now"
    return found


@pytest.fixture(autouse=True)
def _locks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A lock that a scenario takes falls with it."""
    taken: list[DomainLock] = []
    init = DomainLock.__init__

    def remember(self: DomainLock, *arguments: Any, **options: Any) -> None:
        taken.append(self)
        self.fd = -1
        init(self, *arguments, **options)

    monkeypatch.setattr(DomainLock, "__init__", remember)
    yield
    for lock in taken:
        lock.release()


def run(host: Hosted, scenario: Scenario, *options: str) -> subprocess.CompletedProcess[str]:
    words = scenario.words.replace("CFG", str(memory_file(host).with_suffix(".cfg")))
    return host.run(*options, *words.split(), scene=scenario.scene)


def changed_by(host: Hosted, act: Callable[[], Any]) -> tuple[Any, bool]:
    """What it gives, and whether any file, disk or guest is not as before."""
    before = (tree(host.world.root), state(host.world))
    found = act()
    return found, (tree(host.world.root), state(host.world)) != before


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: f"{s.code}-{s.name}")
def test_a_scenario(host: Hosted, scenario: Scenario) -> None:
    scenario.before(host)
    found, changed = changed_by(host, lambda: run(host, scenario))
    assert found.returncode == scenario.code, found.stderr
    if scenario.code == 0:
        assert found.stderr == ""
        assert [s for s in scenario.says if s not in found.stdout] == []
        assert host.guest.runs
        assert not (changed and "--dry-run" in scenario.words)
        return
    said = check_stderr(scenario, found.stderr)
    assert found.stdout == ""
    assert [s for s in scenario.says if s not in said] == []
    assert changed == (scenario.code == 4)


def check_stderr(scenario: Scenario, stderr: str) -> str:
    """Exactly the lines that there should be; returns the message."""
    lines = stderr.splitlines()
    if scenario.code in (130, 143):
        assert lines.pop(0) == "interrupted: ending as soon as it is safe"
    if scenario.code == 4:
        assert lines.pop().startswith("pyxlsnap: to finish: pyxlsnap ")
    (line,) = lines
    assert line.startswith("pyxlsnap: ")
    assert "Traceback" not in line
    assert "internal error" not in line
    return line


SCHEMA = json.loads((ROOT / "docs/share/pyxlsnap/pyxlsnap.schema.json").read_text())
FIRST = {s.code: s for s in reversed(SCENARIOS)}
#: one of each status, and all that is done
AS_JSON = [s for s in SCENARIOS if s.code == 0 or s is FIRST[s.code]]


@pytest.mark.parametrize("scenario", AS_JSON, ids=lambda s: f"{s.code}-{s.name}")
def test_the_same_as_json(host: Hosted, scenario: Scenario) -> None:
    scenario.before(host)
    found = run(host, scenario, "--json")
    document = json.loads(found.stdout)
    Draft202012Validator(SCHEMA).validate(document)
    assert found.returncode == document["exit_code"] == scenario.code
    assert document["command"] == ("" if scenario.code == 2 else scenario.words.split()[0])
    if scenario.code:
        assert document["error"]["message"] in check_stderr(scenario, found.stderr)
        assert "result" not in document
    else:
        assert found.stderr == ""
        if scenario.name == "create":
            assert document["result"]["name"] == "other"
    if scenario.code == 4:
        assert found.stderr.endswith(f"to finish: {document['error']['finish']}\n")


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.code == 4], ids=lambda s: s.name)
def test_the_command_that_finishes_it_does(host: Hosted, scenario: Scenario) -> None:
    found = run(host, scenario)
    command = shlex.split(found.stderr.splitlines()[-1].removeprefix("pyxlsnap: to finish: "))
    assert command.pop(0) == "pyxlsnap"
    finished = host.run(*command)
    assert (finished.returncode, host.guest.runs) == (0, True), finished.stderr
    then = "then" if scenario.name == "restore" else "now"
    assert (host.guest.memory, host.world.storage.content["xvda"]) == (then, then)


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.code == 5], ids=lambda s: s.name)
def test_force_does_what_is_risky(host: Hosted, scenario: Scenario) -> None:
    scenario.before(host)
    words = scenario.words.replace("CFG", str(memory_file(host).with_suffix(".cfg")))
    found = host.run(*words.split(), "--force")
    assert (found.returncode, host.guest.memory) == (0, "then")
    assert found.stderr.startswith("pyxlsnap: warning: ")
