"""The package as others get it: wheel, sdist, editable; and the one line when Xen's headers lack.

Everything is built from a copy of what git would give, with the build tools that are installed
already: no network.
"""

import configparser
import os
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

from pyxlsnap.cli.parser import build_parser
from pyxlsnap.journal import Journal
from pyxlsnap.version import VERSION
from tests.project import SHARE, UNIT, copy_of_the_project

#: most of the time of a build is the optimizer's
QUICKLY = {"CFLAGS": "-O0"}
USES_LIBXL = (
    "from pyxlsnap import version; from pyxlsnap.xen import ffi, xlcfg; "
    "import pyxlsnap.memory.writer; "
    "print(version.VERSION, xlcfg.parse_cfg.__name__, ffi.XEN_RELEASE[0])"
)


def build(kind: str, source: Path, dest: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Call the build backend as pip does, in a process of its own."""
    call = f"import build_ffi; print(build_ffi.build_{kind}({str(dest)!r}))"
    return subprocess.run(
        [sys.executable, "-c", call],
        cwd=source,
        env={**os.environ, **QUICKLY, "PYTHONPATH": str(source), **env},
        capture_output=True,
        text=True,
    )


def made_by(done: subprocess.CompletedProcess[str], dest: Path) -> Path:
    assert done.returncode == 0, done.stderr
    return dest / done.stdout.splitlines()[-1]


def fresh_environment(where: Path) -> Path:
    """A Python with our dependencies and without the package; returns its executable."""
    venv.create(where, with_pip=False)
    python = where / "bin" / "python"
    ours = next(p for p in sys.path if p.endswith("site-packages"))
    (site,) = (where / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{ours}\n")
    return python


def install(python: Path, *what: str) -> None:
    pip("--python", str(python), "install", *what)


def pip(*words: str) -> None:
    """Run pip without a network."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    offline = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    env = {**os.environ, **QUICKLY}
    subprocess.run([*command, *offline], check=True, capture_output=True, text=True, env=env)


def check_installed(python: Path, where: Path, version: str = VERSION) -> None:
    """It imports from elsewhere, finds libxl, and the command is there."""
    used = subprocess.run(
        [python, "-c", USES_LIBXL], cwd=where, check=True, capture_output=True, text=True
    )
    assert used.stdout.split()[:2] == [version, "parse_cfg"]
    command = [str(python.parent / "pyxlsnap"), "--version"]
    told = subprocess.run(command, cwd=where, check=True, capture_output=True, text=True)
    assert told.stdout == f"pyxlsnap {version}\n"


def test_pip_installs_what_the_sdist_alone_has(tmp_path: Path) -> None:
    source = copy_of_the_project(tmp_path / "source")
    sdist = made_by(build("sdist", source, tmp_path), tmp_path)
    shutil.rmtree(source)
    pip("wheel", "--wheel-dir", str(tmp_path), str(sdist))
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name
    contents = zipfile.ZipFile(wheel)
    names = contents.namelist()
    assert "pyxlsnap/xen/_ffi.abi3.so" in names
    assert "pyxlsnap/memory/_stream.abi3.so" in names
    typed = {"pyxlsnap/py.typed", "pyxlsnap/xen/_ffi.pyi", "pyxlsnap/memory/_stream.pyi"}
    assert typed <= set(names)
    (unit,) = [name for name in names if name.endswith("/lib/systemd/system/" + UNIT.name)]
    assert contents.read(unit) == UNIT.read_bytes()
    (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    told = contents.read(metadata).decode()
    lines = told.partition("\n\n")[0].splitlines()
    assert "License-Expression: LGPL-2.1-only" in lines
    assert "Author: The pyxlsnap authors" in lines
    # The progress bar is not forced on who embeds the library.
    assert [line for line in lines if "tqdm" in line] == [
        'Requires-Dist: tqdm>=4.60; extra == "cli"'
    ]
    python = fresh_environment(tmp_path / "env")
    install(python, str(wheel))
    check_installed(python, tmp_path)
    assert (tmp_path / "env" / "lib" / "systemd" / "system" / UNIT.name).is_file()
    for path in (p for p in SHARE.rglob("*") if p.is_file()):
        installed = tmp_path / "env" / "share" / path.relative_to(SHARE)
        assert installed.read_bytes() == path.read_bytes()


def test_the_unit_runs_a_command_that_there_is() -> None:
    unit = configparser.ConfigParser()
    unit.read(UNIT)
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert program == "pyxlsnap"
    assert build_parser().parse_args(words).command == "snapshot-recover"
    condition = unit["Unit"]["ConditionPathExistsGlob"]
    assert fnmatch(str(Journal("some-uuid").path), condition)


@pytest.mark.soak
def test_an_editable_install_follows_the_source(tmp_path: Path) -> None:
    source = copy_of_the_project(tmp_path / "source")
    python = fresh_environment(tmp_path / "env")
    install(python, "--editable", str(source))
    check_installed(python, tmp_path)
    (source / "pyxlsnap" / "version.py").write_text('VERSION = "edited"\n')
    check_installed(python, tmp_path, version="edited")


@pytest.mark.parametrize("lacks", ["headers", "pkg-config"])
def test_without_the_headers_one_line_says_what_to_install(tmp_path: Path, lacks: str) -> None:
    source = copy_of_the_project(tmp_path / "source")
    env = {"PKG_CONFIG_LIBDIR": str(tmp_path)} if lacks == "headers" else {"PATH": str(tmp_path)}
    done = build("wheel", source, tmp_path, **env)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("pyxlsnap: the Xen headers are missing: ")
    assert "libxen-dev" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.whl"))
