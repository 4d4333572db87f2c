"""The modules of the tests: what they may import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project import PROJECT

TESTS = "test_"


def imported(source: ast.Module) -> Iterator[str]:
    """Every module that an import names, and every name that may be one."""
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def of_tests(module: Path) -> list[str]:
    """What a module imports from modules called ``test_…``."""
    names = imported(ast.parse(module.read_text()))
    return [name for name in names if any(part.startswith(TESTS) for part in name.split("."))]


def test_no_module_imports_from_a_module_of_tests() -> None:
    modules = sorted((PROJECT / "tests").rglob("*.py"))
    assert len(modules) > 100
    found = {str(path.relative_to(PROJECT)): of_tests(path) for path in modules}
    assert {path: names for path, names in found.items() if names} == {}


def test_an_import_of_a_name_or_of_the_whole_module_is_seen(tmp_path: Path) -> None:
    module = tmp_path / "a.py"
    for text in (
        "from tests.unit.test_a import tree",
        "def f():\n    from tests.unit import test_a",
        "import tests.unit.test_a",
        "import tests.unit.test_a as a",
        "from .test_a import tree",
        "from . import test_a",
    ):
        module.write_text(text)
        assert len(of_tests(module)) == 1, text
    module.write_text("from tests.unit.support import trees\nimport tests.project")
    assert of_tests(module) == []


@pytest.mark.parametrize("site", ["hosted", "standin_site", "monitor_site", "rig"])
def test_what_a_worker_loads_is_loaded_quickly(site: str) -> None:
    """Hundreds of processes load these: pytest and hypothesis would take each of them 0.2 s."""
    program = f"import sys, tests.unit.support.{site}; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert {"pytest", "hypothesis"}.isdisjoint(found.stdout.split())
