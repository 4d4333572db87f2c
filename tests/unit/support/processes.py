"""The processes round a worker."""

import os
from pathlib import Path


def caller() -> int:
    """In a worker: the pid of the process that has started its supervisor, which is its parent."""
    return int(Path(f"/proc/{os.getppid()}/stat").read_text().split()[3])


def lives(pid: int) -> bool:
    """Whether a process is there, and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
