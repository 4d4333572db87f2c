"""For how long the last snapshots of a domain suspended it: the best estimate for the next one.

A small file for each domain, beside the domain's lock. Nothing but an estimate depends on it, and
a reboot removes it. A time counts for a day, and only the last three: a snapshot that was slow for
once must not let ``max_downtime`` refuse all that follow, because a refused one measures nothing.
"""

import json
import logging
import math
import time
from pathlib import Path
from typing import NamedTuple

from pyxlsnap import paths

log = logging.getLogger(__name__)

_KEPT = 3
_COUNTS_S = 24 * 3600.0


class _Time(NamedTuple):
    #: without the time for the disks, seconds
    seconds: float
    #: the domain's memory, KiB
    memory_kb: int
    #: when this was noted, seconds since the epoch
    noted: float


def remember(uuid: str, live: bool, seconds: float, memory_kb: int) -> None:
    """Note for how long a snapshot has suspended a domain, the disks left out.

    :param seconds: from libxl's report that the domain is suspended until it was resumed.
    :param memory_kb: the domain's memory, KiB.
    """
    path = _path(uuid)
    noted = _noted(path)
    before = noted.get(_kind(live), [])[1 - _KEPT :]
    noted[_kind(live)] = [*before, _Time(seconds, memory_kb, time.time())]
    new = path.with_suffix(".new")
    try:
        new.unlink(missing_ok=True)  # of a create that was killed
        with new.open("xb") as file:
            file.write(json.dumps(noted).encode())
        new.replace(path)
    except OSError as e:
        log.info("%s: %s", path, e.strerror)


def recalled(uuid: str, live: bool, memory_kb: int) -> float | None:
    """For how long a domain's memory will suspend it, seconds; ``None``: nothing is noted.

    The middle one of the last times; of two, the shorter. While the domain is suspended all of its
    memory is written, but in a live snapshot only what has changed just before.
    """
    now = time.time()
    found = [t for t in _noted(_path(uuid)).get(_kind(live), []) if abs(now - t.noted) < _COUNTS_S]
    if not found:
        return None
    times = sorted(t.seconds if live else t.seconds * memory_kb / t.memory_kb for t in found)
    return times[(len(times) - 1) // 2]


def _path(uuid: str) -> Path:
    return paths.LOCKS / f"{uuid}.times"


def _kind(live: bool) -> str:
    return "live" if live else "stopped"


def _noted(path: Path) -> dict[str, list[_Time]]:
    """What is noted; nothing if the file is not there, or has something else in it."""
    try:
        said = json.loads(path.read_bytes())
        found = {
            kind: [_Time(float(s), int(kb), float(when)) for s, kb, when in times]
            for kind, times in said.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, OverflowError):
        return {}
    return {
        kind: [t for t in times if math.isfinite(t.seconds) and t.memory_kb > 0]
        for kind, times in found.items()
    }
