"""The edge to libxl, and what importing the package does."""

import ast
import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

import pyxlsnap
from tests.unit.support.resources import PACKAGE, python


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{a.name}" for a in node.names} | {str(node.module)}
    return found


@pytest.mark.parametrize(
    ("extension", "importer"), [("_ffi", "xen/ffi.py"), ("_stream", "memory/writer.py")]
)
def test_one_module_imports_each_extension(extension: str, importer: str) -> None:
    importers = {
        str(p.relative_to(PACKAGE))
        for p in PACKAGE.rglob("*.py")
        if any(re.search(rf"(^|\.){extension}(\.|$)", name) for name in imports_of(p))
    }
    assert importers == {importer}


def test_the_stream_writer_needs_no_libxl() -> None:
    (extension,) = (PACKAGE / "memory").glob("_stream*.so")
    needed = subprocess.run(
        ["readelf", "--dynamic", extension], check=True, capture_output=True, text=True
    )
    assert "libc.so" in needed.stdout
    assert "xen" not in needed.stdout


def test_cdata_stays_in_xen() -> None:
    users = {
        p.parent.name
        for p in PACKAGE.rglob("*.py")
        if {"pyxlsnap.xen.ffi.C", "pyxlsnap.xen.ffi.ffi"} & imports_of(p)
    }
    assert users == {"xen"}


def test_importing_starts_no_thread_and_handles_no_signal() -> None:
    code = (
        "import signal, threading\n"
        "before = [signal.getsignal(n) for n in signal.valid_signals()]\n"
        "import pyxlsnap, pyxlsnap.worker.server, pyxlsnap.cli.app\n"
        "assert threading.active_count() == 1\n"
        "assert before == [signal.getsignal(n) for n in signal.valid_signals()]\n"
    )
    run = python(code)
    assert (run.returncode, run.stderr) == (0, "")


def test_each_public_name_is_found_where_a_type_checker_finds_it() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    homes = {
        alias.name: str(node.module)
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes.keys() | {"__version__"} == set(pyxlsnap.__all__)
    for name, home in homes.items():
        assert getattr(pyxlsnap, name) is getattr(import_module(home), name), name


def test_no_module_takes_the_name_of_a_public_function() -> None:
    """Importing a submodule binds its name in the package, over what was there."""
    code = (
        "import importlib, pkgutil, pyxlsnap\n"
        "public = {n: getattr(pyxlsnap, n) for n in pyxlsnap.__all__}\n"
        "for _, name, _ in pkgutil.iter_modules(pyxlsnap.__path__):\n"
        "    importlib.import_module('pyxlsnap.' + name)\n"
        "assert public == {n: getattr(pyxlsnap, n) for n in pyxlsnap.__all__}\n"
    )
    run = python(code)
    assert (run.returncode, run.stderr) == (0, "")
