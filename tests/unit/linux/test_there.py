"""What is not there, and what cannot be looked at."""

import ast
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pyxlsnap.linux import there
from tests.project import PROJECT
from tests.unit.support.unreadable import failing, unreadable

ASKS = [
    there.exists,
    there.lexists,
    there.is_file,
    there.is_dir,
    there.is_block_device,
    there.is_symlink,
]
Ask = Callable[[str | Path], bool]


@pytest.mark.parametrize("ask", ASKS)
def test_what_is_not_there(tmp_path: Path, ask: Ask) -> None:
    (tmp_path / "file").touch()
    for name in ("nothing", "file/below", "a\0b", "x" * 256):
        assert not ask(tmp_path / name)
        assert not ask(str(tmp_path / name))


def test_what_is_there(tmp_path: Path) -> None:
    for name, leads_to in (("link", tmp_path / "file"), ("lost", "nothing"), ("loop", "loop")):
        (tmp_path / name).symlink_to(leads_to)
    (tmp_path / "file").touch()
    found = {
        name: {ask.__name__ for ask in ASKS if ask(tmp_path / name)}
        for name in ("file", ".", "link", "lost", "loop")
    }
    assert found == {
        "file": {"exists", "lexists", "is_file"},
        ".": {"exists", "lexists", "is_dir"},
        "link": {"exists", "lexists", "is_file", "is_symlink"},
        "lost": {"lexists", "is_symlink"},
        "loop": {"lexists", "is_symlink"},
    }


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_what_cannot_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask, number: int
) -> None:
    unreadable(monkeypatch, tmp_path / "file", number)
    with pytest.raises(OSError, match=os.strerror(number)):
        ask(tmp_path / "file")
    assert there.may_exist(tmp_path / "file")
    assert not there.may_exist(tmp_path / "other")


#: who may take a disk that cannot be looked at for one that nobody uses, or a name that no file
#: can have for one that is not there
LENIENT = {
    "delete/operation.py",
    "disks/qcow2/clones.py",
    "guest/checks.py",
    "guest/networks.py",
    "recovery/finish_revert.py",
}


def otherwise(text: str) -> list[str]:
    """The functions that take what cannot be looked at for what is not there, in some Python."""
    named = {*(ask.__name__ for ask in ASKS), "isfile", "isdir", "islink"}
    nodes = [*ast.walk(ast.parse(text))]
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    found = [n for n in nodes if isinstance(n, ast.Attribute) and n.attr in named]
    # (Other classes have an attribute is_file, which is no method.)
    return [ast.unparse(n) for n in found if n in called or ast.unparse(n.value) == "os.path"]


def test_all_modules_ask_here() -> None:
    package = PROJECT / "pyxlsnap"
    modules = {str(p.relative_to(package)): p.read_text() for p in package.rglob("*.py")}
    assert len(modules) > 100
    found = {path: otherwise(text) for path, text in modules.items()}
    assert {path for path, calls in found.items() if "os.path.exists" in calls} == LENIENT
    others = {path: [c for c in calls if c != "os.path.exists"] for path, calls in found.items()}
    assert {path: calls for path, calls in others.items() if calls} == {}


def test_a_module_that_asks_otherwise_is_found() -> None:
    text = "Path(a).exists()\nany(map(os.path.lexists, a))\nlexists(a)\nx.is_dir() or is_dir(x)"
    assert sorted(otherwise(text)) == ["Path(a).exists", "os.path.lexists", "x.is_dir"]


def test_the_names_in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b", "a"):
        (tmp_path / name).touch()
    assert there.names_in(tmp_path) == ["a", "b"]
    assert there.names_in(tmp_path / "nothing") == there.names_in(tmp_path / "a") == []
    monkeypatch.setattr(os, "listdir", failing(os.listdir, str(tmp_path), errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        there.names_in(tmp_path)
