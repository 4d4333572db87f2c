"""What an operation and its undo need is loaded before a domain is locked, and nothing else."""

import ast
import builtins
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import pyxlsnap
from pyxlsnap import api
from pyxlsnap.cancel import Cancel
from pyxlsnap.create.sequence import Creation
from pyxlsnap.delete.sequence import Deletion
from pyxlsnap.errors import PyxlsnapError, XenError
from pyxlsnap.journal import Journal
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.request import (
    Callbacks,
    CloneConfigurationRequest,
    CloneRequest,
    CreateRequest,
    DeleteCloneRequest,
    DeleteRequest,
    FeasibilityRequest,
    MonitorRequest,
    ReadRequest,
    RecoverRequest,
    Request,
    RevertRequest,
    request_to_plain,
)
from pyxlsnap.revert.sequence import Reversion
from pyxlsnap.worker import modules
from pyxlsnap.worker.server import perform, with_cfgfile
from tests.unit.support import operations
from tests.unit.support.faults import Stepwise, kill
from tests.unit.support.guest import FakeGuest
from tests.unit.support.scenarios import deaths, loads
from tests.unit.support.standin import StandIn
from tests.unit.support.values import UUID
from tests.unit.support.world import World

PACKAGE = Path(pyxlsnap.__file__).parent
CREATE = CreateRequest(domain="vm1")
REVERT = RevertRequest(domain="vm1", cfgfile="/c")
CLONE = CloneRequest(domain="c1", cfgfile="/c")
REQUESTS: dict[str, Request] = {
    "create": CREATE,
    "dry create": CreateRequest(domain="vm1", dry_run=True),
    "revert": REVERT,
    "dry revert": RevertRequest(domain="vm1", cfgfile="/c", dry_run=True),
    "revert, keep_current": RevertRequest(domain="vm1", cfgfile="/c", keep_current=True),
    "dry revert, keep_current": RevertRequest(
        domain="vm1", cfgfile="/c", keep_current=True, dry_run=True
    ),
    "clone": CLONE,
    "dry clone": replace(CLONE, dry_run=True),
    "clone configuration": CloneConfigurationRequest(clone=CLONE),
    "delete clone": DeleteCloneRequest(domain="c1"),
    "read": ReadRequest(cfgfile="/c"),
    "delete": DeleteRequest(cfgfile="/c"),
    "recover": RecoverRequest(domain="vm1"),
    "monitor": MonitorRequest(domain="vm1"),
    "feasibility": FeasibilityRequest(domain="vm1"),
}
LOAD = """
import json, sys
from pathlib import Path
from pyxlsnap import paths
paths.JOURNALS = Path(sys.argv[2])
from pyxlsnap.worker import server
from pyxlsnap.request import request_from_plain
server.modules.load(request_from_plain(json.loads(sys.argv[1])))
print(json.dumps(sorted(sys.modules)))
"""


@cache
def modules_of(kind: str) -> set[str]:
    """Those for a request, where no journal is."""
    return loaded(REQUESTS[kind], Path("/nowhere"))


def loaded(request: Request, journals: Path) -> set[str]:
    """All modules of a process that has loaded those for a request."""
    words = [json.dumps(request_to_plain(request)), str(journals)]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *words], check=True, capture_output=True, text=True
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("kind", REQUESTS)
def test_nothing_else_is_loaded(kind: str, tmp_path: Path) -> None:
    found = loaded(REQUESTS[kind], tmp_path)
    never = {"asyncio", "qemu", "importlib.metadata", "ctypes", "statistics", "secrets", "tqdm"}
    assert not found & {*never, "uuid", "datetime", "argparse", "unittest"}
    folders = {name.split(".")[1] for name in found if name.startswith("pyxlsnap.")}
    wanted = {word for word in ("create", "revert", "delete", "clone") if word in kind}
    assert not {"revert", "delete", "clone"} & folders - wanted
    without = ("monitor", "feasibility", "read", "clone configuration")
    assert ("recovery" in folders) == (kind not in without and not kind.startswith("dry "))


def test_where_a_journal_is_all_recoveries_are_loaded(tmp_path: Path) -> None:
    assert not {*modules.ANY_RECOVERY} <= loaded(CREATE, tmp_path)
    (tmp_path / "x.journal").touch()
    assert {*modules.ANY_RECOVERY} <= loaded(CREATE, tmp_path)


def late_imports() -> Iterator[tuple[str, str]]:
    """Each module that a function of the package imports, with the module of the function."""
    for path in PACKAGE.rglob("*.py"):
        here = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.ImportFrom) and "pyxlsnap" in str(node.module):
                        names = [f"{node.module}.{alias.name}" for alias in node.names]
                        yield from ((here, _module(str(node.module), name)) for name in names)


def _module(package: str, name: str) -> str:
    """What ``from package import name`` loads."""
    there = PACKAGE.parent / name.replace(".", "/")
    return name if there.is_dir() or there.with_suffix(".py").exists() else package


def test_each_late_import_is_of_a_module_that_was_loaded() -> None:
    named = {*modules.ANY_RECOVERY, *(n for r in REQUESTS.values() for n in modules.needed(r))}
    # Not in a worker, or before it has begun.
    elsewhere = ("pyxlsnap.cli.", "pyxlsnap.api", "pyxlsnap.worker.start", "pyxlsnap.worker.warm")
    found = [(here, name) for here, name in late_imports() if not here.startswith(elsewhere)]
    assert len(found) > 10
    assert [(here, name) for here, name in found if name not in named] == []


@dataclass
class Imports:
    """What a process imports while a domain is locked, loaded before or not."""

    names: set[str] = field(default_factory=set)
    locked: bool = False


@pytest.fixture
def imports(monkeypatch: pytest.MonkeyPatch) -> Imports:
    """Notes down all imports from the first lock on."""
    found = Imports()
    real, take = builtins.__import__, DomainLock.__init__

    def importing(
        name: str, scope: Any = None, local: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        if found.locked and name.startswith("pyxlsnap"):
            found.names |= {_module(name, f"{name}.{word}") for word in fromlist or ("",)}
        return real(name, scope, local, fromlist, level)

    def taking(lock: DomainLock, *words: Any, **options: Any) -> None:
        take(lock, *words, **options)
        found.locked = True

    monkeypatch.setattr(builtins, "__import__", importing)
    monkeypatch.setattr(DomainLock, "__init__", taking)
    return found


def do(world: World, kind: str) -> None:
    """Do what a worker does for a request; the domain has a snapshot."""
    request = REQUESTS[kind]
    if isinstance(request, RevertRequest | DeleteRequest | CloneRequest | ReadRequest):
        request = replace(request, cfgfile=str(world.root / "first.cfg"))
    elif isinstance(request, CloneConfigurationRequest):
        clone = replace(request.clone, cfgfile=str(world.root / "first.cfg"))
        request = CloneConfigurationRequest(clone=clone)
    perform(world.host, with_cfgfile(request), Callbacks(), Cancel())


@pytest.fixture
def taken(world: World, imports: Imports) -> World:
    """A guest with a snapshot."""
    world.guest(world.image("xvda"))
    config = SnapshotConfig(name="first", memory_path=str(world.root / "first.save"))
    operations.create(world.host, "vm1", config)
    imports.names.clear()
    imports.locked = False
    return world


@pytest.mark.parametrize("fails", ["", "suspend", "restore", "destroy", "delete xvda"])
@pytest.mark.parametrize("kind", [k for k in REQUESTS if k != "monitor"])
def test_only_what_was_loaded_is_imported_under_the_lock(
    taken: World, imports: Imports, kind: str, fails: str
) -> None:
    if fails:
        taken.fail(fails, XenError("fails"))
    with suppress(PyxlsnapError):
        do(taken, kind)
        assert imports.locked or kind in ("feasibility", "recover", "read", "clone configuration")
    assert imports.names <= modules_of(kind)


def begun(world: World, kind: str) -> Stepwise:
    """The sequence of an operation; for ``keep_current`` that of its snapshot."""
    first = world.root / "first.cfg"
    config = SnapshotConfig(name="first", memory_path=str(world.root / "first.save"))
    if kind == "revert":
        return Reversion(world.host, operations.plan_revert(world.host, "vm1", config, first))
    if kind == "delete":
        return Deletion(operations.plan_delete(world.host, first))
    guest = world.host.find("vm1")
    plan = operations.plan_create(world.host, guest, SnapshotConfig(name="second"))
    return Creation(plan)


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        ("create", "suspend"),
        ("create", "cfgfile"),
        ("revert", "journal"),
        ("revert", "destroy"),
        ("revert", "restore"),
        ("revert, keep_current", "suspend"),
        ("delete", "journal"),
        ("delete", "disk snapshots"),
    ],
)
def test_neither_by_the_recovery_of_a_supervisor(
    taken: World, imports: Imports, kind: str, last: str
) -> None:
    sequence = begun(taken, kind)
    assert last in [name for name, _ in sequence.steps()]
    imports.locked = True
    kill(sequence, last)
    assert Journal(UUID).path.exists()
    operations.recover(taken.host, UUID)
    assert any(name.startswith(("pyxlsnap.recovery", "pyxlsnap.delete")) for name in imports.names)
    assert imports.names <= modules_of(kind)


@pytest.mark.parametrize(("has_qemu", "asked"), [(True, ["asks", "lock"]), (False, ["lock"])])
@pytest.mark.parametrize("kind", ["create", "delete", "revert", "revert, keep_current"])
def test_a_guest_with_a_qemu_is_told_of_before_the_lock(
    taken: World, monkeypatch: pytest.MonkeyPatch, kind: str, has_qemu: bool, asked: list[str]
) -> None:
    seen: list[str] = []
    pid = os.getpid() if has_qemu else None
    monkeypatch.setattr(FakeGuest, "device_model_pid", lambda _: pid)
    request = REQUESTS[kind]
    if isinstance(request, RevertRequest | DeleteRequest):
        request = replace(request, cfgfile=str(taken.root / "first.cfg"))
    callbacks = Callbacks(
        will_ask_qemu=lambda: seen.append("asks"), share_lock=lambda *_: seen.append("lock")
    )
    with suppress(PyxlsnapError):
        perform(taken.host, with_cfgfile(request), callbacks, Cancel())
    assert seen[: len(asked)] == asked


@pytest.mark.usefixtures("nothing_is_left")
class TestConnectionToQemu:
    def test_is_loaded_by_worker_and_supervisor(self, worker: StandIn) -> None:
        worker.set(loads.qmp_and_dies, recover=loads.says_what_the_supervisor_has)
        with pytest.raises(PyxlsnapError, match="the worker process was killed"):
            api.create_snapshot("vm1")
        assert worker.said("worker") == "[False, True]"
        assert worker.said() == "True"

    def test_is_not_loaded_if_nobody_asks(self, worker: StandIn) -> None:
        worker.set(deaths.with_the_lock_by_itself, recover=loads.says_what_the_supervisor_has)
        with pytest.raises(PyxlsnapError, match="the worker process was killed"):
            api.create_snapshot("vm1")
        assert worker.said() == "False"

    def test_is_loaded_by_the_worker_alone_if_the_supervisor_is_dead(self, worker: StandIn) -> None:
        worker.set(loads.qmp_without_a_supervisor)
        assert api.create_snapshot("vm1").name == "snap"
        assert worker.said("worker") == "[False, True]"
