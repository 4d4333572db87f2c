"""The project's files, and a copy of them as git would give it."""

import shutil
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
SHIPPED = (
    *("pyxlsnap", "include", "docs", "examples", "contrib"),
    *("build_ffi.py", "pyproject.toml", "MANIFEST.in"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "Makefile"),
)
SHARE = PROJECT / "docs" / "share"
UNIT = PROJECT / "pyxlsnap" / "systemd" / "pyxlsnap-recover.service"


def copy_of_the_project(where: Path) -> Path:
    """Sources only: what was compiled here must not help."""
    for name in SHIPPED:
        source = PROJECT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "_ffi*.so", "_stream*.so")
            shutil.copytree(source, where / name, ignore=ignored)
        else:
            shutil.copy(source, where / name)
    return where
