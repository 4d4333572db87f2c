"""The modules of the tests: nothing is imported from a module that has tests in it."""

import ast
from collections.abc import Iterator
from pathlib import Path

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
