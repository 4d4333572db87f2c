"""What a second memory file of a guest costs a backup that has the first one.

rsync and borg do what they do; ZFS (deduplication) and others that compare blocks are a count.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

#: the size of a record of ZFS, if nothing is said, bytes
RECORD: Final = 128 << 10


def costs(first: Path, second: Path) -> dict[str, int]:
    """The bytes that the second file adds, by way, and "file": its size.

    A way whose program is not installed is left out.
    """
    found = {"file": second.stat().st_size}
    for name, way in WAYS.items():
        try:
            found[name] = way(first, second)
        except FileNotFoundError:
            continue
    return found


def rsync(first: Path, second: Path) -> int:
    """What rsync sends to a host that has the first file under the name of the second."""
    with tempfile.TemporaryDirectory(dir=second.parent) as directory:
        there = Path(directory, second.name)
        shutil.copy(first, there)
        words = ["--inplace", "--no-whole-file", "--ignore-times", "--stats"]
        said = _said("rsync", *words, str(second), str(there), env={"LC_ALL": "C"})
    (literal,) = re.findall(r"^Literal data: ([0-9,]+) bytes", said, re.MULTILINE)
    return int(literal.replace(",", ""))


def borg(first: Path, second: Path, *options: str) -> int:
    """What borg adds to a repository, not compressed."""
    with tempfile.TemporaryDirectory(dir=second.parent) as directory:
        env = {"BORG_BASE_DIR": directory, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
        repository = f"{directory}/repository"
        _said("borg", "init", "-e", "none", repository, env=env)
        for number, path in enumerate((first, second)):
            words = [
                "create",
                "--json",
                "-C",
                "none",
                *options,
                f"{repository}::{number}",
                str(path),
            ]
            said = _said("borg", *words, env=env)
    stats: dict[str, Any] = json.loads(said)["archive"]["stats"]
    return int(stats["deduplicated_size"])


def borg_fixed(first: Path, second: Path) -> int:
    """The same with chunks of one size.

    Borg's usual chunks end where the content says so. Zeros say nothing, so a chunk of a file with
    many of them is large, and one page that has changed moves the ends of those that follow.
    """
    return borg(first, second, "--chunker-params", f"fixed,{RECORD}")


def records(first: Path, second: Path) -> int:
    """The bytes of the blocks that the first file does not have, at whatever place."""
    known = {_digest(block) for block in _blocks(first)}
    return sum(len(block) for block in _blocks(second) if _digest(block) not in known)


def _digest(block: bytes) -> bytes:
    return hashlib.sha256(block).digest()


def _blocks(path: Path) -> Iterator[bytes]:
    """The blocks of a file, but those of zeros."""
    with path.open("rb") as file:
        while block := file.read(RECORD):
            if block.strip(b"\0"):
                yield block


def _said(*command: str, env: dict[str, str]) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | env)
    return done.stdout


#: what takes files, by its name; returns the bytes that the second file adds to the first
WAYS: Final[dict[str, Callable[[Path, Path], int]]] = {
    "rsync --inplace": rsync,
    "borg": borg,
    "borg --chunker-params fixed,131072": borg_fixed,
    "equal blocks of 128 KiB": records,
}
