"""Puts the package under test into the dom0, compiled there against the dom0's own Xen."""

import compileall
import py_compile
import shutil
import subprocess
import sys
import tempfile
import tomllib
from functools import cache as cache_in_process
from pathlib import Path

from . import cache
from .dom0 import Dom0, packed
from .image import Image

PROJECT = Path(__file__).resolve().parents[3]
SOURCES = ("pyxlsnap", "include", "build_ffi.py", "pyproject.toml", "README.md")
COMPILED = ["_ffi*.so", "_stream*.so"]  # of the host's Python and Xen, not of the dom0's
REQUIREMENT = "qemu.qmp==0.0.6"  # pure Python, and not in Debian 12

DEST, SITE = "/opt/pyxlsnap", "/opt/pyxlsnap-site"
COMMAND, PATHS = "/usr/local/bin/pyxlsnap", "pyxlsnap-lab.pth"
UNINSTALL = f"rm -rf {DEST} {SITE} {COMMAND} /usr/local/lib/python3*/*-packages/{PATHS}"
ASK_PACKAGES = "import site; print(site.getsitepackages()[0])"
LAUNCHER = '#!/bin/sh\nexec python3 -m pyxlsnap "$@"\n'


def install(dom0: Dom0, image: Image, say: cache.Say, project: Path = PROJECT) -> None:
    """Replace what is installed in the dom0 by the project's files.

    They are read once in a process, and unpacked by one command: a command takes long there.
    """
    ask = f'python3 -c "{ASK_PACKAGES}"'
    unpack = f'{UNINSTALL} && tar -C / --no-same-owner -xf - && mv /{PATHS} "$({ask})"'
    dom0.run(unpack, input=_archive(project, say))
    dom0.push(_extension(dom0, image, project, say), DEST)


@cache_in_process
def _archive(project: Path, say: cache.Say) -> bytes:
    """The package and what it needs, but for the extensions, in their places in the dom0."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        root.chmod(0o755)  # it is unpacked over /
        for name in SOURCES:
            source, dest = project / name, f"{DEST}/{name}"
            if source.is_dir():
                _compiled_copy(source, root, dest)
            else:
                shutil.copy(source, root / dest[1:])
        _compiled_copy(_site(say), root, SITE)
        (root / PATHS).write_text(f"{DEST}\n{SITE}\n")
        command = root / COMMAND[1:]
        command.parent.mkdir(parents=True)
        command.write_text(LAUNCHER)
        command.chmod(0o755)
        return packed(root)


def uninstall(dom0: Dom0) -> None:
    """Leave nothing of what ``install`` puts there."""
    dom0.run(UNINSTALL)


def packages(dom0: Dom0) -> str:
    """Where Python there looks for packages."""
    return dom0.run(["python3", "-c", ASK_PACKAGES]).out.strip()


def push(dom0: Dom0, source: Path, dest: str) -> None:
    """Copy a directory, its Python compiled: the dom0 takes half a minute for that, we a second.

    A Python of another release there does not look at what is compiled here.
    """
    with tempfile.TemporaryDirectory() as directory:
        dom0.push(_compiled_copy(source, Path(directory), dest), dest)


def _compiled_copy(source: Path, root: Path, dest: str) -> Path:
    copy = root / dest[1:]
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", *COMPILED))
    compileall.compile_dir(
        copy,
        quiet=1,
        stripdir=copy,
        prependdir=dest,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    return copy


def _extension(dom0: Dom0, image: Image, project: Path, say: cache.Say) -> Path:
    """The compiled extensions, in the folders of the project.

    Compiled in the dom0 if its sources are new.
    """
    sources = [project / "build_ffi.py", *sorted((project / "include").iterdir())]
    key = cache.digest(image.key, *(data for p in sources for data in (p.name, p.read_bytes())))

    def build(new: Path) -> None:
        say("compiling the extensions in the dom0")
        dom0.run(["python3", "build_ffi.py"], cwd=DEST, timeout=300)
        for built in dom0.run("find pyxlsnap -name '*.so'", cwd=DEST).out.split():
            (new / built).parent.mkdir(parents=True, exist_ok=True)
            (new / built).write_bytes(dom0.read(f"{DEST}/{built}"))
        dom0.run(f"rm -rf {DEST}/build")
        say("extensions compiled")

    return cache.built("extension", key, build, say)


def _site(say: cache.Say) -> Path:
    """The directory of the dependency that Debian does not have."""

    def build(new: Path) -> None:
        say(f"fetching {REQUIREMENT}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--target", str(new), REQUIREMENT], check=True)

    return cache.built("site", cache.digest(REQUIREMENT), build, say)


def wheels(dom0: Dom0, say: cache.Say) -> Path:
    """A directory with all that pip needs to build and install the package in the dom0."""
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    python = dom0.run(["python3", "-c", asked]).out.strip()
    told = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    project = told["project"]
    extra = project["optional-dependencies"]["cli"]
    required = [*told["build-system"]["requires"], *project["dependencies"], *extra]

    def build(new: Path) -> None:
        say(f"fetching wheels for Python {python}: {', '.join(required)}")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(new)]
        there = ["--only-binary=:all:", "--platform=manylinux2014_x86_64"]
        subprocess.run([*pip, *there, f"--python-version={python}", *required], check=True)

    return cache.built("wheels", cache.digest(python, *required), build, say)
