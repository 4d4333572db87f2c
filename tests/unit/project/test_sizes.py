"""Modules and functions stay small enough to be read, and layers few (CONTRIBUTING.md)."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import pytest

from tests.project import PROJECT

PACKAGE = PROJECT / "pyxlsnap"
MODULES = sorted(PACKAGE.rglob("*.py"))
#: the public functions are here; each names all its options
PUBLIC = ("api/__init__.py", "api/clones.py", "api/cloner.py", "aio/__init__.py", "aio/cloner.py")
MOST_LINES, MOST_BODY, MOST_MEAN, MOST_PARAMETERS = 350, 45, 9, 6
MOST_LAYERS = 14

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def body(function: Function) -> int:
    """The lines of a function without its docstring, which may be long for a public one."""
    documented = ast.get_docstring(function, clean=False) is not None
    return lines(function) - (lines(function.body[0]) if documented else 0)


def parameters(function: Function) -> int:
    named = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return len([one for one in named if one.arg not in ("self", "cls")])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_and_its_functions_are_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES
    assert [f.name for f in functions(path) if body(f) > MOST_BODY] == []
    if str(path.relative_to(PACKAGE)) not in PUBLIC:
        many = [f.name for f in functions(path) if parameters(f) > MOST_PARAMETERS]
        assert many == []


def test_most_functions_are_short() -> None:
    found = [body(function) for path in MODULES for function in functions(path)]
    assert len(found) > len(MODULES)
    assert mean(found) < MOST_MEAN


def test_the_layers_are_few() -> None:
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [one["layers"] for one in contracts["contracts"] if one["type"] == "layers"]
    assert 10 < len(layers) <= MOST_LAYERS
