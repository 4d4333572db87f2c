"""The processes round a worker."""

import os
from pathlib import Path


def caller() -> int:
    """In a worker: the pid of the process that has started its supervisor, which is its parent."""
    return int(Path(f"/proc/{os.getppid()}/stat").read_text().split()[3])
