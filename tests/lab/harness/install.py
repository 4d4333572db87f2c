"""Puts the package under test into the dom0, compiled there against the dom0's own Xen."""

import compileall
import py_compile
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from . import cache
from .dom0 import Dom0
from .image import Image

PROJECT = Path(__file__).resolve().parents[3]
SOURCES = ("pyxlsnap", "include", "build_ffi.py", "pyproject.toml", "README.md")
COMPILED = ["_ffi*.so"]  # of the host's Python and Xen, not of the dom0's
REQUIREMENT = "qemu.qmp==0.0.6"  # pure Python, and not in Debian 12

DEST, SITE = "/opt/pyxlsnap", "/opt/pyxlsnap-site"
COMMAND, PATHS = "/usr/local/bin/pyxlsnap", "pyxlsnap-lab.pth"
LAUNCHER = '#!/bin/sh\nexec python3 -m pyxlsnap "$@"\n'


def install(dom0: Dom0, image: Image, say: cache.Say, project: Path = PROJECT) -> None:
    """Replace what is installed in the dom0 by the project's files as they are now."""
    uninstall(dom0)
    for name in SOURCES:
        source = project / name
        if source.is_dir():
            push(dom0, source, f"{DEST}/{name}")
        else:
            dom0.write(f"{DEST}/{name}", source.read_bytes())
    push(dom0, _site(say), SITE)
    dom0.write(f"{packages(dom0)}/{PATHS}", f"{DEST}\n{SITE}\n")
    dom0.write(COMMAND, LAUNCHER, 0o755)
    dom0.push(_extension(dom0, image, project, say), DEST)


def uninstall(dom0: Dom0) -> None:
    """Leave nothing of what ``install`` puts there."""
    dom0.run(f"rm -rf {DEST} {SITE} {COMMAND} /usr/local/lib/python3*/*-packages/{PATHS}")


def packages(dom0: Dom0) -> str:
    """Where Python there looks for packages."""
    code = "import site; print(site.getsitepackages()[0])"
    return dom0.run(["python3", "-c", code]).out.strip()


def push(dom0: Dom0, source: Path, dest: str) -> None:
    """Copy a directory, its Python compiled: the dom0 takes half a minute for that, we a second.

    A Python of another release there does not look at what is compiled here.
    """
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / source.name
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", *COMPILED))
        compileall.compile_dir(
            copy,
            quiet=1,
            stripdir=copy,
            prependdir=dest,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        dom0.push(copy, dest)


def _extension(dom0: Dom0, image: Image, project: Path, say: cache.Say) -> Path:
    """The compiled extension, in the folders of the project.

    Compiled in the dom0 if its sources are new.
    """
    sources = [project / "build_ffi.py", *sorted((project / "include").iterdir())]
    key = cache.digest(image.key, *(data for p in sources for data in (p.name, p.read_bytes())))

    def build(new: Path) -> None:
        say("compiling the extension in the dom0")
        dom0.run(["python3", "build_ffi.py"], cwd=DEST, timeout=300)
        for built in dom0.run("find pyxlsnap -name '*.so'", cwd=DEST).out.split():
            (new / built).parent.mkdir(parents=True, exist_ok=True)
            (new / built).write_bytes(dom0.read(f"{DEST}/{built}"))
        dom0.run(f"rm -rf {DEST}/build")
        say("extension compiled")

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
    required = [*told["build-system"]["requires"], *told["project"]["dependencies"]]

    def build(new: Path) -> None:
        say(f"fetching wheels for Python {python}: {', '.join(required)}")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(new)]
        there = ["--only-binary=:all:", "--platform=manylinux2014_x86_64"]
        subprocess.run([*pip, *there, f"--python-version={python}", *required], check=True)

    return cache.built("wheels", cache.digest(python, *required), build, say)
