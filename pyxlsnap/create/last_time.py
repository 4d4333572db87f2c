"""For how long the last snapshot of a domain suspended it: the best estimate for the next one.

A small file for each domain, beside the domain's lock. Nothing but an estimate depends on it, and
a reboot removes it.
"""

import json
import logging
import math
from pathlib import Path
from typing import NamedTuple

from pyxlsnap import paths

log = logging.getLogger(__name__)


class _Time(NamedTuple):
    #: without the time for the disks, seconds
    seconds: float
    #: the domain's memory, KiB
    memory_kb: int


def remember(uuid: str, live: bool, seconds: float, memory_kb: int) -> None:
    """Note for how long a snapshot has suspended a domain, the disks left out.

    :param seconds: from libxl's report that the domain is suspended until it was resumed.
    :param memory_kb: the domain's memory, KiB.
    """
    path = _path(uuid)
    times = _times(path) | {_kind(live): _Time(seconds, memory_kb)}
    new = path.with_suffix(".new")
    try:
        new.write_text(json.dumps(times))
        new.replace(path)
    except OSError as e:
        log.info("%s: %s", path, e.strerror)


def recalled(uuid: str, live: bool, memory_kb: int) -> float | None:
    """For how long a domain's memory will suspend it, seconds; ``None``: nothing is noted.

    While the domain is suspended all of its memory is written, but in a live snapshot only what
    has changed just before.
    """
    found = _times(_path(uuid)).get(_kind(live))
    if found is None:
        return None
    return found.seconds if live else found.seconds * memory_kb / found.memory_kb


def _path(uuid: str) -> Path:
    return paths.LOCKS / f"{uuid}.times"


def _kind(live: bool) -> str:
    return "live" if live else "stopped"


def _times(path: Path) -> dict[str, _Time]:
    """What is noted; nothing if the file is not there, or has something else in it."""
    try:
        said = json.loads(path.read_bytes())
        found = {kind: _Time(float(s), int(kb)) for kind, (s, kb) in said.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError):
        return {}
    return {k: t for k, t in found.items() if math.isfinite(t.seconds) and t.memory_kb > 0}
