"""Directories with all that is in them."""

from pathlib import Path


def tree(root: Path) -> dict[str, object]:
    """All files with what is in them, but for the locks and the noted times of snapshots."""
    return {
        str(path): path.readlink()
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else path.stat().st_mode
        for path in root.rglob("*")
        if path.suffix not in (".lock", ".times")
    }


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]
