"""What the lab keeps between runs: complete or not there, and built by one run at a time."""

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Say = Callable[[str], None]


def home() -> Path:
    """The cache directory, created if need be."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base) / "pyxlsnap-lab"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def digest(*parts: str | bytes) -> str:
    """A short key for everything that goes into a result."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()[:12]


def progress(write: Callable[[str], None] | None = None) -> Say:
    """A printer of ``[  12s] text`` lines: what takes long shows that it is alive."""
    begun = time.monotonic()

    def say(text: str) -> None:
        line = f"[{time.monotonic() - begun:4.0f}s] {text}"
        if write is not None:
            write(line)
        else:
            print(line, file=sys.stderr, flush=True)

    return say


@contextmanager
def locked(name: str, say: Say) -> Iterator[None]:
    """Hold a lock among all runs on this machine; it falls with the process."""
    with (home() / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is building the {name}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def built(kind: str, key: str, build: Callable[[Path], None], say: Say) -> Path:
    """The directory ``<kind>-<key>``: from the cache, or from ``build``, which fills a new one.

    A build that fails or is killed leaves nothing that a later run would take for a result.
    """
    final = home() / f"{kind}-{key}"
    if final.exists():
        return final
    with locked(kind, say):
        for leftover in home().glob(f"{kind}-*.new"):
            remove(leftover)
        if not final.exists():
            new = final.with_name(final.name + ".new")
            new.mkdir()
            try:
                build(new)
                new.rename(final)
            except BaseException:
                remove(new)
                raise
    return final


def privileged(argv: list[str]) -> list[str]:
    """The command, through sudo unless we are root."""
    return argv if os.geteuid() == 0 else ["sudo", *argv]


def remove(directory: Path) -> None:
    """Remove what a build left. Parts may belong to root; nothing mounted there is touched."""
    command = ["rm", "-rf", "--one-file-system", str(directory)]
    if subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
        subprocess.run(privileged(command), check=True)


def size_mib(path: Path) -> int:
    """What a file or directory takes on the disk."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_blocks for file in files) * 512 >> 20
